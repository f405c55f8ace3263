"""The prefetch of ``run --prefetch``: before the command, by the server itself.

`nodes.prefetch` runs the script of each node. This module logs how nodes end and keeps it for the
report. A signal ends it, and every script with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from mayfly.registry import log
from mayfly.registry.clock import Clock, first_done
from mayfly.registry.control import report as reports
from mayfly.registry.control.status_service import StatusService
from mayfly.registry.ending import Latch
from mayfly.storage.text import counted, counted_of

if TYPE_CHECKING:
    from mayfly.registry.nodes.prefetch import Failure, NodeResult, Prefetch


async def run_prefetch(
    prefetch: Prefetch, stop: Latch, status: StatusService, clock: Clock
) -> reports.PrefetchRecord:
    """Run a prefetch to its end, or until the latch is met.

    Nodes that have proved every image to this run before, such as to a server that was killed,
    are skipped.

    Returns:
        How it ended; `status` keeps it for the report, also if this is cancelled.
    """
    nodes, begin = len(prefetch.nodes), clock.now()
    lacking = await status.unproven()
    prefetch = replace(prefetch, nodes=[node for node in prefetch.nodes if node in lacking])
    skipped = nodes - len(prefetch.nodes)
    observer = _Log(prefetch)
    text = f"prefetching {counted(len(prefetch.images), 'image')} on {counted(nodes, 'node')}"
    if skipped:
        text += f"; skipped, since every image is proven: {skipped}"
    log.event(logging.INFO, "prefetch", text, nodes=nodes, skipped=skipped)
    running = asyncio.create_task(prefetch.run(observer))
    try:
        await first_done(running, stop.wait())
        if running.done():
            running.result()
            observer.correct(await status.unproven())
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        found = reports.prefetch_record(observer.results, nodes, skipped, clock.now() - begin)
        status.prefetched(found)
    level = logging.INFO if found["proven"] == nodes else logging.WARNING
    text = f"prefetched: {counted_of(found['proven'], nodes, 'node')} proved every image"
    log.event(level, "prefetched", text, nodes=found["proven"], nodes_wanted=nodes)
    return found


class _Log:
    """Logs how nodes end, and collects it."""

    def __init__(self, prefetch: Prefetch) -> None:
        self._references = tuple(prefetch.images)
        self._images = len(prefetch.images)
        self.results: list[NodeResult] = []

    def started(self, node: str, attempt: int) -> None:
        """Nothing: a line for each end is enough."""

    def image(self, node: str, image: str, state: str) -> None:
        """Nothing."""

    def paused(self, node: str, failure: Failure, seconds: float) -> None:
        from mayfly.registry.nodes.prefetch import failure_text

        text = f"{node}: {failure_text(failure, self._images)}; trying again in {seconds:.0f} s"
        log.event(logging.INFO, "prefetch_pause", text, node=node, code=failure.cause)

    def note(self, text: str) -> None:
        log.event(logging.WARNING, "prefetch_note", text)

    def ended(self, result: NodeResult) -> None:
        self.results.append(result)
        self._log(result)

    def correct(self, lacking: Collection[str]) -> None:
        """Fail nodes that say proven, and of whose proof the registry has no record."""
        from mayfly.registry.nodes.prefetch import checked

        before, self.results = self.results, checked(self.results, lacking, self._references)
        for old, new in zip(before, self.results, strict=True):
            if new is not old:
                self._log(new)

    def _log(self, result: NodeResult) -> None:
        from mayfly.registry.nodes.prefetch import node_lines, remedies

        level = logging.INFO if result.proven and not result.warnings else logging.WARNING
        codes = [one.cause for one in (*result.failures, *result.warnings)]
        text = "; ".join(node_lines(result, self._images))
        todo = "; ".join(remedy for _, _, remedy in remedies([result]))
        log.event(
            level,
            "prefetch_node",
            f"{text.rstrip('.')}. To do: {todo}" if todo else text,
            node=result.node,
            proven=result.proven,
            codes=codes,
        )
