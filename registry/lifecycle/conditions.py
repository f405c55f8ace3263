"""Conditions that end a server, and their combination into one.

A condition is a level, not an edge: `Condition.wait` returns the reason once the condition is met,
`Condition.holds` says whether it is met now. Most conditions stay met. "Idle" does not: a client
may come back while another condition is waited for, and then `AllOf` waits again.

    AnyOf   met when one is; its reason is that one's
    AllOf   met when all are at the same time; its reason is that of the last to be met

Hard conditions (the deadline, signals, stop in all its forms, no client at all) end the server
whatever the others say, so they stand beside an `AllOf`, never inside: `combine` does that.
Nothing here polls; each condition waits for an event or for the one moment at which it could be
met.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from mayfly.registry.activity import Activity
from mayfly.registry.clock import Clock, first_done
from mayfly.registry.durations import exact
from mayfly.registry.ending import EndKind, EndReason, Latch


class Condition(Protocol):
    """A condition that can end the server. It starts nothing before `wait` is called."""

    async def wait(self) -> EndReason:
        """Return the reason once the condition is met. May be cancelled and called again."""

    def holds(self) -> bool:
        """Whether the condition is met now."""


class IdleFor:
    """No request and no transfer for some time, before or after the first pull.

    Never met while a request is in flight, however long that takes.

    Args:
        activity: of the server.
        clock: the one whose `now` the activity uses.
        seconds: without activity.
        after_first_pull: `--idle-timeout` if true, `--unused-timeout` if false.
    """

    def __init__(
        self, activity: Activity, clock: Clock, seconds: float, *, after_first_pull: bool
    ) -> None:
        self._activity = activity
        self._clock = clock
        self._seconds = seconds
        self._after_first_pull = after_first_pull

    async def wait(self) -> EndReason:
        while not self.holds():
            changed = self._activity.changed.next()
            if self._is_armed() and not self._activity.requests:
                left = self._activity.last + self._seconds - self._clock.now()
                await first_done(changed, self._clock.sleep(left))
            else:
                await first_done(changed)
        duration = exact(self._seconds)
        if self._after_first_pull:
            kind, text = EndKind.IDLE, f"no request and no transfer for {duration}"
        else:
            kind, text = EndKind.UNUSED, f"nothing was pulled, and no request came for {duration}"
        return EndReason(kind, text, detail={"seconds": self._seconds})

    def holds(self) -> bool:
        return self._is_armed() and self._activity.idle_for() >= self._seconds

    def _is_armed(self) -> bool:
        return (self._activity.first_pull is not None) == self._after_first_pull


class MaxLifetime:
    """The hard deadline: ``seconds`` after the start of the run, ``elapsed`` of which are over."""

    def __init__(self, clock: Clock, seconds: float, elapsed: float = 0.0) -> None:
        self._clock = clock
        self._seconds = seconds
        self._end = clock.now() + seconds - elapsed

    async def wait(self) -> EndReason:
        while not self.holds():
            await self._clock.sleep(self._end - self._clock.now())
        text = f"the maximum lifetime of {exact(self._seconds)} is over"
        return EndReason(EndKind.DEADLINE, text, detail={"seconds": self._seconds})

    def holds(self) -> bool:
        return self._clock.now() >= self._end


class FailedCommand:
    """The command of `mayfly run` ended with an exit code other than 0."""

    def __init__(self, command: Latch) -> None:
        self._command = command
        self._failed = False

    async def wait(self) -> EndReason:
        reason = await self._command.wait()
        self._failed = reason.exit_code != 0
        if not self._failed:
            await asyncio.Event().wait()
        return reason

    def holds(self) -> bool:
        return self._failed


class AnyOf:
    """Met when one of several conditions is; of simultaneous ones the first in order counts."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._conditions = conditions

    async def wait(self) -> EndReason:
        tasks = [asyncio.create_task(one.wait()) for one in self._conditions]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(task.result() for task in tasks if task.done())
        finally:
            await _cancel(tasks)

    def holds(self) -> bool:
        return any(one.holds() for one in self._conditions)


class AllOf:
    """Met when all of several conditions are at the same time."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._conditions = conditions

    async def wait(self) -> EndReason:
        while True:
            last = await self._wait_for_each()
            if self.holds():
                return last

    async def _wait_for_each(self) -> EndReason:
        tasks = [asyncio.create_task(one.wait()) for one in self._conditions]
        try:
            for met in asyncio.as_completed(tasks):
                last = await met
            return last
        finally:
            await _cancel(tasks)

    def holds(self) -> bool:
        return all(one.holds() for one in self._conditions)


async def _cancel(tasks: list[asyncio.Task[EndReason]]) -> None:
    for task in tasks:
        task.cancel()
    # Collected here, so that asyncio does not log the failure of a condition beside the winner.
    await asyncio.gather(*tasks, return_exceptions=True)


def combine(
    hard: Sequence[Condition], soft: Sequence[Condition], *, every: bool, command: Latch | None
) -> Condition:
    """Return the one condition that ends a server.

    Args:
        hard: each ends the server at once.
        soft: conditions that show the upgrade is complete: idle, covered.
        every: `--until all`: all soft conditions must be met, not one of them.
        command: the end of the command of `mayfly run`. Soft conditions count only after it, since
            ending under a command that still works would break the upgrade it performs. A command
            that fails ends the server.
    """
    complete: list[Condition] = []
    if soft:
        complete.append(AllOf(soft) if every else AnyOf(soft))
    if command is not None:
        complete.append(command)
    if len(complete) == 2:
        complete = [AllOf(complete)]
    failed = [FailedCommand(command)] if command is not None else []
    return AnyOf([*hard, *failed, *complete])
