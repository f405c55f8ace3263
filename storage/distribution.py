"""The writable store: a directory in the format of CNCF distribution (``registry:2``).

A blob is in a repository when a link file says so and its data file exists; both are looked at on
every read, so that a delete takes effect at once and so that what registry:2 or its garbage
collector changed meanwhile is seen. What is written is verified and published durably before a
call returns (`storage.publish`).

One lock per repository (striped) orders changes of its manifests and tags against each other. It
guards a few small files; none is held while a body is awaited or a blob is synced.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from storage import digest as digests
from storage.catalog import names_after
from storage.digest import Digest
from storage.errors import (
    BlobUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestUnknown,
    NameUnknown,
    SizeInvalid,
    StorageError,
)
from storage.interface import Extent
from storage.layout import Layout
from storage.manifest import MAX_SIZE, Manifest
from storage.names import check_repository
from storage.publish import Publisher
from storage.referrers import Referrers
from storage.uploads import DirectoryUpload, Uploads

_LOCK_STRIPES = 64


class DistributionStore:
    """See `storage.interface.Store`; ``root`` is the directory that registry:2 is given too.

    Args:
        root: made when missing.
        allow_sparse: take manifests that name content the repository does not hold.
    """

    def __init__(self, root: Path, *, allow_sparse: bool = False) -> None:
        self._layout = Layout(root)
        self._publisher = Publisher(self._layout.base, self._layout.scratch)
        self._publisher.open()
        self._allow_sparse = allow_sparse
        self._uploads = Uploads(self._layout, self._publisher, self._publish_blob)
        self._referrers = Referrers(self._revisions, self._revision_directories, self._read)
        self._locks = [threading.Lock() for _ in range(_LOCK_STRIPES)]

    def close(self) -> None:
        """Drop the scratch files; upload sessions stay on disk for the next start."""
        self._publisher.close()

    # Reading

    def blob(self, repository: str, digest: Digest) -> Extent:
        if self._layout.layer_link(repository, digest).exists():
            data = self._layout.data(digest)
            try:
                return Extent(data, 0, data.stat().st_size)
            except FileNotFoundError:
                pass
        raise BlobUnknown("blob unknown to repository", {"digest": str(digest)})

    def manifest(self, repository: str, digest: Digest) -> Extent:
        if self._layout.revision_link(repository, digest).exists():
            data = self._layout.data(digest)
            try:
                return Extent(data, 0, data.stat().st_size)
            except FileNotFoundError:
                pass
        raise _manifest_unknown(str(digest))

    def tag(self, repository: str, tag: str) -> Digest:
        digest = self._read_link(self._layout.tag_link(repository, tag))
        if digest is None:
            raise _manifest_unknown(tag)
        return digest

    def tags(self, repository: str) -> list[str]:
        if not self._layout.repository(repository).is_dir():
            raise NameUnknown("repository name not known to registry", {"name": repository})
        try:
            names = os.listdir(self._layout.tags(repository))
        except FileNotFoundError:
            return []
        return sorted(n for n in names if self._layout.tag_link(repository, n).exists())

    def repositories(self, after: str, limit: int) -> list[str]:
        return names_after(self._layout.repositories, after, limit)

    def holders(self, digest: Digest) -> Iterator[str]:
        if not self._layout.data(digest).exists():
            return
        after = ""
        while page := self.repositories(after, 1000):
            for name in page:
                if self._layout.layer_link(name, digest).exists():
                    yield name
            after = page[-1]

    def referrers(self, repository: str, subject: Digest) -> list[dict[str, object]]:
        return self._referrers.of(check_repository(repository), subject)

    # Blobs

    def begin_upload(self, repository: str, algorithm: str) -> DirectoryUpload:
        return self._uploads.begin(repository, algorithm)

    def upload(self, repository: str, upload_id: str) -> DirectoryUpload:
        return self._uploads.find(repository, upload_id)

    def purge_uploads(self, max_age: float) -> int:
        """End the upload sessions idle for ``max_age`` seconds; how many there were."""
        return self._uploads.purge(max_age)

    def mount(self, repository: str, digest: Digest, source: str) -> None:
        self.blob(source, digest)
        self._link(self._layout.layer_link(repository, digest), digest)

    def delete_blob(self, repository: str, digest: Digest) -> None:
        if not self._publisher.remove(self._layout.layer_link(repository, digest)):
            raise BlobUnknown("blob unknown to repository", {"digest": str(digest)})

    def _publish_blob(self, repository: str, digest: Digest, data: Path) -> None:
        # Also over an equal blob that is there: its age starts anew, and a copy that something
        # outside damaged is mended.
        self._publisher.adopt(data, self._layout.data(digest))
        self._link(self._layout.layer_link(repository, digest), digest)

    # Manifests

    def put_manifest(
        self, repository: str, manifest: Manifest, digest: Digest, tags: tuple[str, ...]
    ) -> None:
        actual = digests.of(manifest.body, digest.algorithm)
        if actual != digest:
            raise DigestInvalid(
                f"manifest does not match digest {digest}: received {actual}",
                {"expected": str(digest), "actual": str(actual)},
            )
        with self._lock(repository):
            self._check_references(repository, manifest)
            self._publisher.write(self._layout.data(digest), manifest.body)
            self._link(self._layout.revision_link(repository, digest), digest)
            for tag in tags:
                self._link(self._layout.tag_history_link(repository, tag, digest), digest)
                # Last: a tag never points at what is not there.
                self._link(self._layout.tag_link(repository, tag), digest)

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        with self._lock(repository):
            link = self._layout.revision_link(repository, digest)
            if not link.exists():
                raise _manifest_unknown(str(digest))
            for tag in self.tags(repository):
                if self._read_link(self._layout.tag_link(repository, tag)) == digest:
                    self._publisher.remove_tree(self._layout.tag(repository, tag))
            self._publisher.remove(link)

    def delete_tag(self, repository: str, tag: str) -> None:
        with self._lock(repository):
            self.tag(repository, tag)
            self._publisher.remove_tree(self._layout.tag(repository, tag))

    def _check_references(self, repository: str, manifest: Manifest) -> None:
        missing: list[dict[str, str]] = []
        wanted = [(self.blob, d) for d in manifest.blobs]
        wanted += [(self.manifest, d) for d in manifest.manifests]
        for locate, descriptor in wanted:
            try:
                extent = locate(repository, descriptor.digest)
            except StorageError:
                if descriptor.distributable and not self._allow_sparse:
                    missing.append({"digest": str(descriptor.digest)})
                continue
            if extent.size != descriptor.size:
                raise SizeInvalid(
                    f"manifest gives {descriptor.digest} {descriptor.size} bytes, "
                    f"the repository holds {extent.size}",
                    {"digest": str(descriptor.digest), "size": extent.size},
                )
        if missing:
            raise ManifestBlobUnknown(
                "manifest references content unknown to the repository", missing
            )

    # Links

    def _link(self, link: Path, digest: Digest) -> None:
        if self._read_link(link) != digest:
            self._publisher.write(link, str(digest).encode())

    @staticmethod
    def _read_link(link: Path) -> Digest | None:
        try:
            return digests.parse(link.read_text("ascii").strip())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _lock(self, repository: str) -> threading.Lock:
        return self._locks[hash(repository) % _LOCK_STRIPES]

    def _revision_directories(self, repository: str) -> list[Path]:
        return [self._layout.revisions(repository) / alg for alg in digests.HEX_LENGTHS]

    def _revisions(self, repository: str) -> Iterator[Digest]:
        for directory in self._revision_directories(repository):
            try:
                entries = os.listdir(directory)
            except FileNotFoundError:
                continue
            for encoded in entries:
                try:
                    digest = digests.parse(f"{directory.name}:{encoded}")
                except DigestInvalid:
                    continue
                if self._layout.revision_link(repository, digest).exists():
                    yield digest

    def _read(self, repository: str, digest: Digest) -> bytes:
        extent = self.manifest(repository, digest)
        with extent.path.open("rb") as file:
            return file.read(MAX_SIZE)


def _manifest_unknown(reference: str) -> ManifestUnknown:
    return ManifestUnknown("manifest unknown", {"reference": reference})
