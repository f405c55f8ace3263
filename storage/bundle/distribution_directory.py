"""Another registry's directory as a bundle: never written to, its content proven like any.

Its repositories are served under the names they have in it; it has no record of their upstreams.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from mayfly.storage.beneath import Beneath
from mayfly.storage.bundle.diagnostics import Code, Diagnostic
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.verified import BundleFault, Piece, Problem, Proofs
from mayfly.storage.digest import HEX_LENGTHS, Digest
from mayfly.storage.directory.reader import DirectoryReader
from mayfly.storage.errors import PathRefused
from mayfly.storage.files import stamp_of
from mayfly.storage.interface import Extent
from mayfly.storage.reading import repositories


class DistributionDirectory(DirectoryReader):
    """See `storage.interface.LowerStore`.

    Args:
        root: the directory that holds ``docker/registry/v2``.
        proofs: shared with the server's bundles.

    Raises:
        BundleInvalid: there is no such directory in it.
    """

    def __init__(self, root: Path, proofs: Proofs) -> None:
        self._beneath = Beneath(root)
        super().__init__(self._beneath.root, self._beneath)
        try:
            self._check_top()
        except BaseException:
            self.close()
            raise
        self._label = str(root)
        self._proofs = proofs

    def _check_top(self) -> None:
        """Reject faults that would make every image unreadable, such as a link to elsewhere."""
        layout = self._layout
        if self._beneath.status(layout.base) is None:
            raise BundleInvalid("there is no docker/registry/v2 in the directory")
        tops = [layout.repositories, layout.blobs, *(layout.blobs / a for a in HEX_LENGTHS)]
        for directory in tops:
            self._beneath.status(directory)

    def close(self) -> None:
        """Close the directory."""
        self._beneath.close()

    def damaged_names(self) -> Iterator[Diagnostic]:
        """Yield the tags and manifests that lead to no image."""
        for repository in repositories(self):
            try:
                for tag, _ in self.lost_tags(repository):
                    name = f"{repository}:{tag}"
                    text = f"{name}: the tag's link is gone or damaged"
                    yield Diagnostic(Code.LINK_LOST, text, self._label, name)
                for tag, digest in self.dangling_tags(repository):
                    if digest is not None:
                        name = f"{repository}:{tag}"
                        text = f"{name}: manifest {digest} is not linked"
                        yield Diagnostic(Code.LINK_LOST, text, self._label, name, digest)
            except OSError as error:
                yield self._unreadable(repository, "cannot be read: ", error.strerror or "")
            except PathRefused as error:
                yield self._unreadable(repository, "", error.message)
        for name, reason in self.unreadable_directories():
            yield self._unreadable(name, "cannot be listed: ", reason)

    def _unreadable(self, name: str, fact: str, reason: str) -> Diagnostic:
        text = f"{name}: {fact}{reason}"
        return Diagnostic(Code.UNREADABLE, text, self._label, name, detail=reason)

    def content(self, digest: Digest) -> Extent | None:
        path = self._layout.data(digest)
        try:
            status = self._beneath.status(path)
        except PathRefused as error:
            self._proofs.note(BundleFault(digest, self._label, Problem.FILE_REFUSED), error)
            raise
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        piece = Piece(path, 0, status.st_size, stamp_of(status), self._beneath)
        return self._proofs.extent(piece, digest, self._label)


def is_distribution(root: Path) -> bool:
    """Whether a directory is one that registry:2 is given."""
    return (root / "docker" / "registry" / "v2").is_dir()
