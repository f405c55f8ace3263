"""What a kind of bundle must say of itself; the rest is the same for every kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from mayfly.storage.bundle.verified import Piece, Progress
from mayfly.storage.bundle.volumes import Volume
from mayfly.storage.digest import Digest


class Listed(NamedTuple):
    """An image or index in a bundle's list.

    Attributes:
        digest: of its manifest; None while its layers have to be hashed first.
        names: its full names, as text.
        tag: what it has where it has no full name: a tag alone, as text.
    """

    digest: Digest | None
    names: tuple[str, ...] = ()
    tag: str | None = None


class Content(Protocol):
    """An opened bundle of some kind."""

    @property
    def listed(self) -> Sequence[Listed]:
        """What the bundle lists, in its order."""

    @property
    def names_by_config(self) -> Mapping[Digest, Sequence[str]]:
        """Full names given by an image's config instead of its manifest."""

    @property
    def notices(self) -> Sequence[str]:
        """What the operator should know, each a line of text."""

    @property
    def volume(self) -> Volume | None:
        """Which volume of a set it is; None where it is whole."""

    @property
    def unhashed(self) -> int:
        """Bytes that have to be hashed before every image has a digest."""

    def find(self, digest: Digest) -> Piece | None:
        """Quick. Where content of this digest lies; None when it is not in the bundle.

        Raises:
            BundleChanged: the bundle was written to since it was opened.
        """

    def hash(self, progress: Progress) -> None:
        """Read the bytes that `unhashed` counts; afterwards there are none."""

    def close(self) -> None:
        """Let go of what is held open."""
