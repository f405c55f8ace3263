"""Reading the directory format of CNCF distribution (``registry:2``).

A blob is in a repository if its link file and its data file exist. Both are checked on every read,
so that a delete takes effect at once and changes by registry:2 or its garbage collector are seen.
Nothing is written here; `storage.directory.store` writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.cached import CacheMarks
from mayfly.storage.directory.catalog import Catalog, is_repository
from mayfly.storage.directory.layout import BASE, Layout
from mayfly.storage.directory.records import Records
from mayfly.storage.directory_tree import DirectoryTree, HostDirectory
from mayfly.storage.errors import (
    BlobUnknown,
    DigestInvalid,
    ManifestUnknown,
    PathRefused,
    blob_unknown,
    manifest_unknown,
    repository_unknown,
)
from mayfly.storage.interface import Extent
from mayfly.storage.reading import repositories
from mayfly.storage.reference import check_repository, is_tag
from mayfly.storage.referrers import Referrers

_LONGEST_LINK = 256


class DirectoryReader:
    """See `storage.interface.Reader`.

    Args:
        root: the directory that registry:2 is given.
        tree: reads the files; by default as those of an operator's own root.
        base: see `storage.directory.layout.Layout`.

    Attributes:
        cached: marks of content that came from an upstream.
    """

    def __init__(self, root: Path, tree: DirectoryTree | None = None, base: str = BASE) -> None:
        self._layout = Layout(root, base)
        self._tree = tree or HostDirectory(self._layout.repositories)
        self._records = Records(self._layout, trusted=tree is None)
        self.cached = CacheMarks(self._layout, self._tree)
        self._referrers = Referrers(self)
        self._catalog = Catalog(self._layout.repositories, self._tree)

    def blob(self, repository: str, digest: Digest) -> Extent:
        if self.links(repository, digest):
            found = self.content(digest)
            if found is not None:
                return found
            self._refuse_damaged(digest, BlobUnknown)
        raise blob_unknown(digest)

    def manifest(self, repository: str, digest: Digest) -> Extent:
        if self.is_linked(repository, digest):
            found = self.content(digest)
            if found is not None:
                return found
            self._refuse_damaged(digest, ManifestUnknown)
        raise manifest_unknown(digest)

    def tag(self, repository: str, tag: str) -> Digest:
        digest = self.read_link(self._layout.tag_link(repository, tag))
        if digest is None:
            raise manifest_unknown(tag)
        return digest

    def tags(self, repository: str) -> list[str]:
        if not is_repository(self._layout.repository(repository), self._tree):
            raise repository_unknown(repository)
        tags = [name for name in self._tree.entries(self._layout.tags(repository)) if is_tag(name)]
        return sorted(t for t in tags if self._tree.is_file(self._layout.tag_link(repository, t)))

    def has_tag(self, repository: str, tag: str) -> bool:
        """Quick. Whether a tag has a link, damaged or not."""
        return self._layout.tag_link(repository, tag).exists()

    def tags_at(self, repository: str, digest: Digest) -> list[str]:
        """The tags that point at a manifest."""
        link = self._layout.tag_link
        # Not `tag_names`: where a file is in the place of all tags, none points at it.
        names = filter(is_tag, self._tree.entries(self._layout.tags(repository)))
        return sorted(name for name in names if self.read_link(link(repository, name)) == digest)

    def has_repository(self, repository: str) -> bool:
        return is_repository(self._layout.repository(repository), self._tree)

    def repositories(self, after: str, limit: int, prefix: str = "") -> list[str]:
        return self._catalog.names_after(after, limit, prefix)

    def repositories_with(self, digest: Digest) -> Iterator[str]:
        if self.content_size(digest) is None:
            return
        for name in repositories(self):
            if self.links(name, digest):
                yield name

    def links(self, repository: str, digest: Digest) -> bool:
        """See `storage.interface.LowerStore`."""
        return self._tree.is_file(self._layout.layer_link(repository, digest))

    def content(self, digest: Digest) -> Extent | None:
        """See `storage.interface.LowerStore`; None also for damaged bytes."""
        data = self._layout.data(digest)
        size = self._whole_size(digest, data)
        return None if size is None else Extent(data, 0, size)

    def content_size(self, digest: Digest) -> int | None:
        """Quick. The size of content in bytes; None if it is gone or damaged."""
        return self._whole_size(digest, self._layout.data(digest))

    def _whole_size(self, digest: Digest, data: Path) -> int | None:
        status = self._tree.status(data)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        return status.st_size if self._records.may_be_whole(digest, status) else None

    def _refuse_damaged(self, digest: Digest, error: type[BlobUnknown | ManifestUnknown]) -> None:
        if self._tree.is_file(self._layout.data(digest)):
            self._records.log_damage(digest)
            raise error("the stored content is damaged: push it again", {"digest": str(digest)})

    def referrers(
        self, repository: str, subject: Digest, after: str = ""
    ) -> Iterator[dict[str, object]]:
        return self._referrers.of(check_repository(repository), subject, after)

    def stored_blobs(self) -> Iterator[tuple[Digest, Path]]:
        """Yield every blob's digest and file, whether or not a repository links it."""
        for algorithm in digests.HEX_LENGTHS:
            for fan in self._tree.entries(self._layout.blobs / algorithm):
                for encoded in self._tree.entries(self._layout.blobs / algorithm / fan):
                    with contextlib.suppress(DigestInvalid):
                        digest = digests.parse(f"{algorithm}:{encoded}")
                        data = self._layout.data(digest)
                        if self._tree.is_file(data):
                            yield digest, data

    def revisions(self, repository: str) -> Iterator[Digest]:
        """Yield all manifests linked in a repository, tagged or not."""
        for digest in self.revision_entries(repository):
            if self.is_linked(repository, digest):
                yield digest

    def blob_links(self, repository: str) -> Iterator[Digest]:
        """Yield all blobs linked in a repository, whether or not their bytes exist."""
        for directory in self._layer_directories(repository):
            for digest in self._digests_in(directory):
                if self._tree.is_file(self._layout.layer_link(repository, digest)):
                    yield digest

    def dangling_tags(self, repository: str) -> Iterator[tuple[str, Digest | None]]:
        """Yield the tags whose manifest is not linked, and its digest if that can be read.

        Deleting a manifest removes its tags first: such a tag is damaged, or another registry's.
        """
        for name in self.tag_names(repository):
            link = self._layout.tag_link(repository, name)
            digest = self.read_link(link)
            if digest is not None and self.is_linked(repository, digest):
                continue
            # Read again: both may have been deleted since.
            if self._tree.is_file(link) and self.read_link(link) == digest:
                yield name, digest

    def tag_names(self, repository: str) -> list[str]:
        """Return the names of all tags, including those whose link is lost.

        Raises:
            NotADirectoryError: a file is in the place of their directory, or of the one above it:
                which tags there were is unknown.
        """
        directory = self._layout.tags(repository)
        names = self._tree.entries(directory)
        for path in () if names else (directory, directory.parent):
            if self._tree.is_file(path):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return sorted(filter(is_tag, names))

    def lost_tags(self, repository: str) -> Iterator[tuple[str, list[Digest]]]:
        """Yield the tags whose link is lost or damaged, and every manifest they ever pointed at.

        A tag's link is written before its history, so an empty directory comes from an interrupted
        push and is no fault.
        """
        for name in self.tag_names(repository):
            if (history := self.lost_history(repository, name)) is not None:
                yield name, history

    def lost_history(self, repository: str, tag: str) -> list[Digest] | None:
        """Return the manifests that a tag of `lost_tags` ever pointed at; None for another tag."""
        link = self._layout.tag_link(repository, tag)
        if self.read_link(link) is not None:
            return None
        history = self.tag_history(repository, tag)
        is_lost = history or self._tree.is_file(link) or self._tree.is_file(link.parents[1])
        return history if is_lost else None

    def tag_targets(self, repository: str) -> Iterator[Digest]:
        """Yield the manifests that tags point at; if a tag's link is lost, all of its history."""
        for name in self.tag_names(repository):
            digest = self.read_link(self._layout.tag_link(repository, name))
            if digest is not None:
                yield digest
            else:
                yield from self.tag_history(repository, name)

    def tag_history(self, repository: str, tag: str) -> list[Digest]:
        """Return the manifests that a tag points at or once pointed at."""
        index = self._layout.tag(repository, tag) / "index"
        return [d for alg in digests.HEX_LENGTHS for d in self._digests_in(index / alg)]

    def is_verified(self, digest: Digest) -> bool:
        """Quick. Whether content is whole and its size was verified by hashing."""
        size = self.content_size(digest)
        return size is not None and self._records.is_verified(digest, size)

    def is_link_torn(self, repository: str, digest: Digest, *, is_manifest: bool = False) -> bool:
        """Whether the link of a blob or manifest exists with wrong content."""
        link_of = self._layout.revision_link if is_manifest else self._layout.layer_link
        link = link_of(repository, digest)
        return self._tree.is_file(link) and self.read_link(link) != digest

    def was_linked(self, repository: str, digest: Digest) -> bool:
        """Whether content is or was linked in a repository: a lost link leaves its directory."""
        links = (
            self._layout.layer_link(repository, digest),
            self._layout.revision_link(repository, digest),
        )
        return any(self._tree.is_directory(link.parent) for link in links)

    def linked_in(self, digest: Digest) -> Iterator[str]:
        """Yield the repositories that link a blob or a manifest, whether or not its bytes exist."""
        for name in repositories(self):
            links = self._layout.layer_link(name, digest), self._layout.revision_link(name, digest)
            if any(map(self._tree.is_file, links)):
                yield name

    def unreadable_directories(self) -> list[tuple[str, str]]:
        """Return the directories that could not be listed, by name, with the reason."""
        return self._catalog.unreadable()

    def is_linked(self, repository: str, digest: Digest) -> bool:
        """Whether a manifest is linked in a repository."""
        return self._tree.is_file(self._layout.revision_link(repository, digest))

    def revision_directories(self, repository: str) -> list[Path]:
        """See `storage.referrers.Revisions`."""
        return self._revision_directories(repository)

    def revision_entries(self, repository: str) -> Iterator[Digest]:
        """See `storage.referrers.Revisions`."""
        for directory in self._revision_directories(repository):
            yield from self._digests_in(directory)

    def _revision_directories(self, repository: str) -> list[Path]:
        return [self._layout.revisions(repository) / alg for alg in digests.HEX_LENGTHS]

    def _layer_directories(self, repository: str) -> list[Path]:
        return [self._layout.layers(repository) / alg for alg in digests.HEX_LENGTHS]

    def _digests_in(self, directory: Path) -> Iterator[Digest]:
        """Yield the digests that are the names in an algorithm's directory."""
        for encoded in self._tree.entries(directory):
            with contextlib.suppress(DigestInvalid):
                yield digests.parse(f"{directory.name}:{encoded}")

    def read_link(self, link: Path) -> Digest | None:
        """Return the digest in a link file; None if there is none that can be read."""
        try:
            text = self._tree.read(link, _LONGEST_LINK)
            return digests.parse(text.decode("ascii").strip())
        except (
            FileNotFoundError,
            NotADirectoryError,
            IsADirectoryError,
            PathRefused,
            DigestInvalid,
            UnicodeDecodeError,
        ):
            # registry:2 does not sync links: power loss may leave an empty one.
            return None
