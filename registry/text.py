"""Escaping of untrusted text for terminals and the log.

Clients choose names, annotations, paths and agents. An escape sequence in one can move the cursor
or overwrite earlier output, a line break forges a line, and a mark of text direction disguises a
path. So characters that are not printable are escaped:

- `line` makes one line of a text, for messages that contain untrusted text; the log's formatters
  and the message of a failed command use it;
- `Terminal` wraps standard output and error and escapes all other output, such as that of print,
  click or a traceback; `install` puts it in place.

JSON escapes such characters itself (`exact_json`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from datetime import datetime

_KEPT = frozenset("\n\t")
"""Line breaks and tabs, which are not escaped."""

_WITHOUT_KEPT = dict.fromkeys(map(ord, _KEPT))
"""For `str.translate`, which takes them out."""


def line(text: object) -> str:
    """Return a text as one line, with unprintable characters as ``\\x1b`` or ``\\u202e``.

    Unprintable are control, format, surrogate, private and unassigned characters of Unicode, and
    all separators but the blank.
    """
    return _escaped(str(text), frozenset())


def exact_json(document: object, indent: int | None = None) -> str:
    """Return a JSON text in which every character that a terminal could interpret is escaped."""
    # ensure_ascii escapes all others.
    return json.dumps(document, indent=indent, default=str).replace("\x7f", "\\u007f")


def json_pieces(document: object, indent: int, level: int = 0) -> Iterator[str]:
    """Yield the text of `exact_json` in pieces, so that the whole need not be in memory.

    Args:
        document: it may contain iterators, which become arrays.
        indent: blanks for each level.
        level: of the document in the one around it.
    """
    inner, outer = (f"\n{' ' * indent * depth}" for depth in (level + 1, level))
    if isinstance(document, Mapping):
        begin = "{"
        for key, value in document.items():
            yield f"{begin}{inner}{exact_json(str(key))}: "
            yield from json_pieces(value, indent, level + 1)
            begin = ","
        yield "{}" if begin == "{" else f"{outer}}}"
    elif isinstance(document, Iterator | list | tuple):
        begin = "["
        for value in document:
            yield f"{begin}{inner}"
            yield from json_pieces(value, indent, level + 1)
            begin = ","
        yield "[]" if begin == "[" else f"{outer}]"
    else:
        yield exact_json(document)


class Terminal:
    """A text stream that escapes unprintable characters, except line breaks and tabs.

    Attributes:
        raw: the stream itself, for a progress bar or to clear the screen.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        """Write a text, escaped."""
        if not isinstance(text, str):
            raise TypeError("a text stream takes text")
        self.raw.write(_escaped(text, _KEPT))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def install() -> None:
    """Escape all output of this process from now on."""
    sys.stdout, sys.stderr = Terminal(sys.stdout), Terminal(sys.stderr)


def raw(stream: TextIO) -> TextIO:
    """Return the stream beneath a `Terminal`, for control sequences of Mayfly itself."""
    return stream.raw if isinstance(stream, Terminal) else stream


def _escaped(text: str, kept: frozenset[str]) -> str:
    if text.isprintable() or (kept and text.translate(_WITHOUT_KEPT).isprintable()):
        return text
    return "".join(
        c if c in kept or c.isprintable() else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def escaped(document: Any) -> Any:
    """Return a JSON document with every text in it, keys too, as one line."""
    if isinstance(document, str):
        return line(document)
    if isinstance(document, Mapping):
        return {escaped(key): escaped(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [escaped(value) for value in document]
    return document


def join_names(names: Sequence[str], most: int, kind: str = "") -> str:
    """Return the first names, and the number of the others: ``a, b and 3 more``.

    Args:
        names: in order.
        most: how many are written out.
        kind: of the others, such as ``nodes``.
    """
    more = f" and {len(names) - most} more {kind}".rstrip() if len(names) > most else ""
    return ", ".join(names[:most]) + more


def to_the_minute(moment: datetime) -> str:
    """Format a moment in UTC for people, such as ``2026-01-31 12:00 UTC``."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def host_time(now: datetime) -> str:
    """Return a text about this host's clock, which may be why a certificate is refused."""
    return f"this host's clock says {to_the_minute(now)}"


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print a text as one escaped line; to standard error if ``err``."""
    # A closed pipe is for the caller to answer, as of print.
    stream = sys.stderr if err else sys.stdout
    stream.write(line(text) + ("\n" if nl else ""))
    stream.flush()
