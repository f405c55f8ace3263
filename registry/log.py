"""The log on standard error: one line for each event, with time and level, as text or JSON.

    2026-01-31T02:14:07Z INFO    node-ctr: 5 of 5 images; 2 of 3 nodes
    {"time": "2026-01-31T02:14:07Z", "level": "info", "event": "node_complete", "node": …}

`event` logs a line with an event's name and data; other log calls have neither. Repeats are folded:
within `FOLD_SECONDS` of a line the same line is counted, not written, and the count is written with
its next occurrence, or at the end, with the time of the last one. So the times of lines never run
backwards. The table of lines is bounded, and keeps text only, never the objects of a log call or of
a traceback's frames.
"""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any

from mayfly.auth.limits import BoundedDict
from mayfly.registry.text import exact_json
from mayfly.registry.text import line as text_line

logger = logging.getLogger("mayfly")

FOLD_SECONDS = 60.0
MAX_FOLDED = 1024
"""Different lines whose repeats are counted; beyond that the oldest is dropped."""


def event(level: int, name: str, text: str, /, *, same: str | None = None, **data: Any) -> None:
    """Log an event.

    Args:
        level: of `logging`.
        name: for programs (docs/lifetime.md, "The log").
        text: one sentence for people.
        same: key of repeats whose texts differ; None for the text itself.
        data: values for programs, such as JSON has.
    """
    extra = {"event": name, "data": data, "same": text if same is None else f"{name} {same}"}
    logger.log(level, "%s", text, extra=extra)


def configure(form: str, level: str, stream: Any = None) -> None:
    """Set up the log of this process. Libraries log warnings and above only.

    Args:
        form: of a line, "text" or "json".
        level: name of the lowest level.
        stream: None for standard error.
    """
    handler = FoldingHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JSONLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(level.upper())


def is_json() -> bool:
    """Whether the log is JSON."""
    handlers = logging.getLogger().handlers
    return any(isinstance(handler.formatter, JSONLines) for handler in handlers)


def is_configured() -> bool:
    """Whether `configure` was called."""
    return any(isinstance(handler, FoldingHandler) for handler in logging.getLogger().handlers)


def flush() -> None:
    """Write the counts of all folded lines."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, FoldingHandler):
            handler.write_counts()


class FoldingHandler(logging.StreamHandler[Any]):
    """Writes lines, and counts repeats instead of writing them."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._seen: BoundedDict[tuple[int, str], _Seen] = BoundedDict(
            MAX_FOLDED, lambda _, forgotten: self._write_count(forgotten)
        )

    def emit(self, record: logging.LogRecord) -> None:
        key = record.levelno, str(getattr(record, "same", None) or record.getMessage())
        now = time.monotonic()
        seen = self._seen.get(key)
        if seen is not None and now - seen.written < FOLD_SECONDS:
            seen.folded += 1
            # Formatting each traceback would make a flood of errors expensive.
            seen.last = _detached(record, seen.last.exc_text)
            return
        record = _detached(record, _traceback(record))
        record.repeated = seen.folded if seen is not None else 0
        self._seen[key] = _Seen(now, record)
        super().emit(record)

    def write_counts(self) -> None:
        """Write one more line for each that was folded since it was last written."""
        for seen in self._seen.values():
            self._write_count(seen)

    def _write_count(self, seen: _Seen) -> None:
        if seen.folded:
            record = seen.last
            record.repeated = seen.folded
            record.last_created, record.created = record.created, time.time()
            seen.folded = 0
            super().emit(record)


class _Seen:
    """A line that was written, the number of repeats since, and the last of them."""

    __slots__ = ("folded", "last", "written")

    def __init__(self, written: float, record: logging.LogRecord) -> None:
        self.written = written
        self.last = record
        self.folded = 0


class TextLines(logging.Formatter):
    """For people: time, level, text."""

    def format(self, record: logging.LogRecord) -> str:
        text = text_line(record.getMessage())
        repeated = getattr(record, "repeated", 0)
        if repeated:
            last = getattr(record, "last_created", None)
            since = "" if last is None else f", the last at {_iso(last)}"
            text += f" (and {repeated} more like it{since})"
        line = f"{_iso(record.created)} {record.levelname:<7} {text}"
        if traceback := _traceback(record):
            line += "".join(f"\n    {text_line(one)}" for one in traceback.splitlines())
        return line


class JSONLines(logging.Formatter):
    """For programs: one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
            "message": record.getMessage(),
            **getattr(record, "data", {}),
        }
        repeated = getattr(record, "repeated", 0)
        if repeated:
            line["repeated"] = repeated
            last = getattr(record, "last_created", None)
            if last is not None:
                line["last"] = _iso(last)
        if traceback := _traceback(record):
            line["traceback"] = traceback
        return exact_json(line)


def _traceback(record: logging.LogRecord) -> str | None:
    """Return the traceback of a record as text; None without one."""
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    return record.exc_text


def _detached(record: logging.LogRecord, traceback: str | None) -> logging.LogRecord:
    """Return a copy of a record that keeps its text, but no argument and no exception.

    Args:
        record: to copy.
        traceback: of the copy, as text.
    """
    copy = logging.makeLogRecord(
        {
            "name": record.name,
            "levelno": record.levelno,
            "levelname": record.levelname,
            "created": record.created,
            "msg": record.getMessage(),
            "exc_text": traceback if record.exc_info or record.exc_text else None,
        }
    )
    for name in ("event", "data"):
        if hasattr(record, name):
            setattr(copy, name, getattr(record, name))
    return copy


def _iso(created: float) -> str:
    moment = datetime.fromtimestamp(created, UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
