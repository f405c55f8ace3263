"""Calls in worker threads."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mayfly.registry.threads import (
    _MIN_WAITING,
    Client,
    Turns,
    in_thread_for_many,
    in_turn,
    uncancelled,
)
from tests.support.beside import run_what_is_ready
from tests.support.process import PATIENCE


async def test_few_at_a_time() -> None:
    """However many ask, two run; one that nobody waits for any more keeps its place, too."""
    go_on, two = threading.Event(), threading.Event()
    running, most = 0, 0
    lock = threading.Lock()

    def work(fails: bool) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 2:
                two.set()
        go_on.wait(PATIENCE)
        with lock:
            running -= 1
        if fails:
            raise ValueError
        return 1

    tasks = [asyncio.create_task(in_turn("client", work, number % 2 == 1)) for number in range(20)]
    assert await asyncio.to_thread(lambda: two.wait(PATIENCE))
    for task in tasks[:10]:
        task.cancel()
    # Those that were cancelled while they ran still do.
    await run_what_is_ready(100)
    assert most == running == 2
    go_on.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found[:10]] == [asyncio.CancelledError] * 10
    assert [one if one == 1 else type(one) for one in found[10:]] == [1, ValueError] * 5
    assert most == 2


async def test_errors_pass() -> None:
    """What the call raises is raised."""
    with pytest.raises(ZeroDivisionError):
        await in_turn("client", lambda: 1 / 0)


async def test_clients_take_turns() -> None:
    """Whatever one client has waiting, another waits for one of its calls, not for all."""
    turns, order = Turns(1), list[str]()

    async def use(client: str) -> None:
        await turns.take(client)
        order.append(client)
        await asyncio.sleep(0)
        turns.leave(client)

    await turns.take("busy")
    tasks = [asyncio.create_task(use("busy")) for _ in range(50)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(use(client)) for client in ("late", "later", "late")]
    await asyncio.sleep(0)
    turns.leave("busy")
    await asyncio.gather(*tasks)
    assert order[:7] == ["busy", "late", "later", "busy", "late", "busy", "busy"]
    assert len(order) == len(tasks)


async def test_turns_keep_nothing_of_clients_that_left() -> None:
    """A waiter that is cancelled is forgotten, and one cancelled as its turn comes passes it on."""
    turns = Turns(1)
    await turns.take("first")
    tasks = [asyncio.create_task(turns.take(f"c{number % 7}")) for number in range(100)]
    await asyncio.sleep(0)
    turns.leave("first")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not turns._waiting
    await asyncio.wait_for(turns.take("next"), PATIENCE)
    assert [*turns._held] == ["next"]


async def test_a_client_never_has_all_turns() -> None:
    """However many it waits for, and although some are free, another gets one at once."""
    turns = Turns(4, each=2)
    busy = [asyncio.create_task(turns.take("busy")) for _ in range(10)]
    await asyncio.sleep(0)
    assert sum(task.done() for task in busy) == 2
    for client in ("late", "later"):
        await asyncio.wait_for(turns.take(client), PATIENCE)
    last = asyncio.create_task(turns.take("last"))
    await asyncio.sleep(0)
    assert not last.done()
    turns.leave("late")
    await asyncio.wait_for(last, PATIENCE)
    # Its own turns go to its own calls, one by one.
    turns.leave("later")
    turns.leave("busy")
    await asyncio.sleep(0)
    assert sum(task.done() for task in busy) == 3
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)
    assert not turns._waiting


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("is_first", [True, False])
async def test_exception_of_an_abandoned_future(turns: int, is_first: bool) -> None:
    """Whether it comes before or after a cancellation, asyncio has nothing to log."""
    logged: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: logged.append(context))

    async def abandon() -> None:
        future: asyncio.Future[None] = loop.create_future()
        waiting = asyncio.create_task(uncancelled(future))
        await asyncio.sleep(0)
        if is_first:
            future.set_exception(ValueError())
        # Between the steps by which the exception reaches the waiter.
        await run_what_is_ready(turns)
        waiting.cancel()
        if not is_first:
            await asyncio.sleep(0)
            future.set_exception(ValueError())
        with pytest.raises((asyncio.CancelledError, ValueError)):
            await waiting

    await abandon()
    gc.collect()
    assert logged == []


def test_exception_that_comes_as_the_loop_ends() -> None:
    """A call that fails when nobody waits any more is logged by no handler of asyncio."""
    logged: list[dict[str, object]] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: logged.append(context))

    go_on = threading.Event()

    def fail() -> None:
        go_on.wait(PATIENCE)
        raise ValueError

    async def begin(threads: ThreadPoolExecutor) -> asyncio.Future[None]:
        return in_thread_for_many(threads, fail)

    with ThreadPoolExecutor(1) as threads:
        running = loop.run_until_complete(begin(threads))
        go_on.set()
    # One iteration: the outcome is set, and what is called back by it is not called any more.
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert running.done()
    loop.close()
    del running
    gc.collect()
    assert logged == []
    # As long as it is read, the exception is there.
    with pytest.raises(ValueError):
        asyncio.run(_waits_for(fail))


async def _waits_for(call: Callable[[], None]) -> None:
    await uncancelled(in_thread_for_many(None, call))


async def test_exception_that_needs_no_garbage_collector() -> None:
    """It does not hold the future that holds it."""

    def fail() -> None:
        raise ValueError

    gc.disable()
    try:
        running = in_thread_for_many(None, fail)
        future = weakref.ref(running)
        await asyncio.wait([running])
        del running
        await asyncio.sleep(0.01)
        assert future() is None
    finally:
        gc.enable()


async def test_clients_that_leave() -> None:
    """Requests of clients that have left take no turn, and wait for none, however many come."""
    turns, gone, begun = Turns(1), set[int](), list[int]()

    async def ask(number: int) -> None:
        async with turns.turn(Client("client", lambda: number in gone)):
            begun.append(number)

    await turns.take("another")
    count = 10 * _MIN_WAITING
    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(ask(number)))
        await asyncio.sleep(0)
        if number % _MIN_WAITING:
            gone.add(number)
    assert sum(map(len, turns._waiting.values())) <= 2 * _MIN_WAITING
    turns.leave("another")
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert begun == [number for number in range(count) if number not in gone]
    assert sum(isinstance(one, ConnectionResetError) for one in found) == len(gone)
    assert not turns._waiting
    async with turns.turn("another"):
        """The turns of those that left are free."""


async def test_cancelled_when_the_client_is_found_gone() -> None:
    """A request that is cancelled in the turn in which it is dropped gives nothing back."""
    turns = Turns(1)
    await turns.take("one")
    waiting = asyncio.create_task(turns.take(Client("two", lambda: True)))
    await asyncio.sleep(0)
    turns.leave("one")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await turns.take("one")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await turns.take("three")
