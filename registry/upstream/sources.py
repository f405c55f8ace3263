"""Where the images of a new bundle come from: registries, and bundles or stores on this host.

Both answer the same questions (`Source`). Everything here runs on one event loop; local files are
read in worker threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Protocol

from mayfly.registry.upstream.client import Fetched, Registry
from mayfly.registry.upstream.endpoint import Endpoint
from mayfly.registry.upstream.errors import NotThere, UpstreamError
from mayfly.storage import digest as digests
from mayfly.storage.bundle.names import BundleNames
from mayfly.storage.digest import Digest
from mayfly.storage.errors import ManifestUnknown, StorageError
from mayfly.storage.interface import Content, Reader
from mayfly.storage.manifest import parse_stored
from mayfly.storage.text import counted

_PIECE = 1024 * 1024


class Source(Endpoint, Protocol):
    """A registry, bundle or store that images can be fetched from."""

    async def manifest(self, host: str, repository: str, reference: str) -> Fetched | None:
        """A manifest by tag or digest; None where the source does not have it.

        Raises:
            UpstreamError: the source cannot be asked.
        """

    async def tags(self, host: str, repository: str) -> list[str]:
        """The tags of a repository; none for an unknown one."""

    async def referrers(self, host: str, repository: str, digest: Digest) -> list[Digest] | None:
        """Return the referrers of a manifest; None where the source cannot tell."""

    async def has_blob(self, host: str, repository: str, digest: Digest) -> bool:
        """Whether the source has a blob in a repository."""

    def blob(
        self, host: str, repository: str, digest: Digest, size: int, start: int
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``start`` on.

        Raises:
            NotThere: the source does not have it.
            UpstreamError: it did not arrive.
        """


class RegistrySource:
    """A registry, asked for images whose names have its host."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.label = registry.host
        self.url = registry.url

    async def manifest(self, host: str, repository: str, reference: str) -> Fetched | None:
        return await self._registry.find_manifest(repository, reference)

    async def tags(self, host: str, repository: str) -> list[str]:
        try:
            return await self._registry.tags(repository)
        except NotThere:
            return []

    async def referrers(self, host: str, repository: str, digest: Digest) -> list[Digest] | None:
        return await self._registry.referrers(repository, digest)

    async def has_blob(self, host: str, repository: str, digest: Digest) -> bool:
        return await self._registry.has_blob(repository, digest)

    def blob(
        self, host: str, repository: str, digest: Digest, size: int, start: int
    ) -> AsyncGenerator[bytes, None]:
        return self._registry.blob(repository, digest, size, start)


class LocalSource:
    """A store or a bundle on this host.

    Args:
        reader: its content.
        names: which repository a full name means; None where names are kept without a host.
        label: its name in messages.
    """

    def __init__(self, reader: Reader, names: BundleNames | None, label: str) -> None:
        self._reader = reader
        self._names = names
        self.label = label
        self.url = None

    async def manifest(self, host: str, repository: str, reference: str) -> Fetched | None:
        return await asyncio.to_thread(self._manifest, host, repository, reference)

    async def tags(self, host: str, repository: str) -> list[str]:
        try:
            return await asyncio.to_thread(self._reader.tags, self._name(host, repository))
        except StorageError:
            return []

    async def referrers(self, host: str, repository: str, digest: Digest) -> list[Digest] | None:
        name = self._name(host, repository)
        found = await asyncio.to_thread(self._reader.referrers, name, digest)
        return [digests.parse(str(one["digest"])) for one in found]

    async def has_blob(self, host: str, repository: str, digest: Digest) -> bool:
        try:
            await asyncio.to_thread(self._reader.blob, self._name(host, repository), digest)
        except StorageError:
            return False
        return True

    async def blob(
        self, host: str, repository: str, digest: Digest, size: int, start: int
    ) -> AsyncGenerator[bytes, None]:
        try:
            content = await asyncio.to_thread(
                self._reader.blob, self._name(host, repository), digest
            )
        except StorageError:
            raise NotThere(f"{self.label}: {repository}@{digest} is not there") from None
        if content.size != size:
            found = counted(content.size, "byte")
            raise UpstreamError(f"{self.label}: {repository}@{digest} has {found}, expected {size}")
        at = start
        try:
            while at < size:
                piece = await asyncio.to_thread(_read, content, at)
                if not piece:
                    raise UpstreamError(f"{self.label}: {digest} is cut short at byte {at}")
                yield piece
                at += len(piece)
        except (OSError, StorageError) as error:
            raise UpstreamError(f"{self.label}: {digest}: {error}") from None

    def _name(self, host: str, repository: str) -> str:
        return self._names.resolve(repository, host) if self._names else repository

    def _manifest(self, host: str, repository: str, reference: str) -> Fetched | None:
        try:
            name = self._name(host, repository)
            if ":" in reference:
                digest = digests.parse(reference)
            else:
                digest = self._reader.tag(name, reference)
            body = _read(self._reader.manifest(name, digest), 0)
            return Fetched(body, parse_stored(body).media_type, digest)
        except ManifestUnknown:
            return None
        except StorageError as error:
            raise UpstreamError(f"{self.label}: {repository}: {error.message}") from None


def _read(content: Content, at: int) -> bytes:
    with content.open() as opened:
        return opened.read(at, min(_PIECE * 4, content.size - at))
