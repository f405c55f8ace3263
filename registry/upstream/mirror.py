"""Pull-through: content that the store lacks is fetched from the upstream of its name and kept.

    request ──guard──► bring_manifest, bring_blob … ──► the store answers as ever
                            │ here, and a tag compared within the TTL: at once
                            │ else one lookup for all clients ──► stored, marked as cached
                            └ a blob: its download begins, and is sent while it arrives

The guard has admitted the request before anything here runs. Names are mapped by `names`; content
is stored by the root's upper store, whose marks tell it from pushed content
(`storage.directory.cached`).

Clients cannot make this ask an upstream without bound: lookups are shared and few run at a time
(`lookups`), and so are downloads. Each upstream has its own turns, which its clients take one after
the other; no client has all of them. Lookups and downloads continue without the clients that asked
for them, until the server has drained.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from functools import partial
from typing import Self

from mayfly.registry import log
from mayfly.registry.errors import UpstreamUnavailable
from mayfly.registry.threads import Client, Turns, in_thread
from mayfly.registry.upstream import lookups
from mayfly.registry.upstream.client import Fetched
from mayfly.registry.upstream.download import Announced, Download
from mayfly.registry.upstream.errors import (
    ContentWrong,
    FetchError,
    NotThere,
    UpstreamError,
)
from mayfly.registry.upstream.health import UpstreamHost, UpstreamRecord
from mayfly.registry.upstream.lookups import LookupKey, Lookups, Requests
from mayfly.registry.upstream.names import Origin, UpstreamNames
from mayfly.registry.upstream.tasks import ClientTasks
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import DigestInvalid, ManifestInvalid, StorageError, StorageFull
from mayfly.storage.interface import Content
from mayfly.storage.manifest import Manifest, parse_stored
from mayfly.storage.sized_cache import SizedCache
from mayfly.storage.transfer.attached import flat_tag
from mayfly.storage.upkeep.maintainable import Maintainable

logger = logging.getLogger("mayfly")

ATTEMPTS = 3
"""Requests for one thing before it counts as failed: a client is waiting."""

_DOWNLOADS = 32
"""Downloads from one upstream at a time."""

_DOWNLOADS_OF_ONE = 16
"""The most downloads of one client: each may take hours."""

CONNECTIONS = lookups.AT_A_TIME + _DOWNLOADS
"""To one host: downloads must not keep lookups waiting."""

_ANNOUNCED_BYTES, _ANNOUNCED_SECONDS = 256 * 1024, 60.0
"""Memory and time for the sizes that clients asked for by HEAD."""

_MAX_REFERRERS = 100
"""Referrers of one manifest that are fetched."""

MakeRoom = Callable[[int], Awaitable[None]]
"""Evicts content to make room for a number of bytes."""


class Mirror:
    """Fetches from upstreams into a store; an async context manager.

    Args:
        cache: stores fetched content, and is asked first.
        names: maps repositories to upstreams.
        hosts: the upstreams.
        ttl: seconds for which a tag is served without asking the upstream.
        make_room: see `MakeRoom`; None if nothing is ever evicted.
    """

    def __init__(
        self,
        cache: Maintainable,
        names: UpstreamNames,
        hosts: Iterable[UpstreamHost],
        ttl: float,
        make_room: MakeRoom | None = None,
    ) -> None:
        self._make_room = make_room
        self._cache = cache
        self._upper: DistributionStore = cache.upper
        self._names = names
        self._hosts = {host.name: host for host in hosts}
        self._ttl = ttl
        self._lookups = Lookups(self._hosts, ttl)
        self._announced: SizedCache[tuple[str, Digest], tuple[int, float]] = SizedCache(
            _ANNOUNCED_BYTES, lambda _: 300
        )
        self._referred: SizedCache[tuple[str, Digest], float] = SizedCache(
            _ANNOUNCED_BYTES, lambda _: 300
        )
        """Repository and subject → until when the upstream is not asked for referrers again."""
        self._parsing = asyncio.Semaphore(1)
        self._downloads: dict[tuple[str, Digest], Download] = {}
        """By host and digest."""
        self._arriving: dict[tuple[str, Digest], Download] = {}
        """The same by repository and digest."""
        self._turns = {name: Turns(_DOWNLOADS, _DOWNLOADS_OF_ONE) for name in self._hosts}
        self._tasks = ClientTasks(lookups.MAX_WAITING, lookups.MAX_WAITING_OF_ONE)
        """Wait for a turn, and then download."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lookups.close()
        await self._tasks.cancel()

    def records(self) -> list[UpstreamRecord]:
        """The use of each upstream so far."""
        return [host.record() for host in self._hosts.values()]

    def arriving(self, repository: str, digest: Digest) -> Content | None:
        """Quick, from any thread. A blob that is under way to a repository, or was announced."""
        download = self._arriving.get((repository, digest))
        return download.content if download is not None else None

    def announced(self, repository: str, digest: Digest) -> Content | None:
        """Quick, from any thread. A blob that the upstream announced a moment ago, for HEAD."""
        size, until = self._announced.get((repository, digest)) or (0, 0.0)
        return Announced(size) if time.monotonic() < until else None

    def is_exclusive(self, repository: str) -> bool:
        """Quick. Whether a repository has an upstream's content only."""
        origin = self._names.origin(repository)
        return origin is not None and origin.exclusive

    # Manifests

    async def bring_manifest(
        self, client: Client, repository: str, reference: Digest | str
    ) -> None:
        """Have the store know a manifest that the upstream has, by digest or tag.

        Args:
            client: that asks; clients share the upstream. Nothing is waited for once it is gone.
            repository: as `names` resolves it.
            reference: a digest or tag.

        Raises:
            ManifestUnknown: neither has it.
            UpstreamUnavailable: it cannot be had now.
            Interrupted: the server is stopping.
            ConnectionError: the client is gone.
        """
        origin = self._names.origin(repository)
        if origin is None:
            return
        host = self._hosts[origin.host]
        if isinstance(reference, Digest):
            await self._bring_digest(host, origin, repository, reference, client)
        else:
            await self._bring_tag(host, origin, repository, reference, client)

    async def _bring_digest(
        self, host: UpstreamHost, origin: Origin, repository: str, digest: Digest, client: Client
    ) -> None:
        if self._has_manifest(repository, digest):
            host.hits += 1
            self._upper.record_pull(repository, digest)
            return
        host.misses += 1
        fetch = partial(self._fetch_manifest, host, origin, repository, str(digest), None)
        key = LookupKey("manifest", repository, str(digest))
        await self._lookups.run(host, key, fetch, client)

    async def _bring_tag(
        self, host: UpstreamHost, origin: Origin, repository: str, tag: str, client: Client
    ) -> None:
        known = self._tagged(repository, tag)
        key = LookupKey("manifest", repository, tag)
        if known is None:
            host.misses += 1
            fetch = partial(self._fetch_manifest, host, origin, repository, tag, tag)
            await self._lookups.run(host, key, fetch, client)
            return
        checked = self._upper.cached.last_checked(repository, tag)
        if checked is None:
            return  # pushed here, or a bundle's
        self._upper.record_pull(repository, known)
        # The clock may have been set back since then.
        if 0 <= time.time() - checked < self._ttl:
            host.hits += 1
            return
        compare = partial(self._compare_tag, host, origin, repository, tag, known)
        try:
            await self._lookups.run(host, key, compare, client, has_stale=True)
        except UpstreamUnavailable:
            host.stale += 1
        else:
            host.hits += 1

    def _has_manifest(self, repository: str, digest: Digest) -> bool:
        with contextlib.suppress(StorageError):
            self._cache.manifest(repository, digest)
            return True
        return False

    def _tagged(self, repository: str, tag: str) -> Digest | None:
        """The manifest of a tag, if both are here."""
        with contextlib.suppress(StorageError):
            digest = self._cache.tag(repository, tag)
            self._cache.manifest(repository, digest)
            return digest
        return None

    async def _fetch_manifest(
        self,
        host: UpstreamHost,
        origin: Origin,
        repository: str,
        reference: str,
        tag: str | None,
        requests: Requests,
    ) -> None:
        asked = host.registry.manifest(origin.repository, reference)
        digest, manifest = await self._parsed(host, origin, await requests.answer(asked))
        await in_thread(self._upper.cache_manifest, repository, manifest, digest, tag)

    async def _parsed(
        self, host: UpstreamHost, origin: Origin, fetched: Fetched
    ) -> tuple[Digest, Manifest]:
        host.bytes += len(fetched.body)
        try:
            async with self._parsing:  # which takes ten times the manifest's memory
                return fetched.digest, await in_thread(parse_stored, fetched.body)
        except ManifestInvalid as error:
            where = f"{host.name}/{origin.repository}@{fetched.digest}"
            raise ContentWrong(f"{where}: not a manifest: {error.message}") from None

    async def _compare_tag(
        self,
        host: UpstreamHost,
        origin: Origin,
        repository: str,
        tag: str,
        known: Digest,
        requests: Requests,
    ) -> None:
        """Ask where a tag points now, and follow it."""
        now = await requests.answer(host.registry.tag_digest(origin.repository, tag))
        if now == known:
            self._upper.record_check(repository, tag)
            return
        if now is not None:
            # By digest: the tag may move again, or lead elsewhere on another of its servers.
            with contextlib.suppress(NotThere):
                await self._fetch_manifest(host, origin, repository, str(now), tag, requests)
                return
        await self._fetch_manifest(host, origin, repository, tag, tag, requests)

    async def bring_referrers(self, client: Client, repository: str, subject: Digest) -> None:
        """Have the store know the upstream's referrers of a manifest, as far as they can be had.

        Args:
            client: see `bring_manifest`.
            repository: as `names` resolves it.
            subject: the manifest.

        Raises:
            ConnectionError: the client is gone.
        """
        origin = self._names.origin(repository)
        if origin is None:
            return
        host = self._hosts[origin.host]
        if time.monotonic() < (self._referred.get((repository, subject)) or 0.0):
            host.hits += 1
            return
        fetch = partial(self._fetch_referrers, host, origin, repository, subject)
        key = LookupKey("referrers", repository, str(subject))
        # An error would tell clients less than the referrers that are here.
        with contextlib.suppress(UpstreamUnavailable, StorageError):
            host.misses += 1
            await self._lookups.run(host, key, fetch, client, has_stale=True)

    async def _fetch_referrers(
        self,
        host: UpstreamHost,
        origin: Origin,
        repository: str,
        subject: Digest,
        requests: Requests,
    ) -> None:
        listed = await requests.answer(host.registry.referrers(origin.repository, subject))
        if listed is None:
            listed = await self._fallback(host, origin, subject, requests)
        seconds = self._ttl
        for digest in listed[:_MAX_REFERRERS]:
            if self._has_manifest(repository, digest):
                continue
            # One that cannot be had must not hide the others.
            try:
                await self._fetch_manifest(host, origin, repository, str(digest), None, requests)
            except (UpstreamError, StorageError) as error:
                where = f"{host.name}/{origin.repository}@{digest}"
                reason = lookups.reason_of(error)
                logger.warning("referrer %s was not cached: %s", where, reason)
                is_certain = isinstance(error, NotThere | ContentWrong)
                seconds = seconds if is_certain else min(seconds, lookups.FAILED_SECONDS)
            if requests.are_over:
                break
        self._referred.put((repository, subject), time.monotonic() + seconds)

    async def _fallback(
        self, host: UpstreamHost, origin: Origin, subject: Digest, requests: Requests
    ) -> list[Digest]:
        """Return the referrers of a manifest at an upstream without the referrers API.

        They are the entries of an index under a tag (OCI distribution-spec, "Referrers Tag").
        """
        try:
            asked = host.registry.manifest(origin.repository, flat_tag(subject))
            _, index = await self._parsed(host, origin, await requests.answer(asked))
        except NotThere:
            return []
        return [entry.digest for entry in index.manifests]

    # Blobs

    async def bring_blob(
        self, client: Client, repository: str, digest: Digest, *, head: bool
    ) -> None:
        """Have the store serve a blob that the upstream has.

        Args:
            client: see `bring_manifest`.
            repository: as `names` resolves it.
            digest: of the blob.
            head: whether only its size is wanted. For a name that can be pushed to, the upstream is
                not asked then: a client that pushes asks so.

        Raises:
            BlobUnknown: neither has it.
            UpstreamUnavailable: it cannot be had now.
            Interrupted: the server is stopping.
            ConnectionError: the client is gone.
        """
        origin = self._names.origin(repository)
        if origin is None:
            return
        host = self._hosts[origin.host]
        download = self._arriving.get((repository, digest))
        if download is None:
            if self._has_blob(repository, digest):
                host.hits += 1
                return
            if head and (not origin.exclusive or self.announced(repository, digest)):
                return
            host.misses += 1
            kind = "size" if head else "blob"
            look = partial(self._announce, host, origin, repository, digest)
            if not head:
                look = partial(self._begin, host, origin, repository, digest, client.key)
            key = LookupKey(kind, repository, str(digest))
            await self._lookups.run(host, key, look, client)
            download = self._arriving.get((repository, digest))
        else:
            host.hits += 1
        if download is not None and not head:
            self._join(download, client.key)
            begun = asyncio.ensure_future(download.begun())
            try:
                await lookups.wait_for(host, begun, lookups.PATIENCE_SECONDS, client)
            finally:
                begun.cancel()

    def _has_blob(self, repository: str, digest: Digest) -> bool:
        with contextlib.suppress(StorageError):
            self._cache.blob(repository, digest)
            return True
        return False

    async def _size(
        self, host: UpstreamHost, origin: Origin, digest: Digest, requests: Requests
    ) -> int:
        size = await requests.answer(host.registry.blob_size(origin.repository, digest))
        if size is None:
            where = f"{host.name}/{origin.repository}@{digest}"
            raise ContentWrong(f"{where}: {host.name} does not tell its length")
        return size

    async def _announce(
        self,
        host: UpstreamHost,
        origin: Origin,
        repository: str,
        digest: Digest,
        requests: Requests,
    ) -> None:
        size = await self._size(host, origin, digest, requests)
        self._announced.put((repository, digest), (size, time.monotonic() + _ANNOUNCED_SECONDS))

    async def _begin(
        self,
        host: UpstreamHost,
        origin: Origin,
        repository: str,
        digest: Digest,
        client: Hashable,
        requests: Requests,
    ) -> None:
        """Begin to download a blob, unless its bytes are here or under way for another name."""
        # Asked for each repository: that the bytes are here does not show that this one has them.
        size = await self._size(host, origin, digest, requests)
        if await in_thread(self._upper.cache_link, repository, digest, self._cache):
            return
        if (host.name, digest) not in self._downloads:
            await self._check_room(size)
        download = self._downloads.get((host.name, digest))
        if download is None:
            if not self._tasks.has_room(client):
                raise UpstreamUnavailable(host.name)
            download = Download(host, origin.repository, digest, size)
            self._downloads[host.name, digest] = download
        download.repositories[repository] = None
        self._arriving[repository, digest] = download
        self._join(download, client)

    def _join(self, download: Download, client: Hashable) -> None:
        """Have a download begin as soon as it is the turn of any of its clients."""
        if download.has_turn or client in download.clients:
            return
        if download.clients and not self._tasks.has_room(client):
            return  # it waits for the turns of others
        download.clients.add(client)
        self._tasks.start(client, self._take_turn(download, client))

    async def _take_turn(self, download: Download, client: Hashable) -> None:
        try:
            async with self._turns[download.host.name].turn(client):
                if not download.has_turn:
                    download.has_turn = True
                    await self._download(download)
        except asyncio.CancelledError:
            # The server ends, and all other tasks of this download with it.
            if not download.has_ended:
                self._forget(download)
                download.fail()
            raise

    async def make_room(self, size: int) -> None:
        """See `registry.api.context.Mirror`."""
        if self._make_room is not None:
            await self._make_room(size)

    async def _check_room(self, size: int) -> None:
        """Check that a blob fits; where images are evicted, make room for it.

        Raises:
            StorageFull: it does not fit.
        """
        try:
            self._upper.check_room(size)
        except StorageFull:
            await self.make_room(size)
            self._upper.check_room(size)

    async def _download(self, download: Download) -> None:
        host, digest = download.host, download.digest
        try:
            await self._receive(download)
        except (FetchError, StorageError, OSError) as error:
            seconds = lookups.FAILED_SECONDS
            reason = lookups.reason_of(error)
            if isinstance(error, DigestInvalid | ContentWrong):
                seconds = lookups.WRONG_SECONDS
                reason = f"it does not match its digest: {reason}"
            log.event(
                logging.WARNING,
                "download_failed",
                f"{host.name}/{download.source}@{digest} was not cached: {reason}",
                host=host.name,
                digest=str(digest),
                reason=reason,
            )
            for name in download.repositories:
                self._lookups.remember_failure(LookupKey("blob", name, str(digest)), seconds)
            self._forget(download)
            download.fail()
        else:
            host.downloads += 1
            self._forget(download)
            download.complete()

    async def _receive(self, download: Download) -> None:
        digest = download.digest
        repository = next(iter(download.repositories))
        begin = partial(self._upper.begin_upload, resumable=False)
        upload = await in_thread(begin, repository, digest.algorithm)
        try:
            pieces = download.host.registry.blob(download.source, digest, download.size)
            await download.receive(pieces, upload)
            await in_thread(upload.commit, digest)
        except BaseException:
            with contextlib.suppress(StorageError, OSError):
                await in_thread(upload.cancel)
            raise
        linked = {repository}
        # More may join until the last is linked.
        while waiting := [name for name in download.repositories if name not in linked]:
            await in_thread(self._upper.cache_link, waiting[0], digest, self._cache)
            linked.add(waiting[0])

    def _forget(self, download: Download) -> None:
        del self._downloads[download.host.name, download.digest]
        for name in download.repositories:
            del self._arriving[name, download.digest]
