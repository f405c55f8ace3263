"""The references of a manifest, as coverage counts them."""

from __future__ import annotations

from dataclasses import dataclass

from mayfly.registry.coverage.contents import Contents
from mayfly.storage.digest import Digest
from mayfly.storage.errors import StorageError
from mayfly.storage.interface import Reader
from mayfly.storage.manifest import Manifest


@dataclass(frozen=True, slots=True)
class ManifestRefs:
    """The references of a manifest, in whatever repository it is.

    Attributes:
        contents: children, and blobs that a registry must have.
        excused: blobs that it may lack (`storage.manifest.Descriptor.distributable`).
    """

    contents: Contents
    excused: tuple[Digest, ...]

    def within(self, reader: Reader, repository: str) -> Contents:
        """Those of a repository: a blob that may be absent counts where it is there."""
        held = tuple(str(digest) for digest in self.excused if _has(reader, repository, digest))
        return Contents(self.contents.children, (*self.contents.blobs, *held))


def refs_of(manifest: Manifest) -> ManifestRefs:
    """The references of a manifest, each once."""
    children = dict.fromkeys(str(child.digest) for child in manifest.manifests)
    blobs = dict.fromkeys(str(blob.digest) for blob in manifest.blobs if blob.distributable)
    excused = dict.fromkeys(b.digest for b in manifest.blobs if not b.distributable)
    return ManifestRefs(Contents(tuple(children), tuple(blobs)), tuple(excused))


def _has(reader: Reader, repository: str, digest: Digest) -> bool:
    try:
        reader.blob(repository, digest)
    except StorageError:
        return False
    return True
