"""Lookups at upstreams: one for all clients that ask for the same content, and few at a time.

    a failure is remembered ──────────► raise it
    the lookup runs already ──────────► wait for it
    else start it: wait for a turn ──► ask the upstream ──► store its answer, or remember a failure

A client waits `PATIENCE_SECONDS` at most, since containerd gives up on headers after 30; the lookup
continues without it. The time limit of a lookup covers the upstream's requests alone: a slow disk
here is not the upstream's failure.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable
from typing import NamedTuple, TypeVar

from mayfly.registry.errors import UpstreamUnavailable
from mayfly.registry.threads import Client, Turns
from mayfly.registry.upstream.download import POLL_SECONDS
from mayfly.registry.upstream.errors import (
    ContentWrong,
    FetchError,
    LoginRefused,
    NotThere,
    RequestRefused,
    UpstreamError,
)
from mayfly.registry.upstream.health import UpstreamHost
from mayfly.registry.upstream.tasks import ClientTasks
from mayfly.storage.errors import (
    Interrupted,
    StorageError,
    blob_unknown,
    manifest_unknown,
    of_disk,
)
from mayfly.storage.sized_cache import SizedCache
from mayfly.storage.text import counted

logger = logging.getLogger("mayfly")

PATIENCE_SECONDS = 25.0
"""Longest wait of a client for the first byte."""

_STALE_SECONDS = 5.0
"""Longest wait of a client that can be served a cached tag instead."""

_LOOKUP_SECONDS = 30.0
"""Longest wait of one lookup for answers of the upstream, all together."""

AT_A_TIME, _AT_A_TIME_OF_ONE = 16, 8
"""Lookups of one upstream at a time, and of them those of one client."""

MAX_WAITING, MAX_WAITING_OF_ONE = 1000, 250
"""Lookups of all clients, and of one, the waiting ones included; more are refused."""

_MIN_ABSENT_SECONDS, _MAX_ABSENT_SECONDS = 5.0, 60.0
"""Bounds of the time for which an upstream's "not there" is remembered: the TTL of tags."""

FAILED_SECONDS = 5.0
"""Time for which a failure is remembered."""

WRONG_SECONDS = 60.0
"""Time for which content with another digest, or a refused login, is remembered."""

_REMEMBERED_BYTES = 2 * 1024 * 1024
"""Memory for all failures that are remembered."""

T = TypeVar("T")


class LookupKey(NamedTuple):
    """Content that is looked up: a manifest by tag or digest, referrers, a blob, or its size."""

    kind: str
    repository: str
    reference: str


class Failure(NamedTuple):
    """The reason why a lookup found nothing.

    Attributes:
        is_absent: whether the upstream answered that it does not have it, or not for this login.
        is_refused: whether the login was refused.
        until: monotonic; until then it is not looked up again.
    """

    is_absent: bool
    is_refused: bool
    until: float


class Requests:
    """The requests of one lookup, which share its time limit.

    Args:
        host: the upstream.
    """

    def __init__(self, host: UpstreamHost) -> None:
        self._host = host
        self._left = _LOOKUP_SECONDS

    @property
    def are_over(self) -> bool:
        """Whether the time limit is reached."""
        return self._left <= 0

    async def answer(self, asked: Awaitable[T]) -> T:
        """Wait for an answer of the upstream.

        Raises:
            UpstreamError: it did not come in time.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._left):
                return await asked
        except TimeoutError:
            limit = counted(int(_LOOKUP_SECONDS), "second")
            raise UpstreamError(f"{self._host.name}: no answer in {limit}") from None
        finally:
            self._left -= time.monotonic() - began


Look = Callable[[Requests], Coroutine[None, None, None]]
"""Asks the upstream and stores its answer."""


class Lookups:
    """The lookups of a mirror.

    Args:
        hosts: names of the upstreams.
        ttl: seconds for which a tag is served without asking the upstream.
    """

    def __init__(self, hosts: Iterable[str], ttl: float) -> None:
        self._turns = {host: Turns(AT_A_TIME, _AT_A_TIME_OF_ONE) for host in hosts}
        self._ttl = ttl
        self._tasks = ClientTasks(MAX_WAITING, MAX_WAITING_OF_ONE)
        self._running: dict[LookupKey, asyncio.Task[Failure | None]] = {}
        self._failures: SizedCache[LookupKey, Failure] = SizedCache(
            _REMEMBERED_BYTES, lambda _: 600
        )

    async def close(self) -> None:
        """End all lookups; clients that wait for one get `Interrupted`."""
        await self._tasks.cancel()

    def remember_failure(self, key: LookupKey, seconds: float) -> None:
        """Look something up no more for some seconds."""
        self._failures.put(key, Failure(False, False, time.monotonic() + seconds))

    async def run(
        self,
        host: UpstreamHost,
        key: LookupKey,
        look: Look,
        client: Client,
        *,
        has_stale: bool = False,
    ) -> None:
        """Run a lookup, or wait for the one that runs.

        Args:
            has_stale: whether the client can be served something older instead.

        Raises:
            BlobUnknown, ManifestUnknown: the upstream does not have it.
            UpstreamUnavailable: it cannot be had now.
            Interrupted: the server is stopping.
            ConnectionError: the client is gone.
        """
        task = self._running.get(key)
        if task is None:
            failure = self._failures.get(key)
            if failure is not None and time.monotonic() < failure.until:
                raise _error(failure, host, key, has_stale)
            limit = 0.0 if has_stale else PATIENCE_SECONDS
            if _rests(host, limit) or not self._tasks.has_room(client.key):
                raise UpstreamUnavailable(host.name)
            task = self._tasks.start(client.key, self._run(host, key, look, client.key))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key))
        seconds = _STALE_SECONDS if has_stale else PATIENCE_SECONDS
        if failure := await wait_for(host, task, seconds, client):
            raise _error(failure, host, key, has_stale)

    async def _run(
        self, host: UpstreamHost, key: LookupKey, look: Look, client: Hashable
    ) -> Failure | None:
        """Run one lookup, and remember its failure."""
        where = f"{host.name}: {key.repository} {key.reference}"
        is_absent = is_refused = False
        try:
            async with self._turns[host.name].turn(client):
                if _rests(host, PATIENCE_SECONDS):  # others have failed meanwhile
                    return Failure(False, False, time.monotonic())
                await look(Requests(host))
        except NotThere:
            host.answered()
            is_absent = True
            seconds = min(max(self._ttl, _MIN_ABSENT_SECONDS), _MAX_ABSENT_SECONDS)
        except LoginRefused as error:
            # Docker Hub says this of names that do not exist.
            host.answered()
            logger.info("%s", error)
            is_absent = is_refused = True
            seconds = WRONG_SECONDS
        except ContentWrong as error:
            host.answered()
            logger.warning("%s was not cached: %s", where, error)
            seconds = WRONG_SECONDS
        except RequestRefused as error:
            # Clients choose the names: one that the upstream refuses does not make it unreachable.
            host.answered()
            logger.warning("%s was not cached: %s", where, error)
            seconds = FAILED_SECONDS
        except FetchError as error:
            host.failed(str(error))
            seconds = FAILED_SECONDS
        except UpstreamUnavailable:  # not asked: too much is waiting here
            seconds = FAILED_SECONDS
        except (StorageError, OSError) as error:
            logger.warning("%s was not cached: %s", where, reason_of(error))
            seconds = FAILED_SECONDS
        else:
            host.answered()
            self._failures.pop(key)
            return None
        failure = Failure(is_absent, is_refused, time.monotonic() + seconds)
        self._failures.put(key, failure)
        return failure


async def wait_for(
    host: UpstreamHost, shared: asyncio.Future[T], seconds: float, client: Client
) -> T:
    """Wait for a future that other clients may wait for too, and return its result.

    Raises:
        UpstreamUnavailable: it takes longer than some seconds.
        Interrupted: the server is stopping.
        ConnectionError: the client is gone.
    """
    end = time.monotonic() + seconds
    while not shared.done():
        left = end - time.monotonic()
        if left <= 0:
            raise UpstreamUnavailable(host.name)
        if client.is_gone():
            raise ConnectionResetError("client is gone")
        await asyncio.wait([shared], timeout=min(left, POLL_SECONDS))
    if shared.cancelled():
        raise Interrupted("the server is stopping")
    return shared.result()


def reason_of(error: Exception) -> str:
    """Return the text of an error for the log, without paths of this host."""
    if isinstance(error, OSError):
        error = of_disk(error) or error
    return getattr(error, "message", "") or str(error)


def _rests(host: UpstreamHost, limit: float) -> bool:
    """Whether an upstream has just failed, or wants no request for longer than ``limit``."""
    return host.is_failing or host.registry.paused_for > limit


def _error(failure: Failure, host: UpstreamHost, key: LookupKey, has_stale: bool) -> Exception:
    # A login that is refused now was accepted when the tag was cached.
    if not failure.is_absent or (failure.is_refused and has_stale):
        return UpstreamUnavailable(host.name)
    is_blob = key.kind in ("blob", "size")
    return blob_unknown(key.reference) if is_blob else manifest_unknown(key.reference)
