"""Another registry's directory as a bundle: never written to, its content proven like any.

It may lie in a directory, or in tars that together hold one. Its repositories are served under the
names they have in it; it has no record of their upstreams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mayfly.storage.bundle.diagnostics import Code, Diagnostic
from mayfly.storage.bundle.errors import BundleChanged, BundleInvalid
from mayfly.storage.bundle.files import Directory, TarFile
from mayfly.storage.bundle.tar_tree import Part, TarTree
from mayfly.storage.bundle.verified import BundleFault, Problem, Proofs
from mayfly.storage.digest import HEX_LENGTHS, Digest
from mayfly.storage.directory.reader import DirectoryReader
from mayfly.storage.directory_tree import DirectoryTree
from mayfly.storage.errors import ContentCorrupt, PathRefused, StorageError
from mayfly.storage.interface import Extent
from mayfly.storage.reading import repositories


class DistributionDirectory(DirectoryReader):
    """See `storage.interface.LowerStore`. Use `in_directory` or `in_tars`.

    Args:
        parts: the files of each part; closed with this.
        tree: all of them.
        root: the path that paths of the tree begin with.
        base: where the format begins, below the root.
        changing: whether its directories have times of their own.
        maker: the tool that made it.
        proofs: shared with the server's bundles.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        tree: DirectoryTree,
        root: Path,
        base: str,
        changing: bool,
        maker: str,
        proofs: Proofs,
    ) -> None:
        super().__init__(root, tree, base)
        self.maker = maker
        self.label = ", ".join(part.label for part in parts)
        self.notices: list[Diagnostic] = []
        self._parts = tuple(parts)
        self._root = root
        self._changing = changing
        self._proofs = proofs

    def check_top(self) -> None:
        """Reject faults that would make every image unreadable, such as a link to elsewhere.

        Raises:
            PathRefused: there is one.
        """
        layout = self._layout
        tops = [layout.repositories, layout.blobs, *(layout.blobs / a for a in HEX_LENGTHS)]
        for directory in (layout.base, *tops):
            self._tree.status(directory)

    def close(self) -> None:
        """Close its files."""
        for part in self._parts:
            part.files.close()

    def revision_directories(self, repository: str) -> list[Path]:
        # A tar's members change with the tar, which is refused then.
        return super().revision_directories(repository) if self._changing else [self._root]

    def damaged_names(self) -> Iterator[Diagnostic]:
        """Yield the tags and manifests that lead to no image."""
        for repository in repositories(self):
            try:
                if self._has_only_good_tags(repository):
                    continue
                for tag, _ in self.lost_tags(repository):
                    name = f"{repository}:{tag}"
                    text = f"{name}: the tag's link is gone or damaged"
                    yield Diagnostic(Code.LINK_LOST, text, self.label, name)
                for tag, digest in self.dangling_tags(repository):
                    if digest is not None:
                        name = f"{repository}:{tag}"
                        text = f"{name}: manifest {digest} is not linked"
                        yield Diagnostic(Code.LINK_LOST, text, self.label, name, digest)
            except OSError as error:
                yield self._unreadable(repository, "cannot be read: ", error.strerror or "")
            except StorageError as error:
                yield self._unreadable(repository, "", error.message)
        for name, reason in self.unreadable_directories():
            yield self._unreadable(name, "cannot be listed: ", reason)

    def _has_only_good_tags(self, repository: str) -> bool:
        """Whether each tag leads to a manifest: as a rule they do, and each is read once."""
        links = (self._layout.tag_link(repository, tag) for tag in self.tag_names(repository))
        digests = map(self.read_link, links)
        return all(one is not None and self.is_linked(repository, one) for one in digests)

    def _unreadable(self, name: str, fact: str, reason: str) -> Diagnostic:
        text = f"{name}: {fact}{reason}"
        return Diagnostic(Code.UNREADABLE, text, self.label, name, detail=reason)

    def content(self, digest: Digest) -> Extent | None:
        name = str(self._layout.data(digest).relative_to(self._root))
        refused: ContentCorrupt | None = None
        for part in self._parts:
            try:
                piece = part.files.locate(name)
                if piece is not None:
                    return self._proofs.extent(piece, digest, part.label)
            except BundleInvalid as error:
                refused = PathRefused(error.message)
                self._proofs.note(BundleFault(digest, part.label, Problem.FILE_REFUSED), refused)
            except BundleChanged as error:
                refused = error
                self._proofs.note(BundleFault(digest, part.label, Problem.FILE_CHANGED), refused)
            except ContentCorrupt as error:
                refused = error  # another part may have a good copy
        if refused is not None:
            raise refused
        return None


def in_directory(
    label: str, files: Directory, base: str, maker: str, proofs: Proofs
) -> DistributionDirectory:
    """Open a registry's directory.

    Raises:
        PathRefused: a link is in the place of one of its upper directories.
    """
    tree = files.tree
    found = DistributionDirectory([Part(label, files)], tree, tree.root, base, True, maker, proofs)
    found.check_top()
    return found


def in_tars(
    tars: Sequence[tuple[str, TarFile]], base: str, maker: str, proofs: Proofs
) -> DistributionDirectory:
    """Open the registry's directory that tars hold together."""
    tree = TarTree(tars)
    parts = [Part(label, tar) for label, tar in tars]
    return DistributionDirectory(parts, tree, tree.root, base, False, maker, proofs)
