"""Pull-through: what the store lacks is fetched from the upstream of its name, once, and kept.

    request ──guard──► bring_manifest, bring_blob … ──► the store answers as ever
                            │ here, and a tag checked within the TTL: at once
                            │ else one lookup for all who ask ──► stored, marked as cached
                            └ a blob: its download begins, and is sent while it arrives

The guard has admitted the request before anything here runs. Names are mapped by `names`; content
is stored by the root's upper store, whose marks tell it from what was pushed
(`storage.directory.cached`).

A client cannot make this ask an upstream without bound: lookups are shared, few run at a time, and
what an upstream does not have or does not give is remembered for a while. A client waits
`_PATIENCE_SECONDS` at most, since containerd gives up on headers after 30; the lookup or download
goes on without it, until the server has drained.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import NamedTuple, Self, TypeVar

from mayfly.registry import log
from mayfly.registry.errors import UpstreamUnavailable
from mayfly.registry.threads import in_thread
from mayfly.registry.upstream.download import POLL_SECONDS, Announced, Download
from mayfly.registry.upstream.errors import (
    ContentWrong,
    FetchError,
    LoginRefused,
    NotThere,
    UpstreamError,
)
from mayfly.registry.upstream.health import UpstreamHost, UpstreamRecord
from mayfly.registry.upstream.names import Origin, UpstreamNames
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import (
    DigestInvalid,
    Interrupted,
    ManifestInvalid,
    StorageError,
    StorageFull,
    blob_unknown,
    manifest_unknown,
    of_disk,
)
from mayfly.storage.interface import Content
from mayfly.storage.manifest import parse_stored
from mayfly.storage.sized_cache import SizedCache
from mayfly.storage.text import counted
from mayfly.storage.upkeep.maintainable import Maintainable

logger = logging.getLogger("mayfly")

ATTEMPTS = 3
"""Requests for one thing before it counts as failed: a client is waiting."""

_PATIENCE_SECONDS = 25.0
"""That a client waits for the first byte."""

_STALE_SECONDS = 5.0
"""That a client waits for the upstream while there is a cached tag to serve instead."""

_LOOKUP_SECONDS = 30.0
"""That one lookup may take."""

_LOOKUPS, _DOWNLOADS = 16, 32
"""Lookups of one upstream, and downloads of all, at a time; others wait."""

CONNECTIONS = _LOOKUPS + _DOWNLOADS
"""To one host: downloads must not keep lookups waiting."""

_MOST_WAITING = 1000
"""Lookups and downloads at once, the waiting ones included; more are refused."""

_LEAST_ABSENT_SECONDS, _MOST_ABSENT_SECONDS = 5.0, 60.0
"""For which an upstream's "not there" is remembered; within these, the TTL of tags."""

_FAILED_SECONDS = 5.0
"""For which a failure is remembered."""

_WRONG_SECONDS = 60.0
"""For which content with another digest, or a refused login, is remembered."""

_REMEMBERED_BYTES = 2 * 1024 * 1024
"""For all that is remembered of what could not be had."""

_ANNOUNCED_BYTES, _ANNOUNCED_SECONDS = 256 * 1024, 60.0
"""For the sizes that clients asked for by HEAD."""


_MOST_REFERRERS = 100
"""Of one manifest that are fetched."""

IsGone = Callable[[], bool]
"""Whether a client has left."""

T = TypeVar("T")


def _never() -> bool:
    return False


class _Key(NamedTuple):
    """Content that is looked up: a manifest by tag or digest, referrers, a blob, or its size."""

    kind: str
    repository: str
    reference: str


class _Failure(NamedTuple):
    """Why a lookup brought nothing.

    Attributes:
        absent: whether the upstream answered that it does not have it, or not for this login.
        refused: whether the login was refused.
        until: monotonic; until then it is not looked up again.
    """

    absent: bool
    refused: bool
    until: float


MakeRoom = Callable[[int], Awaitable[None]]
"""Evicts content as far as that makes room for so many bytes."""


class Mirror:
    """Fetches from upstreams into a store; an async context manager.

    Args:
        cache: takes what is fetched, and is asked first.
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
        self._lookups: dict[_Key, asyncio.Task[_Failure | None]] = {}
        self._places = {name: asyncio.Semaphore(_LOOKUPS) for name in self._hosts}
        self._failures: SizedCache[_Key, _Failure] = SizedCache(_REMEMBERED_BYTES, lambda _: 600)
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
        self._slots = asyncio.Semaphore(_DOWNLOADS)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        running = [*self._lookups.values(), *self._tasks]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

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
        self, repository: str, reference: Digest | str, is_gone: IsGone = _never
    ) -> None:
        """Have the store know a manifest that the upstream has, by digest or tag.

        Args:
            is_gone: whether the client has left, so that nothing is waited for.

        Raises:
            ManifestUnknown: neither has it.
            UpstreamUnavailable: it cannot be had now.
            ConnectionError: the client is gone.
        """
        origin = self._names.origin(repository)
        if origin is None:
            return
        host = self._hosts[origin.host]
        if isinstance(reference, Digest):
            await self._bring_digest(host, origin, repository, reference, is_gone)
        else:
            await self._bring_tag(host, origin, repository, reference, is_gone)

    async def _bring_digest(
        self,
        host: UpstreamHost,
        origin: Origin,
        repository: str,
        digest: Digest,
        is_gone: IsGone,
    ) -> None:
        if self._has_manifest(repository, digest):
            host.hits += 1
            self._upper.record_pull(repository, digest)
            return
        host.misses += 1
        fetch = partial(self._fetch_manifest, host, origin, repository, str(digest), None)
        await self._look_up(host, _Key("manifest", repository, str(digest)), fetch, is_gone)

    async def _bring_tag(
        self, host: UpstreamHost, origin: Origin, repository: str, tag: str, is_gone: IsGone
    ) -> None:
        known = self._tagged(repository, tag)
        key = _Key("manifest", repository, tag)
        if known is None:
            host.misses += 1
            fetch = partial(self._fetch_manifest, host, origin, repository, tag, tag)
            await self._look_up(host, key, fetch, is_gone)
            return
        checked = self._upper.cached.last_checked(repository, tag)
        if checked is None:
            return  # pushed here, or a bundle's
        self._upper.record_pull(repository, known)
        # A time in the future is a clock's that was set back.
        if 0 <= time.time() - checked < self._ttl:
            host.hits += 1
            return
        compare = partial(self._compare_tag, host, origin, repository, tag, known)
        try:
            await self._look_up(host, key, compare, is_gone, has_stale=True)
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
        self, host: UpstreamHost, origin: Origin, repository: str, reference: str, tag: str | None
    ) -> None:
        fetched = await host.registry.manifest(origin.repository, reference)
        host.bytes += len(fetched.body)
        try:
            async with self._parsing:  # which takes ten times the manifest's memory
                manifest = await in_thread(parse_stored, fetched.body)
        except ManifestInvalid as error:
            where = f"{host.name}/{origin.repository}:{reference}"
            raise ContentWrong(f"{where}: not a manifest: {error.message}") from None
        await in_thread(self._upper.cache_manifest, repository, manifest, fetched.digest, tag)

    async def _compare_tag(
        self, host: UpstreamHost, origin: Origin, repository: str, tag: str, known: Digest
    ) -> None:
        """Ask where a tag points now, and follow it."""
        now = await host.registry.tag_digest(origin.repository, tag)
        if now == known:
            self._upper.record_check(repository, tag)
            return
        if now is not None:
            # By digest: the tag may move again, or lead elsewhere on another of its servers.
            with contextlib.suppress(NotThere):
                await self._fetch_manifest(host, origin, repository, str(now), tag)
                return
        await self._fetch_manifest(host, origin, repository, tag, tag)

    async def bring_referrers(
        self, repository: str, subject: Digest, is_gone: IsGone = _never
    ) -> None:
        """Have the store know what refers to a manifest upstream, as far as that can be had now.

        Args:
            is_gone: see `bring_manifest`.

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
        key = _Key("referrers", repository, str(subject))
        # An error would tell clients less than the referrers that are here.
        with contextlib.suppress(UpstreamUnavailable, StorageError):
            host.misses += 1
            await self._look_up(host, key, fetch, is_gone, has_stale=True)

    async def _fetch_referrers(
        self, host: UpstreamHost, origin: Origin, repository: str, subject: Digest
    ) -> None:
        found = await host.registry.referrers(origin.repository, subject)
        for digest in (found or ())[:_MOST_REFERRERS]:
            if not self._has_manifest(repository, digest):
                await self._fetch_manifest(host, origin, repository, str(digest), None)
        self._referred.put((repository, subject), time.monotonic() + self._ttl)

    # Blobs

    async def bring_blob(
        self, repository: str, digest: Digest, is_gone: IsGone = _never, *, head: bool
    ) -> None:
        """Have the store serve a blob that the upstream has.

        Args:
            is_gone: see `bring_manifest`.
            head: whether only its size is wanted. Of a name that can be pushed to, the upstream is
                not asked then: that is the question of a client that pushes.

        Raises:
            BlobUnknown: neither has it.
            UpstreamUnavailable: it cannot be had now.
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
            kind, make = ("size", self._announce) if head else ("blob", self._begin)
            look = partial(make, host, origin, repository, digest)
            await self._look_up(host, _Key(kind, repository, str(digest)), look, is_gone)
            download = self._arriving.get((repository, digest))
        else:
            host.hits += 1
        if download is not None and not head:
            begun = asyncio.ensure_future(download.begun())
            try:
                await _wait(host, begun, _PATIENCE_SECONDS, is_gone)
            finally:
                begun.cancel()

    def _has_blob(self, repository: str, digest: Digest) -> bool:
        with contextlib.suppress(StorageError):
            self._cache.blob(repository, digest)
            return True
        return False

    async def _size(self, host: UpstreamHost, origin: Origin, digest: Digest) -> int:
        size = await host.registry.blob_size(origin.repository, digest)
        if size is None:
            where = f"{host.name}/{origin.repository}@{digest}"
            raise ContentWrong(f"{where}: {host.name} does not tell its length")
        return size

    async def _announce(
        self, host: UpstreamHost, origin: Origin, repository: str, digest: Digest
    ) -> None:
        size = await self._size(host, origin, digest)
        self._announced.put((repository, digest), (size, time.monotonic() + _ANNOUNCED_SECONDS))

    async def _begin(
        self, host: UpstreamHost, origin: Origin, repository: str, digest: Digest
    ) -> None:
        """Begin to download a blob, unless its bytes are here or under way for another name."""
        # Asked for each repository: that the bytes are here does not show that this one has them.
        size = await self._size(host, origin, digest)
        if await in_thread(self._upper.cache_link, repository, digest, self._cache):
            return
        if (host.name, digest) not in self._downloads:
            await self._check_room(size)
        download = self._downloads.get((host.name, digest))
        if download is None:
            if len(self._tasks) >= _MOST_WAITING:
                raise UpstreamError("too many downloads are waiting")
            download = Download(host, digest, size)
            self._downloads[host.name, digest] = download
            task = asyncio.create_task(self._download(download, origin, repository))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        download.repositories[repository] = None
        self._arriving[repository, digest] = download

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

    async def _download(self, download: Download, origin: Origin, repository: str) -> None:
        host, digest = download.host, download.digest
        where = f"{host.name}/{origin.repository}@{digest}"
        try:
            async with self._slots:
                await self._receive(download, origin, repository)
        except (FetchError, StorageError, OSError) as error:
            until = time.monotonic() + _FAILED_SECONDS
            reason = _text(error)
            if isinstance(error, DigestInvalid | ContentWrong):
                until = time.monotonic() + _WRONG_SECONDS
                reason = f"it is not what its digest names: {reason}"
            log.event(
                logging.WARNING,
                "download_failed",
                f"{where} was not cached: {reason}",
                host=host.name,
                digest=str(digest),
                reason=reason,
            )
            for name in download.repositories:
                key = _Key("blob", name, str(digest))
                self._failures.put(key, _Failure(absent=False, refused=False, until=until))
            self._forget(download)
            download.fail()
        except asyncio.CancelledError:
            self._forget(download)
            download.fail()
            raise
        else:
            host.downloads += 1
            self._forget(download)
            download.complete()

    async def _receive(self, download: Download, origin: Origin, repository: str) -> None:
        digest = download.digest
        begin = partial(self._upper.begin_upload, resumable=False)
        upload = await in_thread(begin, repository, digest.algorithm)
        try:
            pieces = download.host.registry.blob(origin.repository, digest, download.size)
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

    # Lookups

    async def _look_up(
        self,
        host: UpstreamHost,
        key: _Key,
        look: Callable[[], Coroutine[None, None, None]],
        is_gone: IsGone,
        *,
        has_stale: bool = False,
    ) -> None:
        """Run a lookup, or join the one that runs, and raise what came of it.

        Args:
            has_stale: whether the client can be served something older instead.
        """
        task = self._lookups.get(key)
        if task is None:
            failure = self._failures.get(key)
            if failure is not None and time.monotonic() < failure.until:
                raise _error(failure, host, key, has_stale)
            limit = 0.0 if has_stale else _PATIENCE_SECONDS
            if _rests(host, limit) or len(self._lookups) >= _MOST_WAITING:
                raise UpstreamUnavailable(host.name)
            task = asyncio.create_task(self._run(host, key, look))
            self._lookups[key] = task
            task.add_done_callback(lambda _: self._lookups.pop(key))
        patience = _STALE_SECONDS if has_stale else _PATIENCE_SECONDS
        if failure := await _wait(host, task, patience, is_gone):
            raise _error(failure, host, key, has_stale)

    async def _run(
        self, host: UpstreamHost, key: _Key, look: Callable[[], Awaitable[None]]
    ) -> _Failure | None:
        """Run one lookup, and remember what it did not bring."""
        now = time.monotonic
        where = f"{host.name}: {key.repository} {key.reference}"
        try:
            async with self._places[host.name], asyncio.timeout(_LOOKUP_SECONDS):
                if _rests(host, _PATIENCE_SECONDS):  # others have failed meanwhile
                    return _Failure(False, False, now())
                await look()
        except NotThere:
            host.answered()
            seconds = min(max(self._ttl, _LEAST_ABSENT_SECONDS), _MOST_ABSENT_SECONDS)
            failure = _Failure(True, False, now() + seconds)
        except LoginRefused as error:
            # Docker Hub says this of names that do not exist.
            host.answered()
            logger.info("%s", error)
            failure = _Failure(True, True, now() + _WRONG_SECONDS)
        except ContentWrong as error:
            host.answered()
            logger.warning("%s was not cached: %s", where, error)
            failure = _Failure(False, False, now() + _WRONG_SECONDS)
        except (FetchError, TimeoutError) as error:
            limit = counted(int(_LOOKUP_SECONDS), "second")
            host.failed(str(error) or f"{where}: no answer in {limit}")
            failure = _Failure(False, False, now() + _FAILED_SECONDS)
        except (StorageError, OSError) as error:
            logger.warning("%s was not cached: %s", where, _text(error))
            failure = _Failure(False, False, now() + _FAILED_SECONDS)
        else:
            host.answered()
            self._failures.pop(key)
            return None
        self._failures.put(key, failure)
        return failure


async def _wait(
    host: UpstreamHost, shared: asyncio.Future[T], seconds: float, is_gone: IsGone
) -> T:
    """Wait for what others may wait for too, and return its result.

    Raises:
        UpstreamUnavailable: it takes longer than some seconds.
        ConnectionError: the client is gone.
    """
    end = time.monotonic() + seconds
    while not shared.done():
        left = end - time.monotonic()
        if left <= 0:
            raise UpstreamUnavailable(host.name)
        if is_gone():
            raise ConnectionResetError("client is gone")
        await asyncio.wait([shared], timeout=min(left, POLL_SECONDS))
    if shared.cancelled():
        raise Interrupted("the server is stopping")
    return shared.result()


def _rests(host: UpstreamHost, limit: float) -> bool:
    """Whether an upstream has just failed, or wants no request for longer than ``limit``."""
    return host.is_failing or host.registry.paused_for > limit


def _error(failure: _Failure, host: UpstreamHost, key: _Key, has_stale: bool) -> Exception:
    # A login that is refused now was accepted when the tag was cached.
    if not failure.absent or (failure.refused and has_stale):
        return UpstreamUnavailable(host.name)
    is_blob = key.kind in ("blob", "size")
    return blob_unknown(key.reference) if is_blob else manifest_unknown(key.reference)


def _text(error: Exception) -> str:
    """An error for the log, without the paths of this host."""
    if isinstance(error, OSError):
        error = of_disk(error) or error
    return getattr(error, "message", "") or str(error)
