"""Responses, and their heads as bytes.

A handler returns one of three shapes; `registry.http.connection` sends it:

    whole   the body is in memory, and goes out with the head in one write
    file    the handler begins it with its length, and then sends the content by itself
    stream  the handler begins it without a length, and writes its pieces as they come

An error is a whole response that `registry.api.app` or the server makes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus

from multidict import CIMultiDict

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_BODILESS = frozenset({204, 304})
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip


class Response:
    """A response to one request.

    Args:
        status: of HTTP.
        body: the whole body, of a response that is sent whole.
        headers: all but those of the connection and of the body's framing.
        length: bytes of the body, of a response that a handler begins; None for a stream.

    Attributes:
        close: whether the connection ends after it.
    """

    __slots__ = ("body", "close", "headers", "length", "status")

    def __init__(
        self,
        status: int = 200,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.headers = CIMultiDict(headers or {})
        self.length = length
        self.close = False

    @property
    def content_length(self) -> int:
        """Bytes of the body; 0 for a stream."""
        return len(self.body) or self.length or 0


def render_head(response: Response, length: int | None, minor: int, *, keep_alive: bool) -> bytes:
    """Return the bytes of a response's head.

    Args:
        response: whose status and headers are rendered.
        length: bytes of its body; None for a stream, which is chunked in HTTP/1.1.
        minor: version of HTTP, 0 or 1.
        keep_alive: whether another request may follow.

    Raises:
        ValueError: a header would begin another one, or is not text.
    """
    status = response.status
    lines = [f"HTTP/1.{minor} {status} {_REASONS.get(status, '')}"]
    lines += map(": ".join, response.headers.items())
    if length is None:
        if minor:
            lines.append("Transfer-Encoding: chunked")
    elif status not in _BODILESS:
        lines.append(f"Content-Length: {length}")
    if keep_alive != bool(minor):
        lines.append("Connection: keep-alive" if keep_alive else "Connection: close")
    lines.append(f"Date: {_date(int(time.time()))}\r\n\r\n")
    text = "\r\n".join(lines)
    # No value may hold a line of its own: some repeat text of a client, or of a manifest.
    if text.count("\n") != len(lines) + 1 or text.count("\r") != len(lines) + 1:
        raise ValueError("a header of the response holds a line end")
    return text.encode()


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    """Return a time in the format of HTTP (RFC 9110, 5.6.7)."""
    year, month, day, hour, minute, seconds, weekday, _, _ = time.gmtime(second)
    clock = f"{hour:02}:{minute:02}:{seconds:02}"
    return f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year} {clock} GMT"
