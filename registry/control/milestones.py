"""Log nodes that become complete, and those that become incomplete again."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from mayfly.registry import log
from mayfly.registry.clock import Clock, first_done
from mayfly.registry.control import table
from mayfly.registry.notification import Notification

if TYPE_CHECKING:
    from mayfly.registry.control.report import CoverageRecord
    from mayfly.registry.coverage.pulls import Pulls


_LOOK_SECONDS = 1.0
"""Between two looks; a hundred nodes with a hundred images take some 30 ms each."""


class Milestones:
    """Compares coverage with the previous look.

    Args:
        read: returns the coverage now.
        explore: awaited before each look of `follow`, so that the coverage is exact.
    """

    def __init__(
        self, read: Callable[[], CoverageRecord], explore: Callable[[], Awaitable[None]]
    ) -> None:
        self._read = read
        self._explore = explore
        self._complete: set[str] = set()
        self._ended = False

    def end(self) -> None:
        """Look for the last time, before the report."""
        self.look()
        self._ended = True

    def look(self) -> None:
        """Log each node that has become complete, or incomplete again, since the last look."""
        if self._ended:
            return
        record = self._read()
        total = f"{record['nodes_covered']} of {record['nodes_wanted']} nodes"
        for row in table.node_rows(record):
            counts: dict[str, Any] = {
                "node": row.name,
                "images": row.has,
                "images_wanted": row.wanted,
                "nodes": record["nodes_covered"],
                "nodes_wanted": record["nodes_wanted"],
            }
            images = f"{row.name}: {row.has} of {row.wanted} images"
            if not row.missing and row.name not in self._complete:
                self._complete.add(row.name)
                log.event(logging.INFO, "node_complete", f"{images}; {total}", **counts)
            elif row.missing and row.name in self._complete:
                self._complete.discard(row.name)
                text = f"{images}, no longer all: {', '.join(table.missing_images(row))}; {total}"
                log.event(logging.WARNING, "node_incomplete", text, **counts)

    async def follow(self, changed: Notification, pulls: Pulls, clock: Clock) -> None:
        """Look whenever a fact or the end of a pull may have changed something, until cancelled."""
        while True:
            await self._explore()
            self.look()
            happened, settles = changed.next(), pulls.settles_in()
            if settles is None:
                await first_done(happened)
            else:
                await first_done(happened, clock.sleep(settles))
            await clock.sleep(_LOOK_SECONDS)
