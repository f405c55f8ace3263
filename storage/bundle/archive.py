"""The interface of a kind of archive; everything else is the same for each kind of bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from mayfly.storage.bundle.diagnostics import Diagnostic
from mayfly.storage.bundle.verified import Piece, Progress
from mayfly.storage.bundle.volumes import Volume
from mayfly.storage.digest import Digest
from mayfly.storage.reference import is_full_name

FULL_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
KIND = "kind"
ANNOTATIONS = (FULL_NAME, REF_NAME, KIND)
"""The annotations in an ``index.json`` that name an image, or its kind."""


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


class Entry(NamedTuple):
    """An entry of an OCI layout's ``index.json``.

    Attributes:
        digest: of its manifest.
        annotations: those of `ANNOTATIONS` that it has.
    """

    digest: Digest
    annotations: Mapping[str, str]

    def listed(self) -> Listed:
        """Return the entry with the names that its annotations give."""
        full, ref = self.annotations.get(FULL_NAME, ""), self.annotations.get(REF_NAME, "")
        name = full or (ref if is_full_name(ref) else "")
        return Listed(self.digest, (name,) if name else (), ref or None)


class ArchiveReader(Protocol):
    """An opened bundle of some kind."""

    @property
    def listed(self) -> Sequence[Listed]:
        """The images that the bundle lists, in its order."""

    @property
    def maker(self) -> str:
        """The tool that made the bundle, or the format, if many tools write it."""

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
