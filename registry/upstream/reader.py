"""A registry read as a store is: the same commands look at both.

Manifests are kept in a temporary file; a blob is fetched into one of its own, and compared with its
digest, when it is opened. Nothing is kept in memory but names, digests and sizes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from mayfly.registry.upstream.blocking import BlockingRegistry
from mayfly.registry.upstream.errors import ContentWrong, NotThere, UpstreamError
from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import (
    ContentCorrupt,
    ManifestInvalid,
    ManifestUnknown,
    blob_unknown,
    manifest_unknown,
    repository_unknown,
)
from mayfly.storage.images import image
from mayfly.storage.interface import Extent
from mayfly.storage.reading import load
from mayfly.storage.reference import page_of
from mayfly.storage.transfer.attached import attached_images, flat_tag


class RegistryReader:
    """See `storage.interface.Reader`; a context manager, to be used from one thread.

    Args:
        url: of the registry.

    Raises:
        UpstreamError: from any method; the registry cannot be asked, or does not allow it.
    """

    def __init__(self, url: str) -> None:
        self._blocking = BlockingRegistry(url)
        self._stack = contextlib.ExitStack()
        self._names: list[str] | None = None
        self._tags: dict[str, list[str]] = {}
        self._targets: dict[tuple[str, str], Digest | None] = {}
        self._manifests: dict[tuple[str, Digest], tuple[int, int] | None] = {}
        self._sizes: dict[tuple[str, Digest], int | None] = {}

    def __enter__(self) -> Self:
        self._stack.enter_context(self._blocking)
        self._file = self._stack.enter_context(tempfile.TemporaryFile(buffering=0))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def has_repository(self, repository: str) -> bool:
        return repository in self.repositories("", sys.maxsize, repository)

    def repositories(self, after: str, limit: int, prefix: str = "") -> list[str]:
        if self._names is None:
            self._names = sorted(self._blocking.run(self._blocking.registry.repositories()))
        return page_of(self._names, after, limit, prefix)

    def tags(self, repository: str) -> list[str]:
        if repository not in self._tags:
            try:
                found = self._blocking.run(self._blocking.registry.tags(repository))
            except NotThere:
                raise repository_unknown(repository) from None
            self._tags[repository] = sorted(found)
        return self._tags[repository]

    def tag(self, repository: str, tag: str) -> Digest:
        key = repository, tag
        if key not in self._targets:
            self._targets[key] = self._fetch_manifest(repository, tag)
        target = self._targets[key]
        if target is None:
            raise manifest_unknown(tag)
        return target

    def manifest(self, repository: str, digest: Digest) -> Extent:
        key = repository, digest
        if key not in self._manifests:
            try:
                if self._fetch_manifest(repository, str(digest)) is None:
                    self._manifests[key] = None
            except ContentWrong as error:
                raise ContentCorrupt(str(error), {"digest": str(digest)}) from None
        place = self._manifests[key]
        if place is None:
            raise manifest_unknown(digest)
        descriptor = self._file.fileno()
        return Extent(Path(f"/proc/self/fd/{descriptor}"), *place, opener=_Copy(descriptor))

    def blob(self, repository: str, digest: Digest) -> Extent:
        key = repository, digest
        if key not in self._sizes:
            try:
                size = self._blocking.run(self._blocking.registry.blob_size(repository, digest))
            except NotThere:
                size = None
            self._sizes[key] = size
        known = self._sizes[key]
        if known is None:
            raise blob_unknown(digest)
        opener = _Fetched(self._blocking, repository, digest, known)
        return Extent(Path(str(digest)), 0, known, opener=opener)

    def repositories_with(self, digest: Digest) -> Iterator[str]:
        """Not known without asking each repository."""
        return iter(())

    def referrers(
        self, repository: str, subject: Digest, after: str = ""
    ) -> Iterator[dict[str, object]]:
        listed = self._blocking.run(self._blocking.registry.referrers(repository, subject))
        if listed is None:
            listed = self._fallback(repository, subject)
        for digest in sorted(listed):
            if str(digest) > after:
                yield {"digest": str(digest)}

    def revisions(self, repository: str) -> Iterator[Digest]:
        """Every manifest that a tag leads to, and its artifacts."""
        seen: set[Digest] = set()
        for tag in self.tags(repository):
            with contextlib.suppress(ManifestUnknown):
                top = image(self, repository, self.tag(repository, tag), f"{repository}:{tag}")
                for one in (top, *(found for _, found in attached_images(self, repository, top))):
                    seen.update(one.manifests)
        return iter(sorted(seen))

    def _fallback(self, repository: str, subject: Digest) -> list[Digest]:
        """Return the index under the fallback tag (OCI distribution-spec, "Referrers Tag")."""
        try:
            index = load(self, repository, self.tag(repository, flat_tag(subject)))
        except (ManifestUnknown, ManifestInvalid):
            return []
        return [one.digest for one in index.manifests]

    def _fetch_manifest(self, repository: str, reference: str) -> Digest | None:
        found = self._blocking.run(self._blocking.registry.find_manifest(repository, reference))
        if found is None:
            return None
        key = repository, found.digest
        if self._manifests.get(key) is None:
            at = self._file.seek(0, os.SEEK_END)
            self._file.write(found.body)
            self._manifests[key] = at, len(found.body)
        return found.digest


class _Copy:
    """See `storage.directory_tree.Opener`: one more descriptor of an open file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def open(self, path: Path) -> int:
        return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)


class _Fetched:
    """See `storage.directory_tree.Opener`: opening a blob fetches it into a temporary file."""

    def __init__(
        self, blocking: BlockingRegistry, repository: str, digest: Digest, size: int
    ) -> None:
        self._blocking = blocking
        self._repository = repository
        self._digest = digest
        self._size = size

    def open(self, path: Path) -> int:
        with tempfile.TemporaryFile(buffering=0) as file:
            hasher = digests.hasher(self._digest.algorithm)

            async def fetch() -> None:
                pieces = self._blocking.registry.blob(self._repository, self._digest, self._size)
                async with contextlib.aclosing(pieces) as stream:
                    async for piece in stream:
                        hasher.update(piece)
                        file.write(piece)

            try:
                self._blocking.run(fetch())
            except ContentWrong as error:
                raise ContentCorrupt(str(error), {"digest": str(self._digest)}) from None
            except UpstreamError as error:
                raise OSError(errno.EIO, str(error)) from None
            if hasher.hexdigest() != self._digest.hex:
                raise ContentCorrupt(
                    f"blob {self._digest} arrived with other content than its digest says",
                    {"digest": str(self._digest)},
                )
            return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
