"""The front door for names and passwords: paced, fair, bounded, and off the event loop.

An attempt passes these, in order:

1. *Recall.* A remembered right password or a valid short-lived credential is answered at once. For
   a user who was guessed at from the same address lately (`auth.login_history`), it is not:
   otherwise guesses could be told right from wrong as fast as they are sent.
2. *Merge.* The same name and password from the same address, asked again meanwhile, wait for the
   one attempt.
3. *Its pair's turn.* Attempts on one user from one address run one by one, each after the wait that
   `auth.throttle` sets: opening many connections guesses no faster.
4. *A worker.* bcrypt runs in a few threads of its own and of low priority (it lets the interpreter
   continue). The same name and password under way for another address is joined, not run again.

Attempts that wait for a worker are served in this order: users who logged in from the same address
lately; then the network with the fewest recent failures, and of equals the one whose attempt is
newest. A network is an IPv4 address or an IPv6 /64. So neither a thousand names from one address
nor a name each from a thousand addresses delay a login for long: it is newer than those attempts,
and its network has failed less often.

Waiting attempts are bounded in number and time. The one that has waited longest is refused first,
with `LoginsBusy`. Clients see it as 401 like a wrong password, with a message of its own: docker,
containerd and skopeo give up on 429 and on 503 alike, kubelet tries again after any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from mayfly.auth.errors import CredentialsInvalid, LoginsBusy
from mayfly.auth.identity import MAX_NAME_BYTES, ROBOT_PREFIX, Identity
from mayfly.auth.login_history import LoginHistory
from mayfly.auth.networks import network_of
from mayfly.auth.throttle import Pair, Throttle
from mayfly.auth.verify import CredentialVerifier
from mayfly.registry.access.turns import NewestFirstLock, WorkerSlots
from mayfly.registry.threads import in_thread_for_many, uncancelled

_NICENESS = 5  # about a third of a transfer's share of a busy core

MAX_WAITING_PER_PAIR = 16
"""Different passwords that may wait for one user at one address."""

MAX_WAITING_PER_NETWORK = 512
"""Attempts that may wait from one network."""

MAX_WAITING = 2048
"""Attempts that may wait in all."""

MAX_WAIT = 20.0
"""Longest that an attempt waits, in seconds: under the 30 s that clients give a header."""


@dataclass(eq=False)
class _Attempt:
    """One name and password from one address, until it is answered."""

    pair: Pair
    password: str = field(repr=False)
    digest: bytes
    network: str
    trusted: bool
    answer: asyncio.Future[Identity]
    running: bool = False
    task: asyncio.Task[None] | None = None

    def settle(self, identity: Identity | None, error: BaseException | None = None) -> None:
        """Answer it, unless it is answered."""
        if self.answer.done():
            return
        if identity is not None:
            self.answer.set_result(identity)
        else:
            self.answer.set_exception(error or CredentialsInvalid())
            self.answer.exception()  # mark it as retrieved: the caller may be gone


class _Waiting:
    """Attempts that are not answered yet, in all and by network, the oldest first."""

    def __init__(self) -> None:
        self._all: OrderedDict[_Attempt, None] = OrderedDict()
        self._of_network: dict[str, OrderedDict[_Attempt, None]] = {}

    def add(self, attempt: _Attempt) -> None:
        """Add the newest."""
        self._all[attempt] = None
        self._of_network.setdefault(attempt.network, OrderedDict())[attempt] = None

    def remove(self, attempt: _Attempt) -> None:
        """Remove one, if it is there."""
        self._all.pop(attempt, None)
        here = self._of_network.get(attempt.network)
        if here is not None:
            here.pop(attempt, None)
            if not here:
                del self._of_network[attempt.network]

    def oldest_of_crowd(self, network: str | None = None) -> _Attempt | None:
        """Return the oldest attempt that does not run where the bound is reached.

        Args:
            network: whose bound; None for the bound of all.
        """
        waiting, most = self._all, MAX_WAITING
        if network is not None:
            waiting = self._of_network.get(network, OrderedDict())
            most = MAX_WAITING_PER_NETWORK
        if len(waiting) < most:
            return None
        return next((attempt for attempt in waiting if not attempt.running), None)


class Logins:
    """Checks names and passwords for an event loop. Belongs to one loop.

    Args:
        verifier: checks one name and password.
        throttle: says how long an attempt waits.
        threads: bcrypts at once; by default half the cores, so that a login storm leaves the
            others to transfers.
        sleep: waits some seconds.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        verifier: CredentialVerifier,
        throttle: Throttle,
        threads: int | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verifier = verifier
        self._throttle = throttle
        self._sleep = sleep
        count = threads or max(1, (os.cpu_count() or 1) // 2)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="login", initializer=_be_nice)
        self._locks: dict[Pair, NewestFirstLock] = {}
        self._workers = WorkerSlots(count, Throttle(clock))
        self._attempts: dict[tuple[str, bytes], _Attempt] = {}
        self._waiting = _Waiting()
        self._checks: dict[bytes, asyncio.Future[Identity]] = {}
        self._history = LoginHistory(clock)

    async def authenticate(self, name: str, password: str, address: str) -> Identity:
        """Return the caller who gives this name and password at this address.

        Cancelling the caller leaves others with the same credentials undisturbed.

        Raises:
            CredentialsInvalid: they are not right.
            LoginsBusy: too many attempts are waiting, or this one has for too long.
        """
        pair = (name[: MAX_NAME_BYTES + 1], address)
        if name.startswith(ROBOT_PREFIX) or not self._history.is_guessed(pair):
            known = self._verifier.recall(name, password)
            if known is not None:
                return known
        # No user has such a name, and the record of a failure would hold it.
        if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise CredentialsInvalid
        digest = self._verifier.digest(name, password)
        attempt = self._attempts.get((address, digest)) or self._begin(pair, password, digest)
        return await uncancelled(attempt.answer)

    def close(self) -> None:
        """Let the threads end; a bcrypt under way is not waited for."""
        for attempt in self._attempts.values():
            assert attempt.task is not None
            attempt.task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, pair: Pair, password: str, digest: bytes) -> _Attempt:
        loop = asyncio.get_running_loop()
        self._history.attempted(pair)
        network, trusted = network_of(pair[1]), self._history.is_recent(pair)
        attempt = _Attempt(pair, password, digest, network, trusted, loop.create_future())
        if not trusted:
            for bound in (network, None):
                if (oldest := self._waiting.oldest_of_crowd(bound)) is not None:
                    self._give_up(oldest)
            self._waiting.add(attempt)
        self._attempts[pair[1], digest] = attempt
        limit = loop.call_later(MAX_WAIT, self._give_up, attempt)
        attempt.task = asyncio.create_task(self._run(attempt))

        def ended(task: asyncio.Task[None]) -> None:
            limit.cancel()
            self._forget(attempt)
            if task.cancelled():
                attempt.answer.cancel()
            elif error := task.exception():
                attempt.settle(None, error)

        attempt.task.add_done_callback(ended)
        return attempt

    async def _run(self, attempt: _Attempt) -> None:
        name, address = attempt.pair
        try:
            async with self._turn(attempt.pair):
                await self._sleep(self._throttle.delay(name, address))
                identity = await self._check(attempt)
                self._throttle.succeeded(name, address)
        except CredentialsInvalid as error:
            attempt.settle(None, error)
        else:
            self._history.succeeded(attempt.pair)
            attempt.settle(identity)

    async def _check(self, attempt: _Attempt) -> Identity:
        name, address = attempt.pair
        try:
            running = self._checks.get(attempt.digest)
            if running is not None:
                return await uncancelled(running)
            async with self._workers.slot(attempt.network, trusted=attempt.trusted):
                attempt.running = True
                return await uncancelled(self._in_thread(attempt))
        except LoginsBusy:
            raise
        except CredentialsInvalid:
            self._throttle.failed(name, address)
            self._workers.failed(attempt.network)
            raise

    def _in_thread(self, attempt: _Attempt) -> asyncio.Future[Identity]:
        running = self._checks.get(attempt.digest)
        if running is None:
            check = partial(self._verifier.check, attempt.pair[0], attempt.password)
            running = in_thread_for_many(self._threads, check)
            self._checks[attempt.digest] = running
            running.add_done_callback(lambda _: self._checks.pop(attempt.digest))
        return running

    def _give_up(self, attempt: _Attempt) -> None:
        attempt.settle(None, LoginsBusy())
        if not attempt.running and attempt.task is not None:
            self._forget(attempt)
            attempt.task.cancel()

    def _forget(self, attempt: _Attempt) -> None:
        key = (attempt.pair[1], attempt.digest)
        if self._attempts.get(key) is attempt:
            del self._attempts[key]
        self._waiting.remove(attempt)

    @contextlib.asynccontextmanager
    async def _turn(self, pair: Pair) -> AsyncIterator[None]:
        """Wait for a pair's turn and hold it.

        Raises:
            LoginsBusy: too many came since.
        """
        lock = self._locks.setdefault(pair, NewestFirstLock(MAX_WAITING_PER_PAIR))
        try:
            async with lock.turn():
                yield
        finally:
            if not lock.inside:
                self._locks.pop(pair, None)


def _be_nice() -> None:
    """Let transfers go first where cores are short. On Linux niceness is a thread's own."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
