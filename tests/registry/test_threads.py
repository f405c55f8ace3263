"""Calls in worker threads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mayfly.registry.threads import in_turn


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
        go_on.wait(10)
        with lock:
            running -= 1
        if fails:
            raise ValueError
        return 1

    tasks = [asyncio.create_task(in_turn(work, number % 2 == 1)) for number in range(20)]
    assert await asyncio.to_thread(lambda: two.wait(10))
    for task in tasks[:10]:
        task.cancel()
    # Those that were cancelled while they ran still do.
    for _ in range(100):
        await asyncio.sleep(0)
    assert most == running == 2
    go_on.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found[:10]] == [asyncio.CancelledError] * 10
    assert [one if one == 1 else type(one) for one in found[10:]] == [1, ValueError] * 5
    assert most == 2


async def test_errors_pass() -> None:
    """What the call raises is raised."""
    with pytest.raises(ZeroDivisionError):
        await in_turn(lambda: 1 / 0)
