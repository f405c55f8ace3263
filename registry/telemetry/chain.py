"""Checks the chain of an audit file: that no line was changed, added, or taken out of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mayfly.registry.telemetry.chained_file import FIRST, Head, digest_of, files

_MAX_LINE = 1024 * 1024
"""Bytes of a line that are looked at; none that Mayfly wrote is as long."""

MAX_CUTS = 100
"""Cuts that are described; the others are counted."""

Problem = Literal["changed", "missing", "not_json", "reordered"]


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where the chain does not hold.

    Attributes:
        file: that has it.
        line: in that file, from 1.
        problem: ``changed``: the line before is not the one that this line was written after.
            ``missing``: lines before it are left out. ``not_json``: no crash explains the line.
            ``reordered``: its number is not above the one before.
    """

    file: Path
    line: int
    problem: Problem


@dataclass(frozen=True, slots=True)
class Cut:
    """A line that a crash cut off, which the chain names or which ends the last file.

    Attributes:
        after: number of the event before it.
        bytes: that are left of the line.
    """

    after: int
    bytes: int


@dataclass(slots=True)
class Checked:
    """The result of a check.

    Attributes:
        first: number of the first event that is there; above 1, earlier files are gone.
        head: the last event.
        cuts: lines that a crash cut off, `MAX_CUTS` at most.
        more_cuts: number of further ones.
        broken: where the chain does not hold; None if it holds.
        found: number of the event whose hash was asked for; None if no event has it.
    """

    first: int = 0
    head: Head = field(default_factory=lambda: Head(0, FIRST))
    cuts: list[Cut] = field(default_factory=list)
    more_cuts: int = 0
    broken: Break | None = None
    found: int | None = None


def check(path: Path, head: str | None = None) -> Checked:
    """Check a file and those that were renamed from it.

    Args:
        path: of ``--audit``.
        head: of a report, to be found.

    Raises:
        OSError: it cannot be read.
    """
    if not path.exists():
        path.stat()
    checked = Checked()
    torn: bytes | None = None
    for file in files(path):
        number = 0
        for line, whole in _lines(file):
            number += 1
            record = _record(line)
            if record is None or (not whole and _problem(checked, record, torn)):
                if torn is not None:
                    checked.broken = Break(file, number, "not_json")
                    return checked
                torn = line
                continue
            problem = _problem(checked, record, torn)
            if problem is not None:
                checked.broken = Break(file, number, problem)
                return checked
            if torn is not None:
                _add_cut(checked, torn)
                torn = None
            checked.first = checked.first or record["number"]
            checked.head = Head(record["number"], digest_of(line))
            if head is not None and checked.head.digest == head:
                checked.found = checked.head.number
    if torn is not None:
        _add_cut(checked, torn)
    return checked


def _problem(checked: Checked, record: dict[str, Any], torn: bytes | None) -> Problem | None:
    if torn is not None:
        named = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
        if record.get("torn") != named:
            return "not_json"
    elif "torn" in record:
        return "missing"
    if not checked.head.number:
        return None if record["number"] > 1 or record["previous"] == FIRST else "changed"
    if record["number"] <= checked.head.number:
        return "reordered"
    if record["number"] != checked.head.number + 1:
        return "missing"
    return None if record["previous"] == checked.head.digest else "changed"


def _add_cut(checked: Checked, torn: bytes) -> None:
    if len(checked.cuts) < MAX_CUTS:
        checked.cuts.append(Cut(checked.head.number, len(torn)))
    else:
        checked.more_cuts += 1


def _lines(file: Path) -> Iterator[tuple[bytes, bool]]:
    """Each line without its newline, and whether it has one: a crash may leave it out."""
    with file.open("rb") as opened:
        while line := opened.readline(_MAX_LINE):
            yield line.removesuffix(b"\n"), line.endswith(b"\n")


def _record(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None if it is none of the chain's."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    number, previous = record.get("number"), record.get("previous")
    if type(number) is not int or number < 1 or not isinstance(previous, str):
        return None
    return record
