"""A run as tables: on the terminal, as Markdown, as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import limits, rows
from benchmarks.bench import DURABLE, RATE
from benchmarks.goals import GOALS, Results, judge, median, ratio
from benchmarks.peers import PEERS
from benchmarks.rows import ROWS, Row

BEGIN, END = "<!-- measured -->\n", "<!-- end of measured -->\n"
"""Between these lines of a document the Markdown is put."""

_PUSHES = ("push-patch", "push-patch-4", "push-put", "push-tls")
_CREATES = ("create-http", "create-tls", "create-olareg")


@dataclass(frozen=True)
class Run:
    """All that a run found.

    Attributes:
        busy: the load average before it began: figures of a machine that others use say little.
    """

    results: Results
    failures: list[str]
    limits: dict[str, float]
    versions: dict[str, str]
    ciphers: dict[str, str]
    missing: dict[str, str]
    rounds: int
    scale: float
    command: str
    busy: float

    def document(self) -> dict[str, Any]:
        """For JSON: every round's figures, and the verdicts."""
        verdicts = [judge(goal, self.results) for goal in GOALS]
        return {
            "machine": machine(),
            "command": self.command,
            "load_average_before": self.busy,
            "rounds": self.rounds,
            "scale": self.scale,
            "versions": self.versions,
            "ciphers": self.ciphers,
            "missing": self.missing,
            "failures": self.failures,
            "limits": self.limits,
            "results": self.results,
            "goals": [
                {"row": v.goal.row, "goal": v.goal.text, "value": v.value, "verdict": v.text}
                for v in verdicts
            ],
        }


def machine() -> str:
    """This machine in general terms."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    cores = os.cpu_count()
    total = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    model = fields.get("model name", platform.machine())
    python, kernel = platform.python_version(), ".".join(platform.release().split(".")[:2])
    return f"{cores} cores ({model}), {total:.0f} GiB, Linux {kernel}, Python {python}"


def write_json(run: Run, path: Path) -> None:
    path.write_text(json.dumps(run.document(), indent=1) + "\n")


def write_markdown(run: Run, path: Path) -> None:
    """Put the tables into a document, between its marks if it has them."""
    found = path.read_text() if path.exists() else ""
    before, begin, rest = found.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before = after = ""
    path.write_text(f"{before}{BEGIN}\n{markdown(run)}\n{END}{after}")


def text(run: Run) -> str:
    """For a terminal."""
    parts = [machine(), *_remarks(run)]
    for row in _measured(run):
        header, lines = _row_table(run, row)
        parts += ["", f"{row.id}: {row.title}", _aligned([header, *lines])]
    parts += ["", "goals", _aligned([_GOAL_HEADER, *_goal_lines(run)])]
    if pushes := _push_lines(run):
        parts += ["", "pushes, like with like", _aligned([_PUSH_HEADER, *pushes])]
    if gaps := _limit_lines(run):
        parts += ["", "how near to the limits", _aligned([_LIMIT_HEADER, *gaps])]
    return "\n".join(parts) + "\n"


def markdown(run: Run) -> str:
    """For docs/performance.md."""
    parts = [f"{machine()}; `{run.command}`", "", *(f"- {line}" for line in _remarks(run))]
    parts += ["", "### Goals", "", _piped([_GOAL_HEADER, *_goal_lines(run)])]
    if pushes := _push_lines(run):
        parts += ["", "### Pushes, like with like", "", _piped([_PUSH_HEADER, *pushes])]
    if gaps := _limit_lines(run):
        parts += ["", "### Limits", "", _piped([_LIMIT_HEADER, *gaps])]
    for row in _measured(run):
        header, lines = _row_table(run, row)
        parts += ["", f"### {row.id}", "", f"{row.title[0].upper()}{row.title[1:]}.", ""]
        parts.append(_piped([header, *lines]))
    return "\n".join(parts) + "\n"


def _measured(run: Run) -> list[Row]:
    return [ROWS[name] for name in ROWS if run.results.get(name)]


def _remarks(run: Run) -> list[str]:
    lines = [f"load average before the run: {run.busy:.1f}"]
    lines += [f"{name}: {value:,.0f}" for name, value in run.limits.items()]
    named = {name for row in run.results.values() for name in row}
    present = [peer for name, peer in PEERS.items() if name in named]
    lines += [f"{p.name} {run.versions.get(p.name, '')}: {p.about}" for p in present]
    lines += [f"left out: {name}, {why}" for name, why in run.missing.items()]
    lines += [f"FAILED: {failure}" for failure in run.failures]
    if run.ciphers:
        suites: dict[str, list[str]] = {}
        for name, suite in run.ciphers.items():
            suites.setdefault(suite, []).append(name)
        said = "; ".join(f"{s}: {', '.join(names)}" for s, names in suites.items() if s)
        lines += [f"TLS: {said}"] if said else []
    return lines


def _row_table(run: Run, row: Row) -> tuple[list[str], list[list[str]]]:
    found = run.results[row.id]
    figures = list(dict.fromkeys(f for rounds in found.values() for one in rounds for f in one))
    header = ["", *figures, "mayfly is"]
    own = found.get("mayfly", [])
    lines = []
    for name, rounds in found.items():
        cells = [_number(median(rounds, figure)) for figure in figures]
        times = ratio(own, rounds, row.main) if name != "mayfly" else None
        lines.append([name, *cells, f"{times:.2f} x" if times else ""])
    return header, lines


_GOAL_HEADER = ["row", "goal", "measured", "beside", ""]


def _goal_lines(run: Run) -> list[list[str]]:
    lines = []
    for goal in GOALS:
        if goal.row not in run.results:
            continue
        verdict = judge(goal, run.results)
        measured = _number(verdict.value) + (" x" if goal.against and verdict.value else "")
        lines.append([goal.row, goal.text, measured, verdict.rival, verdict.text])
    return lines


_PUSH_HEADER = ["row", "beside", "as each is", "fsync free for mayfly", "both durable"]


def _push_lines(run: Run) -> list[list[str]]:
    """Mayfly's ratio to each peer: as they are, without fsync, and with fsync for both."""
    lines = []
    for row in _PUSHES:
        found = run.results.get(row, {})
        own, free = found.get("mayfly", []), found.get("mayfly-nosync", [])
        for name, rounds in found.items():
            if name in ("mayfly", "mayfly-nosync", "bare"):
                continue
            times = (
                ratio(own, rounds, RATE),
                ratio(free, rounds, RATE),
                ratio(own, rounds, DURABLE),
            )
            lines.append([row, name, *(f"{t:.2f} x" if t else "" for t in times)])
    return lines


_LIMIT_HEADER = ["row", "mayfly", "of SHA-256", "of the disk", "of loopback", "of the bare server"]


def _limit_lines(run: Run) -> list[list[str]]:
    """Mayfly's rate as a share of the machine's; each row by the resource that bounds it."""
    lines = []
    for row in _measured(run):
        found = run.results[row.id]
        own = found.get("mayfly", [])
        rate = median(own, row.main)
        if rate is None or row.main not in (RATE, rows.REQUESTS):
            continue
        is_written = row.id in (*_PUSHES, *_CREATES)
        bounds = {limits.HASH, limits.DISK} if is_written else set[str]()
        if row.main == RATE and not row.tls and not is_written:
            bounds = {limits.LOOPBACK}
        shares = [
            _percent(rate / run.limits[limit]) if limit in bounds and limit in run.limits else ""
            for limit in (limits.HASH, limits.DISK, limits.LOOPBACK)
        ]
        of_bare = ratio(own, found.get("bare", []), row.main)
        lines.append([row.id, _number(rate), *shares, _percent(of_bare) if of_bare else ""])
    return lines


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _piped(lines: Iterable[Sequence[str]]) -> str:
    header, *rest = lines
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rest))
