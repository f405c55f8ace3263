"""Keeping the disk of a mirror between two thresholds (`storage.upkeep.evict`)."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.threads import in_thread
from mayfly.storage.errors import StorageError
from mayfly.storage.text import counted

if TYPE_CHECKING:
    from mayfly.storage.upkeep.evict import Freed, InUse, IsProtected
    from mayfly.storage.upkeep.maintainable import Maintainable

logger = logging.getLogger("mayfly")

CHECK_SECONDS = 1.0
"""Between two looks at the free space."""

RETRY_SECONDS = 60.0
"""After an eviction that found nothing to evict: each reads every manifest of the store."""


@dataclass(frozen=True, slots=True)
class SpaceRules:
    """Thresholds in percent, and the images that stay; see `storage.upkeep.evict.free`."""

    high: float
    low: float
    protected: IsProtected


def space_rules(high: float | None, low: float | None, protect: Path | None) -> SpaceRules | None:
    """Return the rules that an operator set; None without any.

    Args:
        high: of ``--gc-high``.
        low: of ``--gc-low``.
        protect: of ``--protect``.

    Raises:
        ConfigError: they contradict each other, or the list of ``--protect`` cannot be read.
    """
    if high is None:
        if low is not None or protect is not None:
            raise ConfigError("--gc-low and --protect need --gc-high")
        return None
    from mayfly.storage.upkeep.evict import thresholds, unprotected

    try:
        high, low = thresholds(high, low)
    except ValueError as error:
        raise ConfigError(f"--gc-high, --gc-low: {error}") from None
    if protect is None:
        return SpaceRules(high, low, unprotected)
    from mayfly.registry.upstream.protected import Protected

    return SpaceRules(high, low, Protected(protect))


class Evictions:
    """Evicts images of upstreams from a store, one eviction at a time.

    Args:
        store: to evict from.
        rules: see `SpaceRules`.
        grace: seconds; content that was used within them stays.
        in_use: content that is being sent; called from a thread.
    """

    def __init__(self, store: Maintainable, rules: SpaceRules, grace: float, in_use: InUse) -> None:
        self._store = store
        self._rules = rules
        self._grace = grace
        self._in_use = in_use
        self._lock = asyncio.Lock()
        self._is_short = False
        self._rests_until = 0.0
        """Monotonic; nothing could be evicted, and is not looked for until then."""

    async def watch(self) -> None:
        """Evict as soon as the disk is fuller than it may be, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self._free(self._rules.high, self._rules.low)

    async def make_room(self, size: int) -> None:
        """Evict until ``size`` more bytes fit, if that is possible."""
        from mayfly.storage.upkeep.evict import room_for

        low = await in_thread(room_for, self._store, size)
        if low > 0:
            await self._free(low, min(low, self._rules.low))

    async def _free(self, high: float, low: float) -> None:
        if time.monotonic() < self._rests_until:
            return
        from mayfly.storage.upkeep import evict

        rules = self._rules
        free = partial(
            evict.free, self._store, high, low, self._grace, rules.protected, self._in_use
        )
        try:
            async with self._lock:
                found: Freed = await in_thread(free)
        except (OSError, StorageError) as error:
            logger.warning("eviction failed: %s", error)
            return
        if found.evicted:
            logger.info(
                "evicted %s, least recently pulled first: the disk was %.0f%% full, and is %.0f%%",
                counted(len(found.evicted), "manifest"),
                found.before.percent,
                found.after.percent,
            )
        if not found.evicted and found.after.percent >= high:
            self._rests_until = time.monotonic() + RETRY_SECONDS
        is_short = found.after.percent >= rules.high
        if is_short and not self._is_short:
            logger.warning(
                "the disk is %.0f%% full, and nothing more can be evicted: all else was pushed, is "
                "protected, or was used within --gc-grace",
                found.after.percent,
            )
        self._is_short = is_short
