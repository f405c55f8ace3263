"""A registry under test, asked by its store's methods; `tests.faults.asking` does it over HTTP.

Changes answer an OCI error code, "" for success, as those of `tests.faults.model` do.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mayfly.registry.api.errors import TABLE
from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import StorageError
from mayfly.storage.manifest import parse
from mayfly.storage.overlay import OverlayStore
from mayfly.storage.reading import repositories
from tests.faults.model import OK
from tests.support.images import push, read

OpenStore = Callable[[], DistributionStore | OverlayStore]
T = TypeVar("T")


def _code(call: Callable[[], object]) -> str:
    try:
        call()
    except StorageError as error:
        return TABLE[type(error)][1]
    return OK


class ByMethods:
    """The store itself."""

    def __init__(self, root: Path, open_store: OpenStore) -> None:
        self.root = root
        self._open_store = open_store
        self.store = open_store()

    def restart(self) -> None:
        """Close the store and open it again."""
        self.store.close()
        self.store = self._open_store()

    def close(self) -> None:
        """Close it for good, and remove it."""
        self.store.close()
        shutil.rmtree(self.root)

    def time_passes(self, seconds: float) -> None:
        """Make everything that was written look so much older."""
        then = time.time() - seconds
        for path in self.root.rglob("data"):
            os.utime(path, (then, then))

    def on_disk(self) -> set[Digest]:
        """What lies in the writable store."""
        return {digest for digest, _ in self.store.upper.stored_blobs()}

    def left_over(self) -> list[Path]:
        """What is under way, or was left behind, in the scratch directory."""
        return list(self.root.rglob("_mayfly/scratch/*/*"))

    def sessions(self) -> set[str]:
        """The upload sessions on disk."""
        return {path.name for path in self.root.rglob("_uploads/*")}

    # Changes

    def push(self, repository: str, data: bytes, way: int) -> str:
        return _code(lambda: push(self.store, repository, data))

    def mount(self, repository: str, digest: Digest, source: str) -> str:
        return _code(lambda: self.store.mount(repository, digest, source))

    def touch(self, repository: str, digest: Digest) -> str:
        return _code(lambda: self.store.touch(repository, digest))

    def put(self, repository: str, body: bytes, tags: tuple[str, ...]) -> str:
        manifest = parse(body)
        return _code(lambda: self.store.put_manifest(repository, manifest, digests.of(body), tags))

    def delete_blob(self, repository: str, digest: Digest) -> str:
        return _code(lambda: self.store.delete_blob(repository, digest))

    def delete_manifest(self, repository: str, digest: Digest) -> str:
        return _code(lambda: self.store.delete_manifest(repository, digest))

    def delete_tag(self, repository: str, tag: str) -> str:
        return _code(lambda: self.store.delete_tag(repository, tag))

    def begin(self, repository: str) -> str:
        return self.store.begin_upload(repository, "sha256").id

    def write(self, repository: str, session: str, at: int, data: bytes) -> str:
        return _code(lambda: self.store.upload(repository, session).write([data], at))

    def commit(self, repository: str, session: str, digest: Digest) -> str:
        return _code(lambda: self.store.upload(repository, session).commit(digest))

    def cancel(self, repository: str, session: str) -> str:
        return _code(lambda: self.store.upload(repository, session).cancel())

    # Answers; None for what is unknown

    def blob(self, repository: str, digest: Digest) -> bytes | None:
        return _read(lambda: read(self.store.blob(repository, digest)))

    def manifest(self, repository: str, digest: Digest) -> bytes | None:
        return _read(lambda: read(self.store.manifest(repository, digest)))

    def tag(self, repository: str, tag: str) -> Digest | None:
        return _read(lambda: self.store.tag(repository, tag))

    def offset(self, repository: str, session: str) -> int | None:
        return _read(lambda: self.store.upload(repository, session).offset)

    def tags(self, repository: str) -> list[str] | None:
        return _read(lambda: self.store.tags(repository))

    def repositories(self) -> list[str]:
        return list(repositories(self.store))

    def referrers(self, repository: str, subject: Digest) -> list[str]:
        return [str(d["digest"]) for d in self.store.referrers(repository, subject)]


def _read(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except StorageError:
        return None
