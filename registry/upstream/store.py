"""The store of a registry that mirrors others, as its clients see it.

clients ──► MirrorStore ──► blobs that are arriving from an upstream
└────────► the root over bundles
"""

from __future__ import annotations

from collections.abc import Iterator

from mayfly.registry.upstream.mirror import Mirror
from mayfly.storage.digest import Digest
from mayfly.storage.errors import BlobUnknown, ReadOnly
from mayfly.storage.interface import Content, Store, Upload
from mayfly.storage.manifest import Manifest


class MirrorStore:
    """See `storage.interface.Store`. Changes to names that are an upstream's alone are refused.

    Args:
        store: has all complete content.
        mirror: has the blobs that are arriving.
    """

    def __init__(self, store: Store, mirror: Mirror) -> None:
        self._store = store
        self._mirror = mirror

    # Reading

    def blob(self, repository: str, digest: Digest) -> Content:
        return self._mirror.arriving(repository, digest) or self._store.blob(repository, digest)

    def manifest(self, repository: str, digest: Digest) -> Content:
        return self._store.manifest(repository, digest)

    def tag(self, repository: str, tag: str) -> Digest:
        return self._store.tag(repository, tag)

    def tags(self, repository: str) -> list[str]:
        return self._store.tags(repository)

    def has_repository(self, repository: str) -> bool:
        return self._store.has_repository(repository)

    def repositories(self, after: str, limit: int, prefix: str = "") -> list[str]:
        return self._store.repositories(after, limit, prefix)

    def repositories_with(self, digest: Digest) -> Iterator[str]:
        return self._store.repositories_with(digest)

    def referrers(
        self, repository: str, subject: Digest, after: str = ""
    ) -> Iterator[dict[str, object]]:
        return self._store.referrers(repository, subject, after)

    # Writing

    def check_room(self, size: int) -> None:
        self._store.check_room(size)

    def begin_upload(self, repository: str, algorithm: str, *, resumable: bool = True) -> Upload:
        self._refuse(repository)
        return self._store.begin_upload(repository, algorithm, resumable=resumable)

    def upload(self, repository: str, upload_id: str) -> Upload:
        return self._store.upload(repository, upload_id)

    def touch(self, repository: str, digest: Digest) -> Content:
        arriving = self._mirror.arriving(repository, digest)
        # A push must not skip a blob that may still fail.
        if arriving is not None and self._mirror.is_exclusive(repository):
            return arriving
        try:
            return self._store.touch(repository, digest)
        except BlobUnknown:
            announced = self._mirror.announced(repository, digest)
            if announced is None:
                raise
            return announced

    def mount(self, repository: str, digest: Digest, source: str) -> None:
        self._refuse(repository)
        self._store.mount(repository, digest, source)

    def put_manifest(
        self, repository: str, manifest: Manifest, digest: Digest, tags: tuple[str, ...]
    ) -> None:
        self._refuse(repository)
        self._store.put_manifest(repository, manifest, digest, tags)

    def compare(self, repository: str, digest: Digest, body: bytes) -> None:
        self._store.compare(repository, digest, body)

    def examine(self, digest: Digest) -> bool:
        return self._store.examine(digest)

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        self._refuse(repository)
        self._store.delete_manifest(repository, digest)

    def delete_tag(self, repository: str, tag: str) -> None:
        self._refuse(repository)
        self._store.delete_tag(repository, tag)

    def delete_blob(self, repository: str, digest: Digest) -> None:
        self._refuse(repository)
        self._store.delete_blob(repository, digest)

    def _refuse(self, repository: str) -> None:
        if self._mirror.is_exclusive(repository):
            raise ReadOnly(
                f"{repository} is a mirror of another registry: push under a name of your own"
            )
