"""Log nodes that become complete, and those that become incomplete again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from mayfly.registry import log
from mayfly.registry.clock import Clock, first_done
from mayfly.registry.coverage.coverage import Coverage
from mayfly.registry.coverage.observer import Observer
from mayfly.registry.coverage.pulls import Pulls
from mayfly.registry.coverage.states import stated
from mayfly.registry.notification import Notification
from mayfly.registry.threads import with_pauses
from mayfly.storage.text import counted_of

_LOOK_SECONDS = 1.0
"""Seconds between two looks."""


class CompletionLog:
    """Compares coverage with the previous look."""

    def __init__(self, coverage: Coverage, observer: Observer) -> None:
        self._coverage = coverage
        self._observer = observer
        self._complete: set[str] = set()
        self._ended = False

    def end(self) -> None:
        """Look for the last time, before the report."""
        self.look()
        self._ended = True

    def look(self) -> None:
        """Log each node that has become complete, or incomplete, since the last look."""
        covered = self._coverage.covered_nodes()
        for node in self._changed():
            self._log(node, covered)

    async def follow(self, changed: Notification, pulls: Pulls, clock: Clock) -> None:
        """Look whenever a fact or the end of a pull may have changed something, until cancelled."""
        while True:
            # Taken first, so that no fact is missed while other tasks have their turns.
            happened = [changed.next()]
            if (late := await self._coverage.explore()) is not None:
                happened.append(late)
            # Before the log names a node as complete, so that a kill after that does not undo it.
            self._observer.note_settled()
            covered = self._coverage.covered_nodes()
            async for node in with_pauses(self._changed()):
                self._log(node, covered)
            changes = pulls.changes_in()
            if changes is None:
                await first_done(*happened)
            else:
                await first_done(*happened, clock.sleep(changes))
            await clock.sleep(_LOOK_SECONDS)

    def _changed(self) -> Iterator[str]:
        """The nodes to log, those that lack something first."""
        coverage = self._coverage
        nodes = list(coverage.nodes())
        for node in nodes:
            if node in self._complete and not coverage.is_covered(node) and not self._ended:
                yield node
        for node in nodes:
            if node not in self._complete and coverage.is_covered(node) and not self._ended:
                yield node

    def _log(self, node: str, covered: int) -> None:
        coverage = self._coverage
        lacking, wanted = coverage.lacking(node), coverage.wanted_nodes
        images_wanted = len(coverage.images)
        images = images_wanted - len(lacking)
        facts: dict[str, Any] = {
            "node": node,
            "images": images,
            "images_wanted": images_wanted,
            "nodes": covered,
            "nodes_wanted": wanted,
        }
        text = f"{node}: {counted_of(images, images_wanted, 'image')}"
        total = counted_of(covered, wanted, "node")
        if lacking:
            self._complete.discard(node)
            text += f", no longer all: {', '.join(stated(lacking))}; {total}"
            log.event(logging.WARNING, "node_incomplete", text, **facts)
        else:
            self._complete.add(node)
            log.event(logging.INFO, "node_complete", f"{text}; {total}", **facts)
