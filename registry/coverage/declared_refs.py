"""The references that a manifest declares, and those that count for coverage in a repository."""

from __future__ import annotations

from typing import NamedTuple

from mayfly.registry.coverage.manifest_graph import ManifestRefs
from mayfly.storage.digest import Digest
from mayfly.storage.errors import StorageError
from mayfly.storage.interface import Reader
from mayfly.storage.manifest import Manifest


class DeclaredRefs(NamedTuple):
    """The references of a manifest, independent of the repository.

    Attributes:
        required: children, and blobs that a registry must have.
        optional: blobs that it may lack (`storage.manifest.Descriptor.distributable`).
    """

    required: ManifestRefs
    optional: tuple[Digest, ...]

    def within(self, reader: Reader, repository: str) -> ManifestRefs:
        """Return the references in a repository; an optional blob counts if it exists there."""
        present = tuple(str(digest) for digest in self.optional if _has(reader, repository, digest))
        return ManifestRefs(self.required.children, (*self.required.blobs, *present))


def refs_of(manifest: Manifest) -> DeclaredRefs:
    """Return the references of a manifest, each once."""
    children = dict.fromkeys(str(child.digest) for child in manifest.manifests)
    required = dict.fromkeys(str(blob.digest) for blob in manifest.blobs if blob.distributable)
    optional = dict.fromkeys(b.digest for b in manifest.blobs if not b.distributable)
    return DeclaredRefs(ManifestRefs(tuple(children), tuple(required)), tuple(optional))


def _has(reader: Reader, repository: str, digest: Digest) -> bool:
    try:
        reader.blob(repository, digest)
    except StorageError:
        return False
    return True
