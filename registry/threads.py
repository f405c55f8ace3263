"""Work that must not hold up the event loop: in worker threads, or in turns with other tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary

P = ParamSpec("P")
T = TypeVar("T")

TURN_SECONDS = 0.005
"""Time on the event loop after which others get a turn."""


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
_AT_A_TIME = 2


async def in_turn(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a call that may read thousands of directories or files in a worker thread.

    Few of them run at a time, so that threads are left for everything else. A call goes on when its
    caller is cancelled, and keeps its place until it returns.
    """
    turns = _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_AT_A_TIME))
    await turns.acquire()
    running = in_thread(call, *args, **kwargs)

    def release(ended: asyncio.Future[T]) -> None:
        turns.release()
        if not ended.cancelled():
            ended.exception()  # retrieved, also if nobody waits for it any more

    running.add_done_callback(release)
    return await asyncio.shield(running)


def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Run a blocking call in a worker thread; it begins now, before the future is awaited."""
    return asyncio.get_running_loop().run_in_executor(None, partial(call, *args, **kwargs))


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield the items; after `TURN_SECONDS` of work on them the event loop serves others first."""
    began = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - began >= TURN_SECONDS:
            await asyncio.sleep(0)
            began = time.perf_counter()
