"""The files to write on a node, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class NodeView(Protocol):
    """The state of a node before Mayfly changed it. Paths are absolute, as the node sees them."""

    def read(self, path: str) -> bytes | None:
        """A file's content; None when there is none."""

    def is_directory(self, path: str) -> bool:
        """Whether there is a directory, or a link to one."""


@dataclass(frozen=True)
class PlannedFile:
    """A file that a node is to have.

    ``mode`` is for a file that is new; one that exists keeps its own. ``private`` says that the
    content is a secret: then the file loses whatever its mode gives beyond ``mode``. ``merged``
    says that the content is what the node had with some keys added, so it cannot be written
    without looking.
    """

    path: str
    content: bytes
    mode: int = 0o644
    private: bool = False
    merged: bool = False


@dataclass(frozen=True)
class Plan:
    """All that one runtime needs, in the order to write it: a file comes after those it names.

    ``activate`` are the commands that make a running daemon take notice, none when it does so by
    itself; ``notes`` is what the operator has to know, a line each.
    """

    files: tuple[PlannedFile, ...]
    activate: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
