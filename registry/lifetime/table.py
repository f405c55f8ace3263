"""Reports and the coverage matrix as plain text, no wider than they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from registry.lifetime.coverage import claims_text
from registry.lifetime.durations import readable
from registry.lifetime.states import RANKED, State

if TYPE_CHECKING:
    from registry.lifetime.report import CorruptRecord, ImageRecord, Report

MIN_WIDTH = 40

SIGNS = {
    State.MISSING: "-",
    State.PULLING: "pulling",
    State.INCOMPLETE: "incomplete",
    State.FAILED: "failed",
    State.CLAIMED: "claimed",
    State.SERVED: "served",
    State.PROVEN: "proven",
    State.ABSENT: "absent",
}

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_MOST_ROWS = 200


def size(count: int) -> str:
    """Bytes for people: ``512 B``, ``1.4 GiB``."""
    scaled = float(count)
    for unit in _UNITS:
        if scaled < 1024 or unit == _UNITS[-1]:
            break
        scaled /= 1024
    return f"{count} B" if unit == "B" else f"{scaled:.1f} {unit}"


def grid(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lines of aligned columns, two blanks apart.

    What is too wide is shortened in its middle, the widest column first: the ends of an image's
    name say most.
    """
    if not rows:
        return []
    columns = len(rows[0])
    widths = [max(len(row[i]) for row in rows) for i in range(columns)]
    room = max(width - 2 * (columns - 1), columns)
    while sum(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    return [
        "  ".join(shorten(cell, widths[i]).ljust(widths[i]) for i, cell in enumerate(row)).rstrip()
        for row in rows
    ]


def shorten(text: str, width: int) -> str:
    """A text in at most ``width`` characters, its middle left out if need be."""
    if len(text) <= width:
        return text
    if width < 3:
        return text[:width]
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def matrix(rows: Mapping[str, Mapping[str, str]], width: int) -> list[str]:
    """The coverage matrix: images down, nodes across, in as many blocks as the width asks for."""
    nodes = list(next(iter(rows.values()), {}))
    if not nodes:
        return [f"{image}: no node yet" for image in rows]
    cells = max(max(map(len, nodes)), max(map(len, SIGNS.values())))
    names = min(max(map(len, rows)), max(width // 2, 12))
    at_once = max(1, (width - names) // (cells + 2))
    lines: list[str] = []
    for start in range(0, len(nodes), at_once):
        block = nodes[start : start + at_once]
        table = [["image", *block]]
        for image, states in rows.items():
            shown = [SIGNS[State(states[node])] for node in block]
            table.append([shorten(image, names), *shown])
        lines += ([""] if lines else []) + grid(table, width)
    return lines


def corrupt(records: Sequence[CorruptRecord]) -> list[str]:
    """Content of bundles that was found wrong, a line each, however long: it is to be copied."""
    lines = []
    for one in records[:_MOST_ROWS]:
        of = f" (of {', '.join(one['repositories'])})" if one["repositories"] else ""
        lines.append(f"corrupt: {one['digest']}{of} in {one['bundle']}, found {one['found']}")
    return [*lines, *_more(len(records) - _MOST_ROWS)]


def _more(left: int) -> list[str]:
    return [f"… and {left} more"] if left > 0 else []


def report(content: Report, width: int) -> str:
    """A report for people.

    Args:
        content: the report as its JSON has it.
        width: columns; at least `MIN_WIDTH` are used.
    """
    width = max(width, MIN_WIDTH)
    lines = _summary(content, width)
    if content["images"]:
        lines += ["", *_images(content["images"], width)]
    if content["coverage"]:
        covered = content["coverage"]
        lines += ["", f"coverage: {covered['nodes_covered']} of {covered['nodes_wanted']} nodes"]
        lines += matrix(covered["matrix"], width)
    if content["denied"]:
        rows = [["denied", "user", "address"]]
        rows += [[str(d["requests"]), d["user"] or "-", d["address"]] for d in content["denied"]]
        lines += ["", *grid(rows[:_MOST_ROWS], width)]
    lines += corrupt(content["corrupt"])
    lines += [f"warning: {warning}" for warning in content["warnings"]]
    if content["coverage"] and content["exit_code"] == 0:
        claims = claims_text(content["coverage"]["claimed"])
        lines += [f"exit code 0 rests on claims: {claims}"] if claims else []
    return "\n".join(lines) + "\n"


def _summary(content: Report, width: int) -> list[str]:
    rows = [
        ["ended", f"{content['reason']}: {content['reason_text']}"],
        ["ran", f"{readable(content['seconds'])}, from {content['started']}"],
        ["in, out", f"{size(content['bytes_in'])}, {size(content['bytes_out'])}"],
        ["peak memory", size(content["peak_memory"]["server"])],
    ]
    before, after = content["storage_before"], content["storage_after"]
    if before is not None and after is not None:
        rows.append(["storage", f"{size(before)} before, {size(after)} after"])
    return grid(rows, width)


def _images(images: list[ImageRecord], width: int) -> list[str]:
    rows = [["image", "pushed by", "pulled by"]]
    for image in images[:_MOST_ROWS]:
        pulled = [pull["node"] for pull in image["pulls"] if pull["state"] in RANKED]
        by = (", ".join(image["pushed_by"]) or "-", ", ".join(pulled) or "-")
        rows.append([image["name"], *by])
    return [*grid(rows, width), *_more(len(images) - _MOST_ROWS)]
