"""Work that must not hold up the event loop: in worker threads, or on it with pauses."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Iterable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

P = ParamSpec("P")
T = TypeVar("T")

TURN_SECONDS = 0.005
"""Time on the event loop after which others get a turn."""

_AT_A_TIME = 2
"""Calls of `in_turn`, of all clients together, that run at the same time."""

_MIN_WAITING = 64
"""Fewest waiting turns of one client at which those of ended requests are dropped."""


@dataclass(frozen=True, slots=True)
class Client:
    """The client of a request: all with the same key are one client.

    Attributes:
        key: of the client; work that outlives the request keeps only that.
        is_gone: whether the request's connection has ended, so that it waits for nothing any more.
    """

    key: Hashable
    is_gone: Callable[[], bool] = field(compare=False)


_Waiting = OrderedDict[asyncio.Future[None], Callable[[], bool] | None]
"""The turns that a client waits for, the oldest first → whether its request has ended, if known."""


class Turns:
    """Turns for clients: the one whose last turn began longest ago is next.

    So a client with many requests waiting delays another by at most one of them. Requests whose
    `Client` has left take no turn: a client that connects anew could leave them faster than turns
    end.

    Args:
        count: of turns at a time.
        each: most turns of one client at a time, for turns that may take very long.
    """

    def __init__(self, count: int, each: int | None = None) -> None:
        self._free = count
        self._each = count if each is None else each
        self._held: Counter[Hashable] = Counter()
        self._waiting: OrderedDict[Hashable, _Waiting] = OrderedDict()
        """By client, the one that is next first."""
        self._looks_at = _MIN_WAITING
        """Waiting turns of one client at which those of ended requests are dropped next."""

    async def take(self, client: Hashable) -> None:
        """Wait for a turn and hold it until `leave`.

        Raises:
            ConnectionResetError: the client has left meanwhile.
        """
        if self._free and self._held[client] < self._each:
            self._begin(client)
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(client, OrderedDict())
        waiting[mine] = client.is_gone if isinstance(client, Client) else None
        if len(waiting) >= self._looks_at:
            for begun in [one for one, is_gone in waiting.items() if _has_left(one, is_gone)]:
                del waiting[begun]
                _drop(begun)
            self._looks_at = max(_MIN_WAITING, 2 * len(waiting))
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled() and mine.exception() is None:
                self.leave(client)  # it was given in the same iteration of the event loop
            else:
                self._give_up(client, mine)
            raise

    def leave(self, client: Hashable) -> None:
        """Give a client's turn to the next waiter."""
        self._free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        emptied: list[Hashable] = []
        for waiter, waiting in self._waiting.items():
            if self._held[waiter] >= self._each:
                continue
            begun = _next(waiting)
            if not waiting:
                emptied.append(waiter)
            if begun is not None:
                self._waiting.move_to_end(waiter)
                self._begin(waiter)
                begun.set_result(None)
                break
        for waiter in emptied:
            del self._waiting[waiter]

    @asynccontextmanager
    async def turn(self, client: Hashable) -> AsyncIterator[None]:
        """Hold a turn while this context lasts."""
        await self.take(client)
        try:
            yield
        finally:
            self.leave(client)

    def _begin(self, client: Hashable) -> None:
        self._free -= 1
        self._held[client] += 1

    def _give_up(self, client: Hashable, mine: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(client)
        if waiting is not None and mine in waiting:
            del waiting[mine]
            if not waiting:
                del self._waiting[client]


def _next(waiting: _Waiting) -> asyncio.Future[None] | None:
    """Take out the turn that a client gets next; those that nobody waits for are dropped."""
    while waiting:
        begun, is_gone = waiting.popitem(last=False)
        if not _has_left(begun, is_gone):
            return begun
        _drop(begun)
    return None


def _has_left(begun: asyncio.Future[None], is_gone: Callable[[], bool] | None) -> bool:
    """Whether nobody waits for a turn any more."""
    return begun.done() or (is_gone is not None and is_gone())


def _drop(begun: asyncio.Future[None]) -> None:
    if not begun.done():
        begun.set_exception(ConnectionResetError("client is gone"))


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


async def in_turn(client: Hashable, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a client's call that may read thousands of directories or files in a worker thread.

    Few of them run at a time, so that threads are left for everything else, and clients take turns.
    A call continues when its caller is cancelled, and keeps its place until it returns.

    Raises:
        ConnectionResetError: see `Turns.take`; and all errors of the call.
    """
    turns = _turns.setdefault(asyncio.get_running_loop(), Turns(_AT_A_TIME))
    await turns.take(client)
    running = in_thread(call, *args, **kwargs)
    running.add_done_callback(lambda _: turns.leave(client))
    return await uncancelled(running)


async def uncancelled(future: asyncio.Future[T]) -> T:
    """Wait for a future that continues when its waiter is cancelled.

    Its exception counts as retrieved also when nobody waits for it any more: asyncio would log it.
    """
    future.add_done_callback(_retrieve)
    return await asyncio.shield(future)


def _retrieve(ended: asyncio.Future[T]) -> None:
    if not ended.cancelled():
        ended.exception()


def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Run a blocking call in a worker thread; it begins now, before the future is awaited."""
    return asyncio.get_running_loop().run_in_executor(None, partial(call, *args, **kwargs))


def in_thread_for_many(executor: Executor | None, call: Callable[[], T]) -> asyncio.Future[T]:
    """Run a blocking call in a thread for several waiters, each of which may leave before it ends.

    Its exception counts as retrieved from the moment it is set. A callback that retrieves it would
    not run if the loop ends in between, and asyncio would log the exception with its traceback.

    Args:
        executor: runs the call; None is the loop's own.

    Returns:
        A future that is shared: do not cancel it; wait for it by `uncancelled`.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    handed = [answer]

    def work() -> None:
        future = handed.pop()
        try:
            settle = partial(future.set_result, call())
        except BaseException as error:
            settle = partial(_fail, future, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle)
        # The exception's traceback holds this frame: no cycle with the future that will hold it.
        del future, settle

    loop.run_in_executor(executor, work)
    return answer


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    future.set_exception(error)
    future.exception()


async def with_pauses(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield the items; after each `TURN_SECONDS` of work on them, others use the event loop."""
    began = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - began >= TURN_SECONDS:
            await asyncio.sleep(0)
            began = time.perf_counter()
