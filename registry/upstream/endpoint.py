"""One side of a copy: where images come from, or where they go."""

from __future__ import annotations

from typing import Protocol


class Endpoint(Protocol):
    """A source or a target of images."""

    @property
    def label(self) -> str:
        """Its name in messages."""

    @property
    def url(self) -> str | None:
        """The URL of the registry that it is; None for anything else."""
