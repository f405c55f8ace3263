"""Answers status, wait and stop while the server runs, and makes the report when it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mayfly.registry import log
from mayfly.registry.clock import Clock, first_done
from mayfly.registry.control import report as reports
from mayfly.registry.control import status_text
from mayfly.registry.control.completion_log import CompletionLog
from mayfly.registry.control.socket import Command, Message
from mayfly.registry.coverage.coverage import Coverage, Covered, absent_text
from mayfly.registry.coverage.observer import Observer, Transfer
from mayfly.registry.coverage.states import State, accepted
from mayfly.registry.durations import exact
from mayfly.registry.ending import EndKind, EndReason, Latch
from mayfly.registry.exit_codes import exit_code_of_signal
from mayfly.registry.lifecycle.drain import Drain, Drained
from mayfly.registry.lifecycle.plan import RunPlan, endings
from mayfly.registry.notices import Notice
from mayfly.registry.state.directory import REPORT
from mayfly.registry.threads import in_thread, uncancelled
from mayfly.registry.version import VERSION
from mayfly.storage.text import counted_of

if TYPE_CHECKING:
    from mayfly.registry.cluster.record import ReportedSafety
    from mayfly.registry.control.page_view import PageView
    from mayfly.registry.coverage.store_queries import StoreQueries
    from mayfly.registry.telemetry.reading import Reading
    from mayfly.registry.upstream.health import UpstreamRecord

logger = logging.getLogger("mayfly")

_CELLS_AT_ONCE = 10_000
"""States that are made into a record on the event loop; more are in a thread."""


class Outcome(NamedTuple):
    """The end of a server.

    Attributes:
        reason: why it ended.
        drained: result of the drain.
        covered: whether coverage is complete; None if it was not asked for.
        exit_code: of the process; minus a signal's number if the command died by it.
    """

    reason: EndReason
    drained: Drained
    covered: bool | None
    exit_code: int

    @property
    def shown_code(self) -> int:
        """The exit code as a shell shows it."""
        return self.exit_code if self.exit_code >= 0 else exit_code_of_signal(-self.exit_code)


class StatusService:
    """Answers the control socket and writes the report.

    Args:
        plan: of the run.
        observer: of the requests.
        drain: says whether the server drains.
        coverage: None if it was not asked for.
        clock: of the run.
        stop: met by the ``stop`` command.
        directory: the state directory.
        has_image: whether an image, written as in a pod, comes from this registry; may read.
    """

    def __init__(
        self,
        plan: RunPlan,
        observer: Observer,
        drain: Drain,
        coverage: Coverage | None,
        clock: Clock,
        stop: Latch,
        directory: Path,
        has_image: Callable[[str], bool],
    ) -> None:
        self._plan = plan
        self._has_image = has_image
        self._observer = observer
        self._drain = drain
        self._coverage = coverage
        self._clock = clock
        self._stop = stop
        self._directory = directory
        self._report = plan.report or directory / REPORT
        self._started = clock.now()
        self._started_wall = clock.wall()
        self._url: str | None = None
        self._ready = asyncio.Event()
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._storage_before: int | None = None
        self._denied: Mapping[tuple[str, str], int] = {}
        self._corrupt: list[reports.CorruptRecord] = []
        self._ambiguous: Mapping[str, Sequence[str]] = {}
        self._upstreams: Callable[[], list[UpstreamRecord]] = list
        self._sources: Sequence[str] = ()
        self._ending: str | None = None
        self._prefetch: reports.PrefetchRecord | None = None
        self._safety: ReportedSafety | None = None

    def ready(
        self,
        url: str,
        denied: Mapping[tuple[str, str], int],
        ambiguous: Mapping[str, Sequence[str]],
        upstreams: Callable[[], list[UpstreamRecord]] = list,
        sources: Sequence[str] = (),
    ) -> None:
        """Note that the port answers; the arguments are those of `serving.RunningServer`."""
        self._sources = sources
        self._url = url
        self._denied = denied
        self._ambiguous = ambiguous
        self._upstreams = upstreams
        self._ready.set()

    def add_corruption(self, found: reports.Corruption) -> None:
        """Log corrupt content of a bundle, and keep it for status and report."""
        log.event(logging.ERROR, "corrupt", status_text.corruption_text(found), **found)
        self._corrupt.append({**found, "found": reports.iso(self._clock.wall())})

    async def unproven(self) -> set[str]:
        """Return the nodes that have not proved every image; none if coverage was not asked for."""
        if self._coverage is None:
            return set()
        if (late := await self._coverage.explore()) is not None:
            await asyncio.wait([late])
            await self._coverage.explore()
        enough = accepted(State.PROVEN)
        rows = self._coverage.snapshot().rows
        return {node for node, row in rows.items() if not enough.issuperset(row)}

    def prefetched(self, found: reports.PrefetchRecord) -> None:
        """Keep how `--prefetch` ended, for the report."""
        self._prefetch = found

    def ends(self, reason: EndReason) -> None:
        """Note why the server drains."""
        self._ending = reason.text

    def complete(self, outcome: Outcome) -> None:
        """Answer the requests that wait for the end of the server."""
        self._outcome.set_result(outcome)

    def completion_log(self) -> CompletionLog | None:
        """Return the log of complete nodes; None if coverage was not asked for."""
        coverage = self._coverage
        if coverage is None:
            return None
        return CompletionLog(coverage, self._observer)

    def waiting_for(self) -> str:
        """Describe the conditions, other than its command's end, that end the server."""
        waiting = []
        covered = self._coverage is not None and self._coverage.complete()
        if self._plan.until_stop or (covered and not self._plan.until_all):
            return ""
        if self._coverage is not None and not covered:
            waiting.append(f"coverage ({_progress(self._coverage)})")
        if self._plan.idle_timeout is not None:
            waiting.append(f"{exact(self._plan.idle_timeout)} without a request")
        return (" and " if self._plan.until_all else " or ").join(waiting)

    async def measure_before(self, storage: Callable[[], int]) -> None:
        """Measure the store at the start."""
        loop = asyncio.get_running_loop()
        self._storage_before = await loop.run_in_executor(None, storage)

    def commands(self) -> Mapping[str, Command]:
        """Return the commands for `socket.ControlServer`."""
        return {
            "status": self._on_status,
            "stop": self._on_stop,
            "wait": self._on_wait,
            "serves": self._on_serves,
            "judged": self._on_judged,
        }

    def status_line(self) -> str:
        """Return one line for ``systemctl status``."""
        line = "draining" if self._drain.active else "serving"
        if self._coverage is not None:
            covered, wanted = self._coverage.covered_nodes(), self._coverage.wanted_nodes
            line += f"; every image is at {counted_of(covered, wanted, 'node')}"
        return line

    async def status(self) -> Message:
        """Return the status for programs."""
        return {
            **self._server_record(),
            "transfers": self._transfer_records(self._observer.transfers),
            "coverage": await self._coverage_record(),
        }

    def _server_record(self) -> Message:
        """Return the state of the server itself."""
        activity = self._observer.activity
        state = "draining" if self._drain.active else "serving"
        return {
            "state": state if self._ready.is_set() else "starting",
            "url": self._url,
            "pid": os.getpid(),
            "version": VERSION,
            "started": reports.iso(self._started_wall),
            "seconds": round(self._clock.now() - self._started, 1),
            "idle_seconds": round(activity.idle_for(), 1),
            "ends": self._ends(),
            "requests": activity.requests,
            "bytes_in": activity.bytes_in,
            "bytes_out": activity.bytes_out,
            "warnings": self._warnings(),
            "denied": reports.denied_records(self._denied),
            "corrupt": self._corrupt,
            "ambiguous": {path: [*names] for path, names in self._ambiguous.items()},
            "upstreams": self._upstreams(),
            "state_dir": str(self._directory),
            "report": str(self._report),
        }

    def page(self, store: StoreQueries) -> PageView:
        """Return the maker of the rollout page's views.

        Args:
            store: reads the manifests of images.
        """
        # Imported once somebody looks.
        from mayfly.registry.control.page_view import PageView

        def server() -> Message:
            return {
                **self._server_record(),
                "started_unix": self._started_wall,
                "ending": self._ending,
            }

        return PageView(server, self._observer, self._coverage, store, self._clock, self._sources)

    def reading(self, denied: Mapping[str, int]) -> Reading:
        """Return the server's own counts.

        Args:
            denied: reason → refused requests.
        """
        # Imported only where metrics are on.
        from mayfly.registry.telemetry.reading import Reading

        observer, coverage = self._observer, self._coverage
        nodes, images, pairs = None, 0, Counter[str]()
        if coverage is not None:
            found = coverage.snapshot()
            nodes, images = (found.nodes.count, len(found.covered)), len(found.images)
            pairs.update(dict.fromkeys(State, 0))
            for row in found.rows.values():
                pairs.update(row)
            pairs[State.MISSING] += (found.nodes.count - len(found.rows)) * images
        ends = [(one["conditions"], one["seconds"]) for one in self._ends()]
        return Reading(
            nodes=nodes,
            images=images,
            pairs=pairs,
            node_bytes=observer.node_bytes,
            transfers=Counter(one.direction for one in observer.transfers),
            bytes_in=observer.activity.bytes_in,
            bytes_out=observer.activity.bytes_out,
            ends={kinds[0]: seconds for kinds, seconds in ends if seconds is not None},
            corrupt=len(self._corrupt),
            denied=denied,
            upstreams=self._upstreams(),
        )

    def _ends(self) -> list[reports.EndRecord]:
        """Return the conditions that end the server, besides signals, stops and failures."""
        running = self._clock.now() - self._started
        return [
            {
                "conditions": [*one.kinds],
                "seconds": None if one.seconds is None else round(one.seconds, 1),
            }
            for one in endings(self._plan, self._observer.activity, running)
        ]

    def _warnings(self) -> list[Notice]:
        """Return why nodes may not be distinguished or the coverage record may be incomplete."""
        return [
            *self._observer.nodes.notices.all(),
            *self._observer.ledger.facts.limits.reached.all(),
        ]

    async def warn_at_start(self, *, is_mirror: bool = False) -> None:
        """Log images that the registry lacks: coverage waits for them.

        Args:
            is_mirror: whether some may be fetched from an upstream once they are pulled.
        """
        if self._coverage is None:
            return
        await self._coverage.explore()
        if absent := self._coverage.snapshot().absent:
            level = logging.INFO if is_mirror else logging.WARNING
            text = absent_text(absent, is_mirror=is_mirror)
            log.event(level, "images_absent", text, images=list(absent))

    async def images(self) -> tuple[list[reports.ImageRecord], int]:
        """See `report.image_records`."""
        return await reports.image_records(self._observer)

    def report(
        self,
        outcome: Outcome,
        storage_after: int | None,
        images: tuple[list[reports.ImageRecord], int],
    ) -> reports.Report:
        """Make the report."""
        observer = self._observer
        found = self._coverage.snapshot() if self._coverage else None
        return reports.Report(
            version=VERSION,
            pid=os.getpid(),
            reason=outcome.reason.kind,
            reason_detail=dict(outcome.reason.detail),
            exit_code=outcome.shown_code,
            started=reports.iso(self._started_wall),
            stopped=reports.iso(self._clock.wall()),
            seconds=round(self._clock.now() - self._started, 1),
            peak_memory=reports.peak_memory(),
            bytes_in=observer.activity.bytes_in,
            bytes_out=observer.activity.bytes_out,
            images=images[0],
            images_left_out=images[1],
            coverage=reports.coverage_record(found, observer.ledger.unix) if found else None,
            denied=reports.denied_records(self._denied),
            corrupt=self._corrupt,
            upstreams=self._upstreams(),
            storage_before=self._storage_before,
            storage_after=storage_after,
            cut=self._transfer_records(outcome.drained.aborted),
            cut_requests=outcome.drained.requests,
            asked_again=observer.ledger.facts.asked_again(),
            audit=None,
            notified=[],
            prefetch=self._prefetch,
            safe_to_stop=self._safety,
        )

    async def publish(self, report: reports.Report) -> None:
        """Write the report to its file and, unless the log is JSON, print it."""
        log.flush()
        written = True
        try:
            await in_thread(reports.write, report, self._report)
        except OSError as error:
            written = False
            logger.error("the report could not be written to %s: %s", self._report, error.strerror)
        if not log.is_json():
            width = shutil.get_terminal_size((120, 24)).columns
            text = await in_thread(status_text.report_text, report, width)
            print(text, end="", file=sys.stderr, flush=True)
        if written:
            log.event(logging.INFO, "report", f"report: {self._report}", file=str(self._report))
        # The last line: the exit code 0 rests on claims, not on bytes served.
        if claims := status_text.claims_line(report):
            claimed = report["coverage"]["claimed"] if report["coverage"] else {}
            log.event(logging.WARNING, "claims", claims, claimed=claimed)

    async def _on_status(self, request: Message) -> Message:
        return await self.status()

    async def _on_stop(self, request: Message) -> Message:
        self._stop.set(EndReason(EndKind.STOP, "stop was asked for"))
        outcome = await uncancelled(self._outcome)
        return {
            "reason": outcome.reason.kind,
            "reason_detail": dict(outcome.reason.detail),
            "cut": self._transfer_records(outcome.drained.aborted),
            "cut_requests": outcome.drained.requests,
            "covered": outcome.covered,
            "coverage": await self._coverage_record(),
            "exit_code": outcome.shown_code,
            "report": str(self._report),
        }

    async def _on_wait(self, request: Message) -> Message:
        match request.get("for"):
            case "ready":
                await first_done(self._ready.wait(), self._outcome)
                reached = self._ready.is_set()
            case "covered" if self._coverage is not None:
                ledger, pulls = self._observer.ledger, self._observer.pulls
                covered = Covered(self._coverage, ledger.changed, pulls, self._clock)
                await first_done(covered.wait(), self._outcome)
                reached = self._coverage.complete()
            case "covered":
                raise ValueError(
                    "this server has nothing to cover: start it with --until-pulled and --nodes"
                )
            case _:
                raise ValueError("wait for ready or for covered")
        return {
            "reached": reached,
            "ended": self._outcome.done(),
            "coverage": await self._coverage_record(),
        }

    async def _on_serves(self, request: Message) -> Message:
        """Answer which of some images come from this registry, as they are written in pods."""
        images = request.get("images")
        if not isinstance(images, list) or not all(isinstance(one, str) for one in images):
            raise ValueError("images: expected a list of names")
        return {"images": await in_thread(lambda: [*filter(self._has_image, images)])}

    async def _on_judged(self, request: Message) -> Message:
        """Keep the last judgement of `mayfly wait --safe-to-stop` for the report."""
        from mayfly.registry.cluster.record import read_reported

        self._safety = read_reported(request, reports.iso(self._clock.wall()))
        return {}

    def _transfer_records(self, transfers: Iterable[Transfer]) -> list[reports.TransferRecord]:
        return reports.transfer_records(transfers, self._clock.now())

    async def _coverage_record(self) -> reports.CoverageRecord | None:
        if self._coverage is None:
            return None
        await self._coverage.explore()
        found = self._coverage.snapshot()
        if len(found.rows) * len(found.images) <= _CELLS_AT_ONCE:
            return reports.coverage_record(found, self._observer.ledger.unix)
        return await in_thread(reports.coverage_record, found, self._observer.ledger.unix)


def _progress(coverage: Coverage) -> str:
    """How far coverage is, in one line."""
    nodes, wanted = list(coverage.nodes()), coverage.wanted_nodes
    lacking = [node for node in nodes if not coverage.is_covered(node)]
    return status_text.progress_text(coverage.covered_nodes(), wanted, lacking, wanted - len(nodes))
