"""A registry for commands that run on no event loop: each call blocks until it is answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from mayfly.registry.upstream.client import Registry
from mayfly.registry.upstream.errors import ContentWrong, NotThere
from mayfly.registry.upstream.registries import Reach, Registries
from mayfly.storage.digest import Digest
from mayfly.storage.directory.uploads import DirectoryUpload

T = TypeVar("T")

_ATTEMPTS = 2
"""Few: such a command may ask for thousands of blobs, and has other sources."""


class BlockingRegistry:
    """See `registry.cli.bundle_or_url.Source`; a context manager, to be used from one thread.

    Args:
        url: ``http(s)://[USER:PASSWORD@]HOST[:PORT]``.

    Raises:
        ConfigError: the URL names no registry.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._runner = asyncio.Runner()
        self._registries = Registries(Reach())
        self._registry: Registry

    def __enter__(self) -> Self:
        self.run(self._registries.__aenter__())
        try:
            self._registry = self._registries.at_url(self._url, _ATTEMPTS)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.run(self._registries.__aexit__(*error))
        self._runner.close()

    @property
    def registry(self) -> Registry:
        """The registry itself, for `run`."""
        return self._registry

    def run(self, awaited: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end on this registry's event loop."""
        return self._runner.run(awaited)

    def has(self, repository: str, digest: Digest) -> bool:
        """Whether the registry has a blob in a repository.

        Raises:
            UpstreamError: it cannot be asked, or does not allow it.
        """
        return self.run(self._registry.has_blob(repository, digest))

    def fetch(
        self, repository: str, digest: Digest, upload: DirectoryUpload, size: int | None = None
    ) -> bool:
        """Put a blob or a manifest into an upload; False if the registry does not have it.

        Args:
            repository: to fetch it from.
            digest: of the content; of a blob, the upload compares it.
            upload: takes the bytes.
            size: in bytes, where it is known: an answer of another length is refused. Where it is
                not, the length that the registry tells counts.

        Raises:
            UpstreamError: it cannot be asked, does not allow it, or the transfer broke.
        """
        return self.run(self._fetch(repository, digest, upload, size))

    def holds(self, repository: str, digest: Digest) -> bool:
        """Always: of another repository nothing is asked for."""
        return True

    def resolve(self, repository: str, tag: str) -> Digest | None:
        """The manifest that a tag of the registry points at; None where it has no such tag.

        Raises:
            UpstreamError: it cannot be asked, or does not allow it.
        """
        return self.run(self._registry.resolve(repository, tag))

    async def _fetch(
        self, repository: str, digest: Digest, upload: DirectoryUpload, size: int | None
    ) -> bool:
        try:
            announced = await self._registry.blob_size(repository, digest)
        except NotThere:
            return await self._fetch_manifest(repository, digest, upload)
        size = announced if size is None else size
        if size is None:
            raise ContentWrong(f"{self._registry.host}: {digest} has no length: it is not taken")
        at = 0
        pieces = self._registry.blob(repository, digest, size)
        async with contextlib.aclosing(pieces) as stream:
            async for piece in stream:
                upload.write([piece], at)
                at += len(piece)
        return True

    async def _fetch_manifest(
        self, repository: str, digest: Digest, upload: DirectoryUpload
    ) -> bool:
        found = await self._registry.find_manifest(repository, str(digest))
        if found is None:
            return False
        upload.write([found.body], 0)
        return True
