"""What ends a server: conditions, and how several make one.

A condition is a level, not an edge. `Condition.wait` comes back when it is met, with the reason;
`Condition.holds` says whether it is met now. Most stay met for good. "Idle" does not: somebody may
come back while another condition is waited for, and then `AllOf` waits again.

    AnyOf   met when one is; its reason is that one's
    AllOf   met when all are at the same time; its reason is that of the last to be met

Hard conditions (the deadline, signals, stop in all its forms, nobody ever came) end the server
whatever the others say, so they are put beside an `AllOf`, never inside: `ends_when` does that.
Nothing here polls; each waits for an event or for the one moment at which it could be met.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from mayfly.registry.clock import Clock, first_done
from mayfly.registry.durations import exact
from mayfly.registry.lifecycle.activity import Activity


class Kind(StrEnum):
    """What ended the server, in the report's words."""

    IDLE = "idle"
    UNUSED = "unused"
    DEADLINE = "deadline"
    COVERED = "covered"
    COMMAND = "command"
    STOP = "stop"
    STOP_FILE = "stop-file"
    SIGNAL = "signal"
    PARENT = "parent"
    STANDARD_INPUT = "standard-input"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the server ends.

    Attributes:
        kind: for programs.
        text: for people, fit to follow "stopping: ".
        exit_code: the process's, as far as the reason alone decides it (CONTRACT.md).
        detail: the same as ``text`` as data, for programs.
    """

    kind: Kind
    text: str
    exit_code: int = 0
    detail: Mapping[str, str | float] = field(default_factory=dict)


class Condition(Protocol):
    """Something that can end the server. Nothing is begun before `wait` is called."""

    async def wait(self) -> Reason:
        """Come back when it is met, at once if it is now. May be cancelled and called again."""

    def holds(self) -> bool:
        """Whether it is met now."""


class Quiet:
    """No request and no transfer for some time, before or after the first pull.

    Never met while a request is in flight, however long that takes.

    Args:
        activity: of the server.
        clock: whose `now` the activity was made with.
        seconds: of quiet that are needed.
        after_first_pull: `--idle-timeout` if true, `--unused-timeout` if false.
    """

    def __init__(
        self, activity: Activity, clock: Clock, seconds: float, *, after_first_pull: bool
    ) -> None:
        self._activity = activity
        self._clock = clock
        self._seconds = seconds
        self._after = after_first_pull

    async def wait(self) -> Reason:
        while not self.holds():
            changed = self._activity.changed.next()
            if self._armed() and not self._activity.requests:
                left = self._activity.last + self._seconds - self._clock.now()
                await first_done(changed, self._clock.sleep(left))
            else:
                await first_done(changed)
        quiet = exact(self._seconds)
        if self._after:
            text, kind = f"no request and no transfer for {quiet}", Kind.IDLE
        else:
            text, kind = f"nothing was pulled, and no request came for {quiet}", Kind.UNUSED
        return Reason(kind, text, detail={"seconds": self._seconds})

    def holds(self) -> bool:
        return self._armed() and self._activity.idle_for() >= self._seconds

    def _armed(self) -> bool:
        return (self._activity.first_pull is not None) == self._after


class MaxLifetime:
    """The hard deadline, ``seconds`` after the run began, which was ``elapsed`` seconds ago."""

    def __init__(self, clock: Clock, seconds: float, elapsed: float = 0.0) -> None:
        self._clock = clock
        self._seconds = seconds
        self._end = clock.now() + seconds - elapsed

    async def wait(self) -> Reason:
        while not self.holds():
            await self._clock.sleep(self._end - self._clock.now())
        text = f"the maximum lifetime of {exact(self._seconds)} is over"
        return Reason(Kind.DEADLINE, text, detail={"seconds": self._seconds})

    def holds(self) -> bool:
        return self._clock.now() >= self._end


class Once:
    """Met when somebody says so: a signal handler, the control socket, the command's end."""

    def __init__(self) -> None:
        self._reason: Reason | None = None
        self._met = asyncio.Event()

    def set(self, reason: Reason) -> None:
        """Meet it; the first reason stays."""
        if self._reason is None:
            self._reason = reason
            self._met.set()

    async def wait(self) -> Reason:
        await self._met.wait()
        assert self._reason is not None
        return self._reason

    def holds(self) -> bool:
        return self._reason is not None


class Unsuccessful:
    """Another condition was met with an exit code that is not 0."""

    def __init__(self, condition: Once) -> None:
        self._condition = condition
        self._failed = False

    async def wait(self) -> Reason:
        reason = await self._condition.wait()
        self._failed = reason.exit_code != 0
        if not self._failed:
            await asyncio.Event().wait()
        return reason

    def holds(self) -> bool:
        return self._failed


class AnyOf:
    """Met when one of several is. If some are at the same moment, the first in order counts."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._conditions = conditions

    async def wait(self) -> Reason:
        tasks = [asyncio.create_task(one.wait()) for one in self._conditions]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(task.result() for task in tasks if task.done())
        finally:
            await _end(tasks)

    def holds(self) -> bool:
        return any(one.holds() for one in self._conditions)


class AllOf:
    """Met when all of several are at the same time."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._conditions = conditions

    async def wait(self) -> Reason:
        while True:
            last = await self._each_once()
            if self.holds():
                return last

    async def _each_once(self) -> Reason:
        tasks = [asyncio.create_task(one.wait()) for one in self._conditions]
        try:
            for met in asyncio.as_completed(tasks):
                last = await met
            return last
        finally:
            await _end(tasks)

    def holds(self) -> bool:
        return all(one.holds() for one in self._conditions)


async def _end(tasks: list[asyncio.Task[Reason]]) -> None:
    for task in tasks:
        task.cancel()
    # Collected here, so that a condition which failed beside the winner is not reported as lost.
    await asyncio.gather(*tasks, return_exceptions=True)


async def first_of(conditions: Sequence[Condition]) -> Reason:
    """Wait for the first of several; the earlier in order counts if two come together."""
    return await AnyOf(conditions).wait()


async def all_of(conditions: Sequence[Condition]) -> Reason:
    """Wait until several are met at the same time; the reason is that of the last."""
    return await AllOf(conditions).wait()


def ends_when(
    hard: Sequence[Condition], soft: Sequence[Condition], *, every: bool, command: Once | None
) -> Condition:
    """The one condition that ends a server.

    Args:
        hard: each ends it at once.
        soft: the upgrade is over: idle, covered.
        every: `--until all`: the soft ones must all be met, not one of them.
        command: the end of the command of `mayfly run`. The soft ones count only after it, since
            ending under a command that still works would break the upgrade that it is. One that
            failed ends everything.
    """
    over: list[Condition] = []
    if soft:
        over.append(AllOf(soft) if every else AnyOf(soft))
    if command is not None:
        over.append(command)
    if len(over) == 2:
        over = [AllOf(over)]
    failed = [Unsuccessful(command)] if command is not None else []
    return AnyOf([*hard, *failed, *over])
