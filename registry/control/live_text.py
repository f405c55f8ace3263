"""The live view of a running server as lines of styled text that fit a terminal.

Texts that come from outside, such as names of nodes and images, are escaped where a line is
fitted, so that none can move the cursor. Rows that do not fit are counted; then incomplete nodes
are shown first.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from mayfly.registry.control.status_text import (
    NodeRow,
    actor,
    amount,
    content,
    corruption_text,
    ends_rows,
    evidence,
    missing_images,
    node_rows,
    rate,
)
from mayfly.registry.coverage.states import State
from mayfly.registry.durations import readable
from mayfly.registry.notices import text as notice_text
from mayfly.registry.text import join_names, line
from mayfly.storage.text import counted, counted_of, format_size

if TYPE_CHECKING:
    from mayfly.registry.control.report import CoverageRecord, TransferRecord

MIN_WIDTH, MIN_HEIGHT = 20, 4

_BAR_CELLS = 16
_WHOLE_BAR_CELLS = 30
_NAME_CELLS = 32
_MOST_NOTICES = 4
_GAP = "  "


class Style(StrEnum):
    """Parameters of SGR (ECMA-48, 8.3.117)."""

    PLAIN = ""
    BOLD = "1"
    DIM = "2"
    RED = "31"
    GREEN = "32"
    YELLOW = "33"


class Segment(NamedTuple):
    """A part of a line in one style."""

    text: str
    style: Style = Style.PLAIN


Line = Sequence[Segment]


class Bar(NamedTuple):
    """The characters of a bar: of its done part and of the rest."""

    done: str = "█"
    left: str = "░"


ASCII_BAR = Bar("#", "-")


def frame(
    found: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    width: int,
    height: int,
    *,
    bar: Bar = Bar(),  # noqa: B008 - immutable
    silent: float = 0.0,
) -> list[Line]:
    """Return the lines of the view, at most as many and as wide as the terminal has.

    Args:
        found: the server's answer to ``status``.
        before: an earlier answer, to compute rates; None without.
        width, height: of the terminal, in cells; at least `MIN_WIDTH` and `MIN_HEIGHT` are used.
        bar: characters of bars.
        silent: seconds since the server answered, if it does not answer.
    """
    width, height = max(width, MIN_WIDTH), max(height, MIN_HEIGHT)
    lines = [*_head(found, before, silent), *_notices(found)]
    lines = lines[: height - 1]
    room = height - len(lines)
    transfers, coverage = found["transfers"], found["coverage"]
    # A third of the room is for transfers, or the lines that nodes leave of it.
    wanted = 2 + len(next(iter(coverage["matrix"].values()), ())) if coverage else 0
    most = max(room // 3, room - wanted)
    below = _transfers(transfers, most) if most > 2 else []
    if coverage is not None:
        lines += _coverage(coverage, transfers, room - len(below), width, bar)
    return [fit(one, width) for one in [*lines, *below][:height]]


def progress_line(found: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    """Return the state in one line, for output that is no terminal; not escaped."""
    parts = [found["state"]]
    coverage = found["coverage"]
    if coverage is not None:
        rows = node_rows(coverage)
        nodes = counted_of(coverage["nodes_covered"], coverage["nodes_wanted"], "node")
        images = counted_of(sum(row.has for row in rows), _pairs(coverage), "image")
        parts.append(f"{nodes} covered, {images} on nodes")
    parts.append(f"out {amount(found, before, 'bytes_out')}")
    if found["bytes_in"]:
        parts.append(f"in {amount(found, before, 'bytes_in')}")
    if found["transfers"]:
        parts.append(counted(len(found["transfers"]), "transfer"))
    if problems := len(found["warnings"]) + len(found["corrupt"]):
        parts.append(f"{counted(problems, 'problem')}, see mayfly status")
    return "; ".join(parts)


def cells(text: str) -> int:
    """Return how many cells of a terminal a printable text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_cells_of, text))


def _cells_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(segments: Line, width: int) -> Line:
    """Return a line escaped, and cut to a number of cells; ``…`` ends one that was longer."""
    fitted, room = [], width
    escaped = [Segment(line(one.text), one.style) for one in segments]
    if sum(cells(one.text) for one in escaped) <= width:
        return escaped
    room -= 1
    for one in escaped:
        text = _begin(one.text, room)
        room -= cells(text)
        fitted.append(Segment(text, one.style))
        if text != one.text:
            break
    return [*fitted, Segment("…", Style.DIM)]


def _begin(text: str, width: int) -> str:
    """Return as much of a text as fits a number of cells."""
    if cells(text) <= width:
        return text
    taken = 0
    for number, character in enumerate(text):
        taken += _cells_of(character)
        if taken > width:
            return text[:number]
    return text


def _padded(text: str, width: int) -> str:
    """Return a text as exactly this many cells, escaped, and without its end if it is longer."""
    text = line(text)
    if cells(text) > width:
        text = _begin(text, width - 1) + "…"
    return text + " " * (width - cells(text))


def _head(found: Mapping[str, Any], before: Mapping[str, Any] | None, silent: float) -> list[Line]:
    state = Segment(found["state"], Style.YELLOW if found["state"] == "draining" else Style.GREEN)
    where = found["url"] or "no address yet"
    about = f" for {readable(found['seconds'])}{_GAP}{where}{_GAP}version {found['version']}"
    first = [Segment("Mayfly ", Style.BOLD), state, Segment(about)]
    if silent:
        first[1] = Segment(f"no answer for {readable(silent)}", Style.RED)
    traffic = (
        f"out {amount(found, before, 'bytes_out')}{_GAP}in {amount(found, before, 'bytes_in')}"
    )
    traffic += f"{_GAP}idle for {readable(found['idle_seconds'])}"
    ends = [[Segment(f"ends {text}")] for _, text in ends_rows(found.get("ends", ()))]
    return [first, *ends, [Segment(traffic, Style.DIM)]]


def _notices(found: Mapping[str, Any]) -> list[Line]:
    """Return the problems that an operator has to act on, a line each."""
    red = [f"corrupt: {corruption_text(one)}" for one in found["corrupt"]]
    if found["coverage"] is not None:
        red += [f"not in the registry: {image}" for image in found["coverage"]["absent"]]
    yellow = [notice_text(one) for one in found["warnings"]]
    yellow += [f"ambiguous: {path} is in several upstreams" for path in found["ambiguous"]]
    if refused := found.get("denied"):
        count = counted(sum(one["requests"] for one in refused), "request")
        user, address = refused[0]["user"] or "a client", refused[0]["address"]
        yellow.append(f"{count} refused, most of {user} at {address}: mayfly status")
    yellow += [
        f"upstream {one['host']} is unreachable"
        for one in found.get("upstreams", ())
        if not one["reachable"]
    ]
    shown = [
        *([Segment(text, Style.RED)] for text in red),
        *([Segment(text, Style.YELLOW)] for text in yellow),
    ]
    if len(shown) <= _MOST_NOTICES:
        return list(shown)
    more = f"and {len(shown) - _MOST_NOTICES + 1} more: mayfly status"
    return [*shown[: _MOST_NOTICES - 1], [Segment(more, Style.YELLOW)]]


def _pairs(coverage: CoverageRecord) -> int:
    return coverage["nodes_wanted"] * len(coverage["matrix"])


def _coverage(
    coverage: CoverageRecord, transfers: Iterable[TransferRecord], room: int, width: int, bar: Bar
) -> list[Line]:
    """A line about all nodes, and one for each, as far as they fit."""
    rows = node_rows(coverage)
    has, pairs = sum(row.has for row in rows), _pairs(coverage)
    nodes = counted_of(coverage["nodes_covered"], coverage["nodes_wanted"], "node")
    style = Style.GREEN if coverage["complete"] else Style.PLAIN
    whole: Line = [
        Segment(_drawn(bar, has, pairs, min(_WHOLE_BAR_CELLS, width // 3)), style),
        Segment(f" {100 * has // pairs if pairs else 100}%{_GAP}{nodes} with every image"),
    ]
    silent = coverage["nodes_wanted"] - len(coverage["nodes"])
    room -= 2
    fits = room - bool(silent > 0)
    if len(rows) <= fits:
        # As long as all fit, none changes its place.
        order = {node: number for number, node in enumerate(coverage["nodes"])}
        rows.sort(key=lambda row: order.get(row.name, len(order)))
        more = 0
    else:
        fits = max(fits - 1, 0)
        more = len(rows) - fits
    rates = Counter[str]()
    for one in transfers:
        rates[one["node"]] += round(rate(one))
    name = min(max((cells(line(row.name)) for row in rows[:fits]), default=0), _NAME_CELLS)
    absent = frozenset(coverage["absent"])
    lines: list[Line] = [[], whole]
    long = min(_BAR_CELLS, width // 5)  # on a narrow terminal the numbers are worth more
    lines += [_node(row, rates[row.name], name, bar, long, absent) for row in rows[:fits]]
    if more and room > 0:
        complete = sum(not row.missing for row in rows[fits:])
        text = f"and {counted(more, 'more node')}, {complete} of them with every image"
        lines.append([Segment(text, Style.DIM)])
    if silent > 0 and room > 1:
        lines.append([Segment(f"{counted(silent, 'more node')} pulled nothing yet", Style.DIM)])
    return lines


_URGENT = (State.FAILED, State.PULLING, State.INCOMPLETE)
"""States of missing images that are named first."""


def _node(
    row: NodeRow, per_second: int, name: int, bar: Bar, long: int, absent: frozenset[str]
) -> Line:
    style = Style.PLAIN if row.missing else Style.GREEN
    if State.FAILED in row.missing.values():
        style = Style.RED
    ranks = {state: number for number, state in enumerate(_URGENT)}
    urgent = sorted(row.missing.items(), key=lambda pair: ranks.get(pair[1], len(ranks)))
    lacking = missing_images(row._replace(missing=dict(urgent)), absent)
    told = join_names(lacking, 3) if row.missing else evidence(row)
    if per_second:
        told = f"{format_size(per_second)}/s{_GAP}{told}"
    count = f"{row.has}/{row.wanted}".rjust(2 * len(str(row.wanted)) + 1)
    return [
        Segment(_padded(row.name, name), Style.BOLD if row.missing else Style.PLAIN),
        Segment(_GAP + _drawn(bar, row.has, row.wanted, long), style),
        Segment(f" {count}{_GAP}"),
        Segment(told, Style.DIM if style is not Style.RED else Style.RED),
    ]


def _drawn(bar: Bar, done: int, whole: int, width: int) -> str:
    """A bar; a cell that is not complete stays empty."""
    filled = min(width * done // whole, width) if whole else width
    return bar.done * filled + bar.left * (width - filled)


def _transfers(records: Sequence[TransferRecord], room: int) -> list[Line]:
    """An empty line, and one for each transfer, as far as they fit."""
    if not records:
        return []
    shown = records if len(records) < room else records[: max(room - 2, 0)]
    lines: list[Line] = [[]]
    for one in shown:
        size, per_second = format_size(one["bytes"]), f"{format_size(round(rate(one)))}/s"
        moved = f"{_padded(actor(one), _NAME_CELLS)}{_GAP}{size:>9}, {per_second}{_GAP}"
        lines.append([Segment(moved), Segment(content(one), Style.DIM)])
    if more := len(records) - len(shown):
        lines.append([Segment(f"and {counted(more, 'more transfer')}", Style.DIM)])
    return lines
