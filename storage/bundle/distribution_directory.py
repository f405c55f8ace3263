"""Another registry's directory as a bundle: read, never written to, its blobs proven like any.

Its repositories are served under the names they have in it; which upstream they came from is not
recorded there.
"""

from __future__ import annotations

from pathlib import Path

from storage.bundle.errors import BundleInvalid
from storage.bundle.verified import Piece, Proofs, stamp_of
from storage.digest import Digest
from storage.directory import DirectoryReader
from storage.errors import BlobUnknown
from storage.interface import Extent


class DistributionDirectory(DirectoryReader):
    """See `storage.bundle.layer.Layer`.

    Args:
        root: the directory that holds ``docker/registry/v2``.
        proofs: shared with the server's bundles.

    Raises:
        BundleInvalid: it does not.
    """

    def __init__(self, root: Path, proofs: Proofs) -> None:
        if not is_distribution(root):
            raise BundleInvalid("there is no docker/registry/v2 in the directory")
        super().__init__(root)
        self._label = str(root)
        self._proofs = proofs

    def close(self) -> None:
        """Nothing is held open."""

    def blob(self, repository: str, digest: Digest) -> Extent:
        found = self.content(digest) if self.links(repository, digest) else None
        if found is None:
            raise BlobUnknown("blob unknown to repository", {"digest": str(digest)})
        return found

    def manifest(self, repository: str, digest: Digest) -> Extent:
        return self._proven(super().manifest(repository, digest).path, digest)

    def links(self, repository: str, digest: Digest) -> bool:
        return self._layout.layer_link(repository, digest).exists()

    def content(self, digest: Digest) -> Extent | None:
        try:
            return self._proven(self._layout.data(digest), digest)
        except FileNotFoundError:
            return None

    def _proven(self, path: Path, digest: Digest) -> Extent:
        status = path.stat()
        piece = Piece(path, 0, status.st_size, stamp_of(status))
        return self._proofs.extent(piece, digest, self._label)


def is_distribution(root: Path) -> bool:
    """Whether a directory is one that registry:2 is given."""
    return (root / "docker" / "registry" / "v2").is_dir()
