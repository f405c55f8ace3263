"""A read-only view of any store."""

from __future__ import annotations

from collections.abc import Iterator

from mayfly.storage.digest import Digest
from mayfly.storage.errors import ReadOnly
from mayfly.storage.interface import Content, Reader, Upload
from mayfly.storage.manifest import Manifest


class ReadOnlyStore:
    """See `storage.interface.Store`; reads go to ``reader``."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def blob(self, repository: str, digest: Digest) -> Content:
        return self._reader.blob(repository, digest)

    def manifest(self, repository: str, digest: Digest) -> Content:
        return self._reader.manifest(repository, digest)

    def tag(self, repository: str, tag: str) -> Digest:
        return self._reader.tag(repository, tag)

    def tags(self, repository: str) -> list[str]:
        return self._reader.tags(repository)

    def has_repository(self, repository: str) -> bool:
        return self._reader.has_repository(repository)

    def repositories(self, after: str, limit: int, prefix: str = "") -> list[str]:
        return self._reader.repositories(after, limit, prefix)

    def repositories_with(self, digest: Digest) -> Iterator[str]:
        return self._reader.repositories_with(digest)

    def referrers(
        self, repository: str, subject: Digest, after: str = ""
    ) -> Iterator[dict[str, object]]:
        return self._reader.referrers(repository, subject, after)

    def check_room(self, size: int) -> None:
        raise _refused()

    def begin_upload(self, repository: str, algorithm: str, *, resumable: bool = True) -> Upload:
        raise _refused()

    def upload(self, repository: str, upload_id: str) -> Upload:
        raise _refused()

    def touch(self, repository: str, digest: Digest) -> Content:
        return self._reader.blob(repository, digest)

    def mount(self, repository: str, digest: Digest, source: str) -> None:
        raise _refused()

    def put_manifest(
        self, repository: str, manifest: Manifest, digest: Digest, tags: tuple[str, ...]
    ) -> None:
        raise _refused()

    def compare(self, repository: str, digest: Digest, body: bytes) -> None:
        """Do nothing: a read-only store records nothing."""

    def examine(self, digest: Digest) -> bool:
        return False

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        raise _refused()

    def delete_tag(self, repository: str, tag: str) -> None:
        raise _refused()

    def delete_blob(self, repository: str, digest: Digest) -> None:
        raise _refused()


def _refused() -> ReadOnly:
    return ReadOnly("this registry is read-only")
