"""The order of logins keeps nothing of attempts that were given up."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from mayfly.auth.throttle import Throttle
from mayfly.registry.access.turns import NewestFirstLock, WorkerSlots
from tests.auth.clock import Clock


async def _give_up(waiting: list[AbstractAsyncContextManager[None]]) -> None:
    """Wait in each and be cancelled, before anybody had a turn."""

    async def wait(one: AbstractAsyncContextManager[None]) -> None:
        async with one:
            raise AssertionError("it had a turn")

    tasks = [asyncio.create_task(wait(one)) for one in waiting]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_slots_keep_no_attempt_that_was_given_up() -> None:
    """However many networks an attacker has, while a worker is busy for long."""
    slots = WorkerSlots(1, Throttle(Clock()))
    async with slots.slot("busy", trusted=False):
        for trusted in (False, True):
            await _give_up([slots.slot(f"n{i % 30}", trusted=trusted) for i in range(300)])
        assert not slots._networks
        assert not slots._trusted
    async with slots.slot("next", trusted=False):
        pass


async def test_networks_are_forgotten_with_their_last_attempt() -> None:
    """One that had its turn leaves no empty queue behind."""
    slots = WorkerSlots(1, Throttle(Clock()))

    async def enter(network: str) -> None:
        async with slots.slot(network, trusted=False):
            await asyncio.sleep(0)

    await asyncio.gather(*(enter(f"n{number}") for number in range(20)))
    assert not slots._networks


async def test_lock_keeps_no_attempt_that_was_given_up() -> None:
    """Nor does the lock of one name and network."""
    lock = NewestFirstLock(1000)
    async with lock.turn():
        await _give_up([lock.turn() for _ in range(100)])
        assert not lock._waiting
    async with lock.turn():
        pass
