"""Conditions, alone and combined, with a fake clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from mayfly.registry.activity import Activity
from mayfly.registry.ending import EndKind, EndReason, Latch
from mayfly.registry.lifecycle.conditions import (
    AllOf,
    AnyOf,
    Condition,
    IdleFor,
    MaxLifetime,
    combine,
)
from tests.support.beside import run_what_is_ready
from tests.support.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def activity(clock: FakeClock) -> Activity:
    return Activity(clock.now)


@contextlib.asynccontextmanager
async def waiting(condition: Condition) -> AsyncIterator[asyncio.Task[EndReason]]:
    """A condition that is waited for while the block runs."""
    task = asyncio.create_task(condition.wait())
    await run_what_is_ready()
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def request(activity: Activity, *, pull: bool = False) -> None:
    """A whole request that takes no time."""
    activity.begin()
    if pull:
        activity.pulled()
    activity.end()


async def test_idle_is_armed_by_the_first_pull(clock: FakeClock, activity: Activity) -> None:
    """Idle ends the server only after a first pull."""
    async with waiting(IdleFor(activity, clock, 60, after_first_pull=True)) as idle:
        await clock.tick(3600)
        request(activity)
        await clock.tick(3600)
        assert not idle.done()
        request(activity, pull=True)
        await clock.tick(59)
        assert not idle.done()
        await clock.tick(1)
        assert (await idle).kind is EndKind.IDLE


async def test_idle_never_during_a_transfer(clock: FakeClock, activity: Activity) -> None:
    """A transfer of ten times the timeout is not idle; the timeout begins at its end."""
    async with waiting(IdleFor(activity, clock, 60, after_first_pull=True)) as idle:
        activity.pulled()
        activity.begin()
        await clock.tick(600)
        assert not idle.done()
        activity.begin()
        activity.end()
        await clock.tick(600)
        assert not idle.done()
        activity.end()
        await clock.tick(59)
        assert not idle.done()
        await clock.tick(1)
        assert idle.done()


async def test_idle_between_retries(clock: FakeClock, activity: Activity) -> None:
    """Retries that come before the timeout is over keep the server alive, as long as they come."""
    async with waiting(IdleFor(activity, clock, 301, after_first_pull=True)) as idle:
        request(activity, pull=True)
        for _ in range(10):
            await clock.tick(300)
            assert not idle.done()
            request(activity)
        await clock.tick(301)
        assert idle.done()


async def test_unused_ends_with_the_first_pull(clock: FakeClock, activity: Activity) -> None:
    """The unused timeout counts from the last request and ends with the first pull."""
    async with waiting(IdleFor(activity, clock, 60, after_first_pull=False)) as unused:
        await clock.tick(50)
        request(activity)
        await clock.tick(50)
        assert not unused.done()
        request(activity, pull=True)
        await clock.tick(3600)
        assert not unused.done()


async def test_unused(clock: FakeClock, activity: Activity) -> None:
    """Without any request, the unused timeout ends the server."""
    async with waiting(IdleFor(activity, clock, 60, after_first_pull=False)) as unused:
        await clock.tick(60)
        assert (await unused).kind is EndKind.UNUSED


async def test_waiting_for_idle_does_not_poll(clock: FakeClock, activity: Activity) -> None:
    """Not armed or in use, idle waits for an event; armed, for one moment."""
    async with waiting(IdleFor(activity, clock, 60, after_first_pull=True)):
        assert clock.sleeping == 0
        activity.begin()
        activity.pulled()
        await run_what_is_ready()
        assert clock.sleeping == 0
        activity.end()
        await run_what_is_ready()
        assert clock.sleeping == 1


async def test_max_lifetime(clock: FakeClock) -> None:
    """The deadline counts from the making of the condition."""
    deadline = MaxLifetime(clock, 3600)
    await clock.tick(3000)
    async with waiting(deadline) as over:
        await clock.tick(599)
        assert not over.done()
        await clock.tick(1)
        assert (await over).text == "the maximum lifetime of 1h is over"


async def test_latch_keeps_the_first_reason() -> None:
    """A latch that is set keeps its first reason."""
    latch = Latch()
    assert not latch.holds()
    latch.set(EndReason(EndKind.STOP, "first"))
    latch.set(EndReason(EndKind.STOP, "second"))
    assert (await latch.wait()).text == "first"
    assert latch.holds()


async def test_any_of_prefers_the_earlier_in_order() -> None:
    """Of two conditions met at once, the first in the list gives the reason."""
    one, other = Latch(), Latch()
    other.set(EndReason(EndKind.COVERED, ""))
    one.set(EndReason(EndKind.SIGNAL, ""))
    assert (await AnyOf([one, other]).wait()).kind is EndKind.SIGNAL


async def test_any_of_hands_on_a_failure() -> None:
    """The failure of a condition is raised."""

    class Broken(Latch):
        async def wait(self) -> EndReason:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await AnyOf([Broken(), Latch()]).wait()


async def test_all_of_gives_the_last() -> None:
    """`AllOf` gives the reason of the condition met last."""
    one, other = Latch(), Latch()
    both = asyncio.create_task(AllOf([one, other]).wait())
    other.set(EndReason(EndKind.COVERED, ""))
    await run_what_is_ready()
    assert not both.done()
    one.set(EndReason(EndKind.COMMAND, ""))
    assert (await both).kind is EndKind.COMMAND


async def test_all_of_means_at_the_same_time(clock: FakeClock, activity: Activity) -> None:
    """An idle hour in the middle of the upgrade does not count at its end."""
    covered = Latch()
    idle = IdleFor(activity, clock, 60, after_first_pull=True)
    async with waiting(AllOf([idle, covered])) as both:
        request(activity, pull=True)
        await clock.tick(3600)
        activity.begin()
        covered.set(EndReason(EndKind.COVERED, ""))
        await clock.tick(3600)
        assert not both.done()
        activity.end()
        await clock.tick(60)
        assert both.done()


async def test_until_all_with_a_hard_deadline(clock: FakeClock, activity: Activity) -> None:
    """The deadline ends the server though not all of the others are met."""
    idle = IdleFor(activity, clock, 60, after_first_pull=True)
    ends = combine([MaxLifetime(clock, 100)], [idle, Latch()], every=True, command=None)
    async with waiting(ends) as over:
        request(activity, pull=True)
        await clock.tick(99)
        assert not over.done()
        await clock.tick(1)
        assert (await over).kind is EndKind.DEADLINE


async def test_until_first(clock: FakeClock, activity: Activity) -> None:
    """Without `all`, idle ends the server whatever coverage says."""
    idle = IdleFor(activity, clock, 60, after_first_pull=True)
    async with waiting(combine([], [Latch(), idle], every=False, command=None)) as over:
        request(activity, pull=True)
        await clock.tick(60)
        assert (await over).kind is EndKind.IDLE


async def test_run_ends_with_its_command() -> None:
    """Without soft conditions, the command's end ends the server."""
    command = Latch()
    async with waiting(combine([Latch()], [], every=False, command=command)) as over:
        command.set(EndReason(EndKind.COMMAND, "", 0))
        await run_what_is_ready()
        assert (await over).kind is EndKind.COMMAND


async def test_run_waits_for_coverage_after_its_command() -> None:
    """After a successful command the server stays while nodes lack images."""
    command, covered = Latch(), Latch()
    async with waiting(combine([], [covered], every=False, command=command)) as over:
        command.set(EndReason(EndKind.COMMAND, "", 0))
        await run_what_is_ready()
        assert not over.done()
        covered.set(EndReason(EndKind.COVERED, ""))
        await run_what_is_ready()
        assert (await over).kind is EndKind.COVERED


async def test_run_waits_for_its_command_after_coverage() -> None:
    """Coverage does not end the server while the command runs."""
    command, covered = Latch(), Latch()
    async with waiting(combine([], [covered], every=False, command=command)) as over:
        covered.set(EndReason(EndKind.COVERED, ""))
        await run_what_is_ready()
        assert not over.done()


async def test_run_ends_at_once_when_its_command_fails() -> None:
    """A failed command ends the server at once."""
    command, covered = Latch(), Latch()
    async with waiting(combine([], [covered], every=False, command=command)) as over:
        command.set(EndReason(EndKind.COMMAND, "", 7))
        await run_what_is_ready()
        assert (await over).exit_code == 7


def test_holds_of_several() -> None:
    """`AnyOf` and `AllOf` know whether they are met now."""
    met, unmet = Latch(), Latch()
    met.set(EndReason(EndKind.STOP, ""))
    assert AnyOf([met, unmet]).holds()
    assert not AllOf([met, unmet]).holds()
