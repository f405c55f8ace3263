"""A report as one page for a browser, which needs nothing else: no server, no script, no file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mayfly.registry.control import status_text
from mayfly.registry.coverage.states import HAS_IMAGE, State
from mayfly.registry.page.html import Matrix, ReportPage, Section, accepted_letters, report_page
from mayfly.registry.page.view import LETTERS
from mayfly.registry.text import escaped, join_names
from mayfly.storage.text import counted, counted_of, format_size

if TYPE_CHECKING:
    from mayfly.registry.control.report import CoverageRecord, GapRecord, Report

_MOST_NODES = 20
"""Nodes of one image that are written out."""

_MOST_IMAGES = 20
"""Images of one node that are written out."""


def render(content: Report) -> str:
    """Return a report as HTML.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is no report.
    """
    content = escaped(content)
    coverage = content["coverage"]
    complete = None if coverage is None else bool(coverage["complete"])
    if coverage is None:
        headline = "The registry has ended"
    else:
        nodes = counted_of(coverage["nodes_covered"], coverage["nodes_wanted"], "node")
        have = "has" if coverage["nodes_covered"] == 1 else "have"
        headline = f"{nodes} {have} every image"
    ended = status_text.ended_text(content["reason"], content["reason_detail"])
    facts = [(name, value) for name, value in status_text.summary_rows(content)]
    facts += [("until", content["stopped"]), ("version", content["version"])]
    return report_page(
        ReportPage(
            headline,
            f"Ended because {ended}, with exit code {content['exit_code']}.",
            complete,
            [(name.capitalize(), value) for name, value in facts],
            [*_sections(content)],
            None if coverage is None else _matrix(coverage),
            [*_images(content["images"])],
        )
    )


def _matrix(coverage: CoverageRecord) -> Matrix:
    rows: dict[str, list[str]] = {}
    for states in coverage["matrix"].values():
        for node, state in states.items():
            rows.setdefault(node, []).append(LETTERS.get(state, "m"))
    nodes = {node: "".join(letters) for node, letters in rows.items()}
    return Matrix(list(coverage["matrix"]), nodes, accepted_letters(coverage["accept"]))


def _sections(content: Report) -> Iterator[Section]:
    """Yield the lists of a report, problems first."""
    if coverage := content["coverage"]:
        missing = [*_missing(coverage["missing"])]
        if coverage["missing_left_out"]:
            missing.append(f"and {counted(coverage['missing_left_out'], 'more image')}")
        silent = coverage["nodes_wanted"] - len(coverage["nodes"])
        if silent > 0 and not coverage["complete"]:
            missing.append(f"{counted(silent, 'more node')} pulled nothing")
        yield Section("Missing", missing)
        yield Section("Not in the registry", coverage["absent"])
    yield Section("Corrupt", [status_text.corruption_text(one) for one in content["corrupt"]])
    yield Section("Cut", status_text.aborted_lines(content["cut"], content["cut_requests"]))
    yield Section("Prefetch", status_text.prefetch_lines(content))
    yield Section("Safe to stop", status_text.safety_lines(content))
    claims = status_text.claims_line(content)
    warnings = [claims, *status_text.asked_again_lines(content["asked_again"])]
    yield Section("Warnings", [text for text in warnings if text])
    refused = [
        f"{one['user'] or 'no name'} at {one['address']}: {counted(one['requests'], 'request')}"
        for one in content["denied"]
    ]
    yield Section("Refused", refused)
    upstreams = [
        f"{one['host']}: {format_size(one['bytes'])} in {counted(one['downloads'], 'blob')}"
        for one in content.get("upstreams", ())
    ]
    yield Section("Fetched from upstreams", upstreams)
    yield Section("Records", status_text.recorded_lines(content))


def _missing(gaps: Iterable[GapRecord]) -> Iterator[str]:
    """Yield a line for each node, of the images that it lacks."""
    lacking: dict[str, list[str]] = {}
    for gap in gaps:
        image, state = gap["image"], gap["state"]
        text = image if state == State.MISSING else f"{image} ({state})"
        lacking.setdefault(gap["node"], []).append(text)
    for node, images in lacking.items():
        yield f"{node}: {join_names(images, _MOST_IMAGES)}"


def _images(images: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for image in images:
        nodes = [pull["node"] for pull in image["pulls"] if pull["state"] in HAS_IMAGE]
        yield image["name"], join_names(nodes, _MOST_NODES) or "nobody"
