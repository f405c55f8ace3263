"""The trace of a request: read strictly, and put where it is looked for."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mayfly.registry.telemetry.trace import trace_id, traceparent
from tests.support.client import basic
from tests.support.process import Mayfly

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize("header", [GOOD, f"01-{TRACE}-{PARENT}-01", f"cc-{TRACE}-{PARENT}-01-x"])
def test_valid(header: str) -> None:
    """Also of later versions, without what they add."""
    assert traceparent({"traceparent": header}) == header[:55]
    assert trace_id({"traceparent": header}) == TRACE


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01\n",
        f" {GOOD}",
        f"01-{TRACE}-{PARENT}-01-" + "x" * 5000,
    ],
)
def test_invalid(header: str) -> None:
    """What is not exactly a header of the specification is no trace."""
    assert traceparent({"traceparent": header}) == ""
    assert trace_id({"traceparent": header}) == ""


def test_events_and_log_have_it(tmp_path: Path) -> None:
    """An event, a refusal's, and its line; without the header none has a field for it."""
    audit = tmp_path / "audit.jsonl"
    options = ("--audit", str(audit), "--audit-level", "all", "--auth", "auto", "--log-format=json")
    # Equal refusals would share an event.
    wrong, other = (dict([basic(name, "wrong")]) for name in ("admin", "nobody"))
    traced = {"traceparent": GOOD}
    with Mayfly(tmp_path / "root", tmp_path / "state", *options) as server:
        for headers in ({}, traced, wrong, traced | other):
            request = urllib.request.Request(f"{server.url}/auth/token?service=x", headers=headers)
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(request, timeout=30).close()
    events = [json.loads(line) for line in audit.read_text().splitlines()]
    found = [
        (one["outcome"], one["request"].get("traceparent")) for one in events if "request" in one
    ]
    assert found == [("done", None), ("done", GOOD), ("denied", None), ("denied", GOOD)]
    lines = [json.loads(line) for line in server.output().splitlines() if line.startswith("{")]
    assert [one.get("trace") for one in lines if one.get("event") == "refused"] == [None, TRACE]
