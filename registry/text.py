"""Text from outside, as it may reach a terminal or a log.

Names, annotations, paths and agents are written by strangers. An escape sequence in one moves the
cursor or retypes what was said, a line break forges a line, and a mark of text direction makes a
path read as another. So nothing that is not printable is written as it is:

- `line` makes one line of a text, for a message that holds what somebody else wrote; the log's
  formatters and the message of a failed command pass through it;
- `Terminal` stands before standard output and error and escapes whatever else comes by, be it of
  print, of click or of a traceback; `install` puts it in place.

JSON needs none of it: its own escapes are exact (`exact_json`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

_KEPT = frozenset("\n\t")
"""Line breaks and tabs, which stay as they are."""


def line(text: object) -> str:
    """Return a text as one line, characters that are not printable as ``\\x1b`` or ``\\u202e``.

    Not printable are control, format, surrogate, private and unassigned characters of Unicode, and
    all separators but the blank.
    """
    return _escaped(str(text), frozenset())


def exact_json(document: object, indent: int | None = None) -> str:
    """A JSON text with every character that a terminal could obey escaped, and none changed."""
    # All but this one is escaped by ensure_ascii.
    return json.dumps(document, indent=indent, default=str).replace("\x7f", "\\u007f")


class Terminal:
    """A text stream that escapes characters that are not printable, but for line breaks and tabs.

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
    """Escape everything that this process prints from now on."""
    sys.stdout, sys.stderr = Terminal(sys.stdout), Terminal(sys.stderr)


def raw(stream: TextIO) -> TextIO:
    """The stream beneath a `Terminal`, for control sequences of our own."""
    return stream.raw if isinstance(stream, Terminal) else stream


def _escaped(text: str, kept: frozenset[str]) -> str:
    if text.isprintable():
        return text
    return "".join(
        c if c in kept or c.isprintable() else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def escaped(document: Any) -> Any:
    """A document as JSON has it, every text in it as one line."""
    if isinstance(document, str):
        return line(document)
    if isinstance(document, Mapping):
        return {key: escaped(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [escaped(value) for value in document]
    return document


def join_names(names: Sequence[str], most: int, kind: str = "") -> str:
    """The first names, and the number of the others: ``a, b and 3 more``.

    Args:
        names: in order.
        most: how many are written out.
        kind: of the others, such as ``nodes``.
    """
    more = f" and {len(names) - most} more {kind}".rstrip() if len(names) > most else ""
    return ", ".join(names[:most]) + more


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print one line, whatever is in it; to standard error if ``err``."""
    # A closed pipe is for the caller to answer, as of print.
    stream = sys.stderr if err else sys.stdout
    stream.write(line(text) + ("\n" if nl else ""))
    stream.flush()
