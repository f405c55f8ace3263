"""The directory format of CNCF distribution (``registry:2``), read.

A blob is in a repository when a link file says so and its data file exists; both are looked at on
every read, so that a delete takes effect at once and so that what registry:2 or its garbage
collector changed meanwhile is seen. Nothing is written here; `storage.distribution` does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from storage import digest as digests
from storage.catalog import Catalog, is_repository
from storage.digest import Digest
from storage.errors import BlobUnknown, DigestInvalid, ManifestUnknown, NameUnknown
from storage.interface import Extent
from storage.layout import Layout
from storage.manifest import MAX_SIZE
from storage.names import check_repository, is_tag
from storage.referrers import Referrers

_PAGE = 1000
_LONGEST_LINK = 256


class DirectoryReader:
    """See `storage.interface.Reader`; ``root`` is the directory that registry:2 is given."""

    def __init__(self, root: Path) -> None:
        self._layout = Layout(root)
        self._referrers = Referrers(self)
        self._catalog = Catalog(self._layout.repositories)

    def blob(self, repository: str, digest: Digest) -> Extent:
        if self._layout.layer_link(repository, digest).exists():
            data = self._layout.data(digest)
            try:
                return Extent(data, 0, data.stat().st_size)
            except FileNotFoundError:
                pass
        raise BlobUnknown("blob unknown to repository", {"digest": str(digest)})

    def manifest(self, repository: str, digest: Digest) -> Extent:
        if self.is_linked(repository, digest):
            data = self._layout.data(digest)
            try:
                return Extent(data, 0, data.stat().st_size)
            except FileNotFoundError:
                pass
        raise manifest_unknown(str(digest))

    def tag(self, repository: str, tag: str) -> Digest:
        digest = self.read_link(self._layout.tag_link(repository, tag))
        if digest is None:
            raise manifest_unknown(tag)
        return digest

    def tags(self, repository: str) -> list[str]:
        if not is_repository(self._layout.repository(repository)):
            raise NameUnknown("repository name not known to registry", {"name": repository})
        tags = [name for name in _entries(self._layout.tags(repository)) if is_tag(name)]
        return sorted(t for t in tags if self._layout.tag_link(repository, t).exists())

    def repositories(self, after: str, limit: int) -> list[str]:
        return self._catalog.names_after(after, limit)

    def holders(self, digest: Digest) -> Iterator[str]:
        if not self._layout.data(digest).exists():
            return
        for name in self.every_repository():
            if self._layout.layer_link(name, digest).exists():
                yield name

    def referrers(self, repository: str, subject: Digest) -> list[dict[str, object]]:
        return self._referrers.of(check_repository(repository), subject)

    def every_repository(self) -> Iterator[str]:
        """All repository names in lexical order."""
        after = ""
        while page := self.repositories(after, _PAGE):
            yield from page
            after = page[-1]

    def stored_blobs(self) -> Iterator[tuple[Digest, Path]]:
        """Every blob's digest and file, whether or not a repository links it."""
        for algorithm in digests.HEX_LENGTHS:
            for fan in _entries(self._layout.blobs / algorithm):
                for encoded in _entries(self._layout.blobs / algorithm / fan):
                    with contextlib.suppress(DigestInvalid):
                        digest = digests.parse(f"{algorithm}:{encoded}")
                        data = self._layout.data(digest)
                        if data.exists():
                            yield digest, data

    def revisions(self, repository: str) -> Iterator[Digest]:
        """All manifests linked in a repository, tagged or not."""
        for digest in self.revision_entries(repository):
            if self.is_linked(repository, digest):
                yield digest

    def is_linked(self, repository: str, digest: Digest) -> bool:
        """Whether a manifest is linked in a repository."""
        return self._layout.revision_link(repository, digest).exists()

    def revision_directories(self, repository: str) -> list[Path]:
        """See `storage.referrers.Revisions`."""
        return [self._layout.revisions(repository) / alg for alg in digests.HEX_LENGTHS]

    def revision_entries(self, repository: str) -> Iterator[Digest]:
        """See `storage.referrers.Revisions`."""
        for directory in self.revision_directories(repository):
            for encoded in _entries(directory):
                with contextlib.suppress(DigestInvalid):
                    yield digests.parse(f"{directory.name}:{encoded}")

    def read_manifest(self, repository: str, digest: Digest) -> bytes:
        """A manifest's bytes as they are stored.

        Raises:
            ManifestUnknown: it is not in this repository.
        """
        extent = self.manifest(repository, digest)
        try:
            with extent.path.open("rb") as file:
                file.seek(extent.offset)
                return file.read(min(extent.size, MAX_SIZE))
        except FileNotFoundError:
            raise manifest_unknown(str(digest)) from None

    @staticmethod
    def read_link(link: Path) -> Digest | None:
        """The digest a link file holds; None where there is none that can be read."""
        try:
            descriptor = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
            try:
                text = os.read(descriptor, _LONGEST_LINK)
            finally:
                os.close(descriptor)
            return digests.parse(text.decode("ascii").strip())
        except (FileNotFoundError, NotADirectoryError, DigestInvalid, UnicodeDecodeError):
            # registry:2 does not sync links: power loss may leave an empty one.
            return None


def manifest_unknown(reference: str) -> ManifestUnknown:
    """The error for a tag or digest that is not in a repository."""
    return ManifestUnknown("manifest unknown", {"reference": reference})


def _entries(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
