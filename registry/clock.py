"""Clocks: the machine's, and the Protocol that tests implement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol


class Clock(Protocol):
    """Tells the time and sleeps."""

    def now(self) -> float:
        """Return monotonic seconds.

        All processes share their zero, as long as `boot_id` stays the same.
        """

    def wall(self) -> float:
        """Return Unix seconds."""

    async def sleep(self, seconds: float) -> None:
        """Return after some seconds."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def boot_id() -> str | None:
    """Return the ID of the machine's boot; None if the kernel has none (proc(5))."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


async def first_done(*waiting: asyncio.Future[Any] | Coroutine[Any, Any, Any]) -> None:
    """Wait until one of several is done; then coroutines are cancelled, futures are not.

    Raises:
        Exception: of a coroutine that failed.
    """
    tasks = [one for one in map(_task, waiting) if one is not None]
    futures = [one for one in waiting if isinstance(one, asyncio.Future)]
    try:
        await asyncio.wait([*tasks, *futures], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()


def _task(
    waiting: asyncio.Future[Any] | Coroutine[Any, Any, Any],
) -> asyncio.Task[Any] | None:
    return asyncio.create_task(waiting) if isinstance(waiting, Coroutine) else None
