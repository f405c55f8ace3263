"""The log: its two forms, levels, and repeats."""

from __future__ import annotations

import ast
import gc
import io
import json
import logging
import re
import weakref
from collections.abc import Iterator
from typing import Literal

import pytest

from mayfly.registry import log
from tests.support.process import REPO
from tests.support.sources import parsed, python_files


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """The process's log is the tests' again afterwards."""
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    levels = root.level, log.logger.level
    yield
    root.handlers[:] = before
    root.setLevel(levels[0])
    log.logger.setLevel(levels[1])


def _lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_text() -> None:
    """A line has time, level and text."""
    stream = io.StringIO()
    log.configure("text", "info", stream)
    log.event(logging.INFO, "node_complete", "node-a: 5 of 5 images; 1 of 3 nodes", node="node-a")
    log.logger.error("a\x1b[2Jb\nc")
    first, second = _lines(stream)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO    node-a: 5 of 5 images; 1 of 3 nodes", first
    )
    assert second.endswith("ERROR   a\\x1b[2Jb\\nc")


def test_json() -> None:
    """A line is an object with the event's name and data; a traceback is in it too."""
    stream = io.StringIO()
    log.configure("json", "info", stream)
    assert log.is_json()
    log.event(logging.WARNING, "untrusted", "10.0.0.8 does not trust us", address="10.0.0.8")
    try:
        raise ValueError("x")
    except ValueError:
        log.logger.exception("failed")
    first, second = map(json.loads, _lines(stream))
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "warning",
        "event": "untrusted",
        "message": "10.0.0.8 does not trust us",
        "address": "10.0.0.8",
    }
    assert (second["event"], second["message"]) == ("message", "failed")
    assert "ValueError: x" in second["traceback"]


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)]
)
def test_level(level: str, shown: int) -> None:
    """What is below the level is not written; libraries' chatter never is."""
    stream = io.StringIO()
    log.configure("text", level, stream)
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.logger.log(number, "line %d", number)
    logging.getLogger("library").info("chatter")
    assert len(_lines(stream)) == shown


def test_repeats_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeat is counted, and the count is written with the next that is due, or at the end."""
    now = [100.0]
    monkeypatch.setattr("mayfly.registry.log.time.monotonic", lambda: now[0])
    monkeypatch.setattr("logging.time.time", lambda: now[0])
    stream = io.StringIO()
    log.configure("text", "info", stream)

    def refused(number: int) -> None:
        log.event(logging.WARNING, "refused", f"eve was refused: {number}", same="eve")

    for number in range(50):
        refused(number)
    log.event(logging.WARNING, "refused", "bob was refused", same="bob")
    assert [line[29:] for line in _lines(stream)] == ["eve was refused: 0", "bob was refused"]
    now[0] += log.FOLD_SECONDS
    refused(50)
    assert _lines(stream)[-1].endswith("eve was refused: 50 (and 49 more like it)")
    refused(51)
    now[0] += 20
    log.event(logging.INFO, "stopping", "stopping")
    log.flush()
    assert _lines(stream)[-1].endswith(
        "eve was refused: 51 (and 1 more like it, the last at 1970-01-01T00:02:40Z)"
    )
    times = [line[:20] for line in _lines(stream)]
    assert times[-1] == "1970-01-01T00:03:00Z"
    assert times == sorted(times)
    log.flush()
    assert len(_lines(stream)) == 5


def test_a_count_in_json_has_both_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a line is when it was written; `last` is the time of the last repeat."""
    now = [100.0]
    monkeypatch.setattr("logging.time.time", lambda: now[0])
    stream = io.StringIO()
    log.configure("json", "info", stream)
    for _ in range(3):
        log.event(logging.WARNING, "refused", "eve was refused", user="eve")
    now[0] += 30
    log.flush()
    first, count = map(json.loads, _lines(stream))
    assert "last" not in first
    assert (count["time"], count["last"], count["repeated"]) == (
        "1970-01-01T00:02:10Z", "1970-01-01T00:01:40Z", 2,
    )  # fmt: skip


def test_folding_is_bounded() -> None:
    """The table of lines is bounded, and no line is lost."""
    stream = io.StringIO()
    log.configure("text", "info", stream)
    for round_ in range(2):
        for number in range(log.MAX_FOLDED * 2):
            log.event(logging.INFO, "x", f"{number}", round=round_)
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, log.FoldingHandler)
    assert len(handler._seen) == log.MAX_FOLDED
    assert len(_lines(stream)) == log.MAX_FOLDED * 4


class _Held:
    """An object that a log call refers to."""

    def __str__(self) -> str:
        return "held"


@pytest.mark.parametrize("form", ["text", "json"])
def test_folding_keeps_no_objects(form: Literal["text", "json"]) -> None:
    """The table of lines keeps neither arguments nor the frames of a traceback, but their text."""
    stream = io.StringIO()
    log.configure(form, "info", stream)

    def log_once() -> list[weakref.ref[_Held]]:
        argument, local = _Held(), _Held()
        log.logger.warning("an argument is %s", argument)
        try:
            raise ValueError(str(local))
        except ValueError:
            log.logger.exception("an exception")
        return [weakref.ref(argument), weakref.ref(local)]

    kept = log_once() + log_once()  # written, then folded
    gc.collect()
    assert [reference() for reference in kept] == [None] * 4
    log.flush()
    text = stream.getvalue()
    assert text.count("an argument is held") == 2
    assert text.count("ValueError: held") == 2


def test_every_event_is_documented() -> None:
    """docs/lifetime.md has a row for each event that the code logs, and for no other."""
    named = {"message"}
    for path in python_files("registry"):
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call):
                continue
            if (function := ast.unparse(node.func)) in ("log.event", "Notices"):
                event = node.args[1 if function == "log.event" else 0]
                if ast.unparse(event) == "self._event":  # of `Notices`, as it was made with
                    continue
                assert isinstance(event, ast.Constant), ast.unparse(node)
                named.add(str(event.value))
    section = (REPO / "docs/lifetime.md").read_text().partition("## The log\n")[2]
    rows = re.findall(r"^\| `([a-z_]+)` \|", section.partition("\n## ")[0], re.MULTILINE)
    page = 'the table of docs/lifetime.md, "The log"'
    assert sorted(named - set(rows)) == [], f"{page}, lacks a row for these events"
    assert sorted(set(rows) - named) == [], f"{page}, has rows for events that are never logged"
    assert len(rows) == len(named), f"{page}, has two rows for one event"
