"""Logs the nodes that become complete, and those that no longer are."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from mayfly.registry import log
from mayfly.registry.clock import Clock, first_done
from mayfly.registry.control import table

if TYPE_CHECKING:
    from mayfly.registry.control.report import CoverageRecord
    from mayfly.registry.coverage.ledger import Ledger
    from mayfly.registry.coverage.pulls import Pulls


_LOOK_EVERY = 1.0
"""Seconds between two looks; a hundred nodes with a hundred images take some 30 ms each."""


class Milestones:
    """Compares coverage with the last time it was looked at.

    Args:
        read: gives the coverage of this moment.
        explore: awaited before each look of `follow`, so that it is exact.
    """

    def __init__(
        self, read: Callable[[], CoverageRecord], explore: Callable[[], Awaitable[None]]
    ) -> None:
        self._read = read
        self._explore = explore
        self._complete: set[str] = set()
        self._over = False

    def end(self) -> None:
        """Look for the last time: the report comes next, and has the last word."""
        self.look()
        self._over = True

    def look(self) -> None:
        """Log each node that has become complete, or incomplete, since the last look."""
        if self._over:
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
                log.tell(logging.INFO, "node_complete", f"{images}; {total}", **counts)
            elif row.missing and row.name in self._complete:
                self._complete.discard(row.name)
                text = f"{images}, no longer all: {', '.join(table.lacking(row))}; {total}"
                log.tell(logging.WARNING, "node_incomplete", text, **counts)

    async def follow(self, ledger: Ledger, pulls: Pulls, clock: Clock) -> None:
        """Look whenever a fact or the end of a pull may have changed something, until cancelled."""
        while True:
            await self._explore()
            self.look()
            changed, settles = ledger.changed.next(), pulls.settles_in()
            if settles is None:
                await first_done(changed)
            else:
                await first_done(changed, clock.sleep(settles))
            await clock.sleep(_LOOK_EVERY)
