"""Why a server ends: the reason, and the latch by which any part of the server gives one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class EndKind(StrEnum):
    """The reason why the server ended, as the report names it."""

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
    PREFETCH = "prefetch"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EndReason:
    """Why the server ends.

    Attributes:
        kind: for programs.
        text: for people, fit to follow "stopping: ".
        exit_code: the process's, as far as the reason alone decides it (docs/commands.md).
        detail: the same as ``text`` as data, for programs.
    """

    kind: EndKind
    text: str
    exit_code: int = 0
    detail: Mapping[str, str | float] = field(default_factory=dict)


class Latch:
    """A condition (`lifecycle.conditions`) that is met by `set` and stays met."""

    def __init__(self) -> None:
        self._reason: EndReason | None = None
        self._met = asyncio.Event()

    def set(self, reason: EndReason) -> None:
        """Meet the condition; only the first reason counts."""
        if self._reason is None:
            self._reason = reason
            self._met.set()

    async def wait(self) -> EndReason:
        """Return the reason once the condition is met."""
        await self._met.wait()
        assert self._reason is not None
        return self._reason

    def holds(self) -> bool:
        """Whether the condition is met."""
        return self._reason is not None
