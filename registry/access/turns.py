"""Turns for logins: a lock whose newest waiter is next, and the worker slots that all share.

Both are fair to latecomers: an attacker with many earlier attempts delays nobody for more than one
of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator

from mayfly.auth.errors import LoginsBusy
from mayfly.auth.throttle import Throttle

Waiters = deque[asyncio.Future[None]]
"""The oldest first."""


class NewestFirstLock:
    """A lock whose newest waiter is next. Past the bound the oldest waiter is refused.

    So a user who shares an address with an endless guesser gets a turn.

    Args:
        most: waiters, the holder included.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: Waiters = deque()
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
            elif mine in self._waiting:
                self._waiting.remove(mine)
            raise


class WorkerSlots:
    """Worker slots and the order in which attempts get one.

    First come trusted attempts, in their order; then the network with the fewest recent failures,
    and of equals the one whose attempt is newest.

    Args:
        count: of slots.
        failures: counts failed logins of networks.
    """

    def __init__(self, count: int, failures: Throttle) -> None:
        self._free = count
        self._failures = failures
        self._trusted: Waiters = deque()
        self._networks: OrderedDict[str, Waiters] = OrderedDict()
        """Waiters by network, the network with the newest attempt last."""

    def failed(self, network: str) -> None:
        """Count a failed login."""
        self._failures.failed("", network)

    @contextlib.asynccontextmanager
    async def slot(self, network: str, *, trusted: bool) -> AsyncIterator[None]:
        """Wait for a slot and hold it."""
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
        waiting = self._trusted if trusted else self._networks.setdefault(network, deque())
        waiting.append(mine)
        if not trusted:
            self._networks.move_to_end(network)
        try:
            await mine
        except asyncio.CancelledError:
            if _was_woken(mine):
                self._leave()
            elif mine in waiting:  # the oldest are given up first, so few are compared
                waiting.remove(mine)
                if not waiting and not trusted:
                    del self._networks[network]
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
            woken = _wake(self._networks[network])
            if not self._networks[network]:
                del self._networks[network]
            if woken:
                return
        self._free += 1


def _wake(waiting: Waiters) -> bool:
    """Let the newest continue; False if none waits."""
    while waiting:
        newest = waiting.pop()
        if not newest.done():
            newest.set_result(None)
            return True
    return False


def _was_woken(mine: asyncio.Future[None]) -> bool:
    """Whether a cancelled waiter got its turn in the same iteration of the event loop."""
    return mine.done() and not mine.cancelled() and mine.exception() is None


def _refuse(waiting: Waiters) -> None:
    """Refuse the oldest."""
    while waiting:
        oldest = waiting.popleft()
        if not oldest.done():
            oldest.set_exception(LoginsBusy())
            return
