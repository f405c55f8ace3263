"""The front door for names and passwords: paced, fair, bounded, and off the event loop.

An attempt passes these, in order:

1. *Recall.* A remembered right password or a valid short-lived credential is answered at once. For
   a user who was guessed at from the same address `MAX_MISSES` times lately, it is not: otherwise
   guesses could be told right from wrong as fast as they are sent.
2. *Merge.* The same name and password from the same address, asked again meanwhile, wait for the
   one attempt.
3. *Its pair's turn.* Attempts on one user from one address go one by one, each after the wait that
   `auth.throttle` sets: opening many connections guesses no faster.
4. *A worker.* bcrypt runs in a few threads of its own and of low priority (it lets the interpreter
   go on). The same name and password under way for another address is joined, not run again.

Attempts that wait for a worker are served in this order: users who logged in from the same address
within `RECENT`; then the network with the fewest recent failures, and of equals the one whose
attempt is newest. A network is an IPv4 address or an IPv6 /64. So neither a thousand names from one
address nor a name each from a thousand addresses delay a login for long: it is newer than those
attempts, and its network has failed less often.

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
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mayfly.auth.errors import CredentialsInvalid, LoginsBusy
from mayfly.auth.identity import MAX_NAME_BYTES, ROBOT_PREFIX, Identity
from mayfly.auth.networks import network_of
from mayfly.auth.throttle import Throttle
from mayfly.auth.verify import CredentialVerifier

_NICENESS = 5  # about a third of a transfer's share of a busy core

MAX_WAITING_PER_PAIR = 16
"""Different passwords that may wait for one user at one address."""

MAX_WAITING_PER_NETWORK = 512
"""Attempts that may wait from one network."""

MAX_WAITING = 2048
"""Attempts that may wait in all."""

MAX_WAIT = 20.0
"""Longest that an attempt waits, in seconds: under the 30 s that clients give a header."""

RECENT = 24 * 3600.0
"""Seconds after a login in which the same user at the same address is served first."""

MAX_RECENT = 4096
"""Pairs of user and address remembered for that; the oldest login is forgotten first."""

MAX_MISSES = 20
"""Wrong passwords of one user from one address, in `MISSES_EVERY`, past which none is recalled."""

MISSES_EVERY = 60.0
"""Seconds."""

Pair = tuple[str, str]


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
        self._clock = clock
        count = threads or max(1, (os.cpu_count() or 1) // 2)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="login", initializer=_be_nice)
        self._pairs: dict[Pair, _Stack] = {}
        self._workers = _Workers(count, Throttle(clock))
        self._attempts: dict[tuple[str, bytes], _Attempt] = {}
        self._waiting: OrderedDict[_Attempt, None] = OrderedDict()
        self._waiting_from: dict[str, OrderedDict[_Attempt, None]] = {}
        self._checks: dict[bytes, asyncio.Future[Identity]] = {}
        self._recent: OrderedDict[Pair, float] = OrderedDict()
        self._misses: OrderedDict[Pair, tuple[float, int]] = OrderedDict()

    async def authenticate(self, name: str, password: str, address: str) -> Identity:
        """Who gives this name and password at this address.

        Cancelling the caller leaves others with the same credentials undisturbed.

        Raises:
            CredentialsInvalid: they are not right.
            LoginsBusy: too many attempts are waiting, or this one has for too long.
        """
        pair = (name[: MAX_NAME_BYTES + 1], address)
        if name.startswith(ROBOT_PREFIX) or not self._guessed_at(pair):
            known = self._verifier.recall(name, password)
            if known is not None:
                return known
        # No user's, whoever asks; and what is remembered of a failure holds the name.
        if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise CredentialsInvalid
        digest = self._verifier.digest(name, password)
        attempt = self._attempts.get((address, digest)) or self._begin(pair, password, digest)
        return await asyncio.shield(attempt.answer)

    def close(self) -> None:
        """Let the threads end; a bcrypt under way is not waited for."""
        for attempt in self._attempts.values():
            assert attempt.task is not None
            attempt.task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, pair: Pair, password: str, digest: bytes) -> _Attempt:
        loop = asyncio.get_running_loop()
        self._count_miss(pair)
        network = network_of(pair[1])
        attempt = _Attempt(
            pair, password, digest, network, self._is_recent(pair), loop.create_future()
        )
        if not attempt.trusted:
            self._make_room(network)
            self._waiting[attempt] = None
            self._waiting_from.setdefault(network, OrderedDict())[attempt] = None
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
            self._remember(attempt.pair)
            attempt.settle(identity)

    async def _check(self, attempt: _Attempt) -> Identity:
        name, address = attempt.pair
        try:
            running = self._checks.get(attempt.digest)
            if running is not None:
                return await asyncio.shield(running)
            async with self._workers.place(attempt.network, trusted=attempt.trusted):
                attempt.running = True
                return await asyncio.shield(self._in_thread(attempt))
        except LoginsBusy:
            raise
        except CredentialsInvalid:
            self._throttle.failed(name, address)
            self._workers.failed(attempt.network)
            raise

    def _in_thread(self, attempt: _Attempt) -> asyncio.Future[Identity]:
        running = self._checks.get(attempt.digest)
        if running is None:
            loop = asyncio.get_running_loop()
            check = self._verifier.check
            running = loop.run_in_executor(self._threads, check, attempt.pair[0], attempt.password)
            self._checks[attempt.digest] = running
            running.add_done_callback(lambda _: self._checks.pop(attempt.digest))
        return running

    # Waiting attempts

    def _make_room(self, network: str) -> None:
        here = self._waiting_from.get(network, ())
        if len(here) >= MAX_WAITING_PER_NETWORK:
            self._give_up_oldest(here)
        if len(self._waiting) >= MAX_WAITING:
            self._give_up_oldest(self._waiting)

    def _give_up_oldest(self, waiting: Iterable[_Attempt]) -> None:
        oldest = next((attempt for attempt in waiting if not attempt.running), None)
        if oldest is not None:
            self._give_up(oldest)

    def _give_up(self, attempt: _Attempt) -> None:
        attempt.settle(None, LoginsBusy())
        if not attempt.running and attempt.task is not None:
            self._forget(attempt)
            attempt.task.cancel()

    def _forget(self, attempt: _Attempt) -> None:
        key = (attempt.pair[1], attempt.digest)
        if self._attempts.get(key) is attempt:
            del self._attempts[key]
        self._waiting.pop(attempt, None)
        here = self._waiting_from.get(attempt.network)
        if here is not None:
            here.pop(attempt, None)
            if not here:
                del self._waiting_from[attempt.network]

    @contextlib.asynccontextmanager
    async def _turn(self, pair: Pair) -> AsyncIterator[None]:
        """Wait for a pair's turn and hold it.

        Raises:
            LoginsBusy: too many came since.
        """
        stack = self._pairs.setdefault(pair, _Stack(MAX_WAITING_PER_PAIR))
        try:
            async with stack.turn():
                yield
        finally:
            if not stack.inside:
                self._pairs.pop(pair, None)

    # Recent logins and wrong passwords

    def _is_recent(self, pair: Pair) -> bool:
        return self._recent.get(pair, -RECENT) + RECENT > self._clock()

    def _remember(self, pair: Pair) -> None:
        self._misses.pop(pair, None)
        self._recent[pair] = self._clock()
        self._recent.move_to_end(pair)
        if len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)

    def _guessed_at(self, pair: Pair) -> bool:
        since, count = self._misses.get(pair, (0.0, 0))
        return count >= MAX_MISSES and self._clock() - since < MISSES_EVERY

    def _count_miss(self, pair: Pair) -> None:
        now = self._clock()
        since, count = self._misses.get(pair, (now, 0))
        if now - since >= MISSES_EVERY:
            since, count = now, 0
        self._misses[pair] = (since, count + 1)
        self._misses.move_to_end(pair)
        if len(self._misses) > MAX_RECENT:
            self._misses.popitem(last=False)


def _be_nice() -> None:
    """Let transfers go first where cores are short. On Linux niceness is a thread's own."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class _Stack:
    """A lock whose newest waiter is next. Past the bound the oldest waiter is refused.

    So a user who shares an address with an endless guesser gets a turn.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.inside = 0
        """The number of waiters and holders."""

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the turn and hold it.

        Raises:
            LoginsBusy: too many came since.
        """
        self.inside += 1
        try:
            if self.inside > 1:
                await self._wait()
            try:
                yield
            finally:
                _wake(self._waiting)
        finally:
            self.inside -= 1

    async def _wait(self) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        if self.inside > self._most:
            _refuse(self._waiting)
        try:
            await mine
        except asyncio.CancelledError:
            if _was_woken(mine):
                _wake(self._waiting)
            raise


class _Workers:
    """Worker slots and the order in which attempts get one (see the module's docstring).

    Args:
        count: of slots.
        failures: counts failed logins of networks.
    """

    def __init__(self, count: int, failures: Throttle) -> None:
        self._free = count
        self._failures = failures
        self._trusted: deque[asyncio.Future[None]] = deque()
        self._networks: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """Waiters by network, the network with the newest attempt last."""

    def failed(self, network: str) -> None:
        """Count a failed login."""
        self._failures.failed("", network)

    @contextlib.asynccontextmanager
    async def place(self, network: str, *, trusted: bool) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(network, trusted=trusted)
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, network: str, *, trusted: bool) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if trusted:
            self._trusted.append(mine)
        else:
            self._networks.setdefault(network, deque()).append(mine)
            self._networks.move_to_end(network)
        try:
            await mine
        except asyncio.CancelledError:
            if _was_woken(mine):
                self._leave()
            raise

    def _leave(self) -> None:
        while self._trusted:
            first = self._trusted.popleft()
            if not first.done():
                first.set_result(None)
                return
        while self._networks:
            newest = reversed(self._networks)
            network = min(newest, key=lambda one: self._failures.delay("", one))
            if _wake(self._networks[network]):
                return
            del self._networks[network]
        self._free += 1


def _wake(waiting: deque[asyncio.Future[None]]) -> bool:
    """Let the newest go on; False if none waits."""
    while waiting:
        newest = waiting.pop()
        if not newest.done():
            newest.set_result(None)
            return True
    return False


def _was_woken(mine: asyncio.Future[None]) -> bool:
    """Whether a cancelled waiter got its turn in the same iteration of the event loop."""
    return mine.done() and not mine.cancelled() and mine.exception() is None


def _refuse(waiting: deque[asyncio.Future[None]]) -> None:
    """Send the oldest away."""
    while waiting:
        oldest = waiting.popleft()
        if not oldest.done():
            oldest.set_exception(LoginsBusy())
            return
