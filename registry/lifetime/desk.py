"""What a server tells of itself: status while it lives, the report when it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.lifetime import report as reports
from registry.lifetime import table
from registry.lifetime.clock import Clock, first_done
from registry.lifetime.conditions import Kind, Once, Reason
from registry.lifetime.control import Command, Message
from registry.lifetime.coverage import Coverage, Covered
from registry.lifetime.drain import Drain, Drained
from registry.lifetime.observer import Observer
from registry.lifetime.plan import Plan
from registry.lifetime.state import REPORT
from registry.version import VERSION

logger = logging.getLogger("mayfly")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a server ended.

    Attributes:
        reason: why.
        drained: how it drained.
        covered: whether coverage is complete, None if it was not asked for.
        exit_code: the process's; minus a signal's number if the command died by it.
    """

    reason: Reason
    drained: Drained
    covered: bool | None
    exit_code: int

    @property
    def shown_code(self) -> int:
        """The exit code as a shell shows it."""
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code


class Desk:
    """Answers the control socket and writes the report.

    Args:
        plan: of the run.
        observer: what happens.
        drain: whether it is draining.
        coverage: None if it was not asked for.
        clock: of the run.
        stop: met by the ``stop`` command.
    """

    def __init__(
        self,
        plan: Plan,
        observer: Observer,
        drain: Drain,
        coverage: Coverage | None,
        clock: Clock,
        stop: Once,
    ) -> None:
        self._plan = plan
        self._observer = observer
        self._drain = drain
        self._coverage = coverage
        self._clock = clock
        self._stop = stop
        self._started = clock.now()
        self._started_wall = clock.wall()
        self._url: str | None = None
        self._ready = asyncio.Event()
        self._over: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._storage_before: int | None = None
        self._denied: Mapping[tuple[str, str], int] = {}
        self._corrupt: list[reports.CorruptRecord] = []
        self._ambiguous: Mapping[str, Sequence[str]] = {}

    def ready(
        self,
        url: str,
        denied: Mapping[tuple[str, str], int],
        ambiguous: Mapping[str, Sequence[str]],
    ) -> None:
        """The port answers; for ``denied`` and ``ambiguous`` see `life.Launch`."""
        self._url = url
        self._denied = denied
        self._ambiguous = ambiguous
        self._ready.set()

    def corrupt(self, digest: str, bundle: str, repositories: list[str], text: str) -> None:
        """Content of a bundle was found wrong."""
        logger.error("%s: content is not served: %s", bundle, text)
        found = reports.iso(self._clock.wall())
        self._corrupt.append(
            reports.CorruptRecord(
                digest=digest, bundle=bundle, repositories=repositories, found=found, text=text
            )
        )

    def over(self, outcome: Outcome) -> None:
        """Everything is done; those who wait for it are told."""
        self._over.set_result(outcome)

    async def measure_before(self, storage: Callable[[], int]) -> None:
        """Measure the store as it is at the start."""
        loop = asyncio.get_running_loop()
        self._storage_before = await loop.run_in_executor(None, storage)

    def commands(self) -> Mapping[str, Command]:
        """For `control.ControlServer`."""
        return {"status": self._on_status, "stop": self._on_stop, "wait": self._on_wait}

    def status_line(self) -> str:
        """For ``systemctl status``."""
        line = "draining" if self._drain.active else "serving"
        if self._coverage is not None:
            covered, wanted = self._coverage.covered_nodes(), self._coverage.wanted_nodes
            line += f"; {covered} of {wanted} nodes have every image"
        return line

    def status(self) -> Message:
        """All there is to know, for programs."""
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
            "requests": activity.requests,
            "bytes_in": activity.bytes_in,
            "bytes_out": activity.bytes_out,
            "transfers": sorted(map(str, self._observer.transfers)),
            "coverage": reports.coverage_record(self._coverage) if self._coverage else None,
            "corrupt": self._corrupt,
            "ambiguous": {path: [*names] for path, names in self._ambiguous.items()},
        }

    def report(self, outcome: Outcome, directory: Path, storage_after: int | None) -> None:
        """Write the report, and show it."""
        ledger = self._observer.ledger
        record = reports.coverage_record(self._coverage) if self._coverage else None
        made = reports.Report(
            version=VERSION,
            reason=outcome.reason.kind,
            reason_text=outcome.reason.text,
            exit_code=outcome.shown_code,
            started=reports.iso(self._started_wall),
            stopped=reports.iso(self._clock.wall()),
            seconds=round(self._clock.now() - self._started, 1),
            peak_memory=reports.peak_memory(),
            bytes_in=self._observer.activity.bytes_in,
            bytes_out=self._observer.activity.bytes_out,
            images=reports.image_records(self._observer),
            coverage=record,
            denied=reports.denied_records(self._denied),
            corrupt=self._corrupt,
            storage_before=self._storage_before,
            storage_after=storage_after,
            cut=list(outcome.drained.cut),
            warnings=reports.warnings(ledger, record, outcome.drained.cut),
        )
        target = self._plan.report or directory / REPORT
        try:
            reports.write(made, target)
        except OSError as error:
            logger.error("the report could not be written to %s: %s", target, error.strerror)
        width = shutil.get_terminal_size().columns
        print(table.report(made, width), end="", file=sys.stderr, flush=True)

    async def _on_status(self, request: Message) -> Message:
        return self.status()

    async def _on_stop(self, request: Message) -> Message:
        self._stop.set(Reason(Kind.STOP, "stop was asked for"))
        outcome = await asyncio.shield(self._over)
        return {
            "reason": outcome.reason.kind,
            "reason_text": outcome.reason.text,
            "cut": list(outcome.drained.cut),
            "exit_code": outcome.shown_code,
        }

    async def _on_wait(self, request: Message) -> Message:
        match request.get("for"):
            case "ready":
                await first_done(self._ready.wait(), self._over)
                return {"reached": self._ready.is_set()}
            case "covered" if self._coverage is not None:
                ledger, pulls = self._observer.ledger, self._observer.pulls
                covered = Covered(self._coverage, ledger, pulls, self._clock)
                await first_done(covered.wait(), self._over)
                missing = [str(gap) for gap in self._coverage.missing()]
                return {"reached": not missing, "missing": missing}
            case "covered":
                raise ValueError("this server was not told what coverage is (--until-pulled)")
            case _:
                raise ValueError("wait for ready or for covered")
