"""The interface of a kind of archive; everything else is the same for each kind of bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from mayfly.storage.bundle.diagnostics import Diagnostic
from mayfly.storage.bundle.verified import Piece, Progress
from mayfly.storage.bundle.volumes import Volume
from mayfly.storage.digest import Digest


class Listed(NamedTuple):
    """An image or index in a bundle's list.

    Attributes:
        digest: of its manifest; None while its layers have to be hashed first.
        names: its full names, as text.
        tag: the tag of an image without a full name, as text.
    """

    digest: Digest | None
    names: tuple[str, ...] = ()
    tag: str | None = None


class ArchiveReader(Protocol):
    """An opened bundle of some kind."""

    @property
    def listed(self) -> Sequence[Listed]:
        """The images that the bundle lists, in its order."""

    @property
    def names_by_config(self) -> Mapping[Digest, Sequence[str]]:
        """Full names given by an image's config instead of its manifest."""

    @property
    def notices(self) -> Sequence[Diagnostic]:
        """Facts that the operator should know."""

    @property
    def volume(self) -> Volume | None:
        """The volume that the bundle is; None for a whole bundle."""

    @property
    def unhashed(self) -> int:
        """Bytes that have to be hashed before every image has a digest."""

    def find(self, digest: Digest) -> Piece | None:
        """Quick. Locate content by its digest; None if it is not in the bundle.

        Raises:
            BundleChanged: the bundle was written to since it was opened.
        """

    def hash(self, progress: Progress) -> None:
        """Read the bytes that `unhashed` counts; afterwards there are none."""

    def close(self) -> None:
        """Close the bundle's files."""
