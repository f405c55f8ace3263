"""Framing of requests (RFC 9112): where a head ends, and how long the body is that it announces.

Pure: bytes in, bytes out. aiohttp's parser reads each head as it came; the parsed headers
say how the body is framed, by one strict table (`body_length`). Everything that the table lacks is
rejected: a proxy that reads it differently could take part of a body for a request.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from multidict import istr

from mayfly.registry.http.aiohttp_internals import HttpProcessingError, parse_head

if TYPE_CHECKING:
    from mayfly.registry.http.aiohttp_internals import Head

MAX_HEAD = 80 * 1024
"""Bytes of a request's head. A token that grants many scopes takes some KiB."""

MAX_LINE = 64 * 1024
"""Bytes of one line in a head: the request line or a header field."""

MAX_FIELDS = 128
"""Header fields of a head: the limit that newer versions of aiohttp have of their own."""

HEAD_END = b"\r\n\r\n"

_LONGEST_METHOD = 32
_TOKEN = b"!#$%&'*+.^_`|~0123456789-ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The characters of a method (RFC 9110, 5.6.2)."""

_CONTENT_LENGTH, _TRANSFER_ENCODING = istr("Content-Length"), istr("Transfer-Encoding")
_EXPECT, _HOST = istr("Expect"), istr("Host")
_DIGITS = re.compile(r"[0-9]{1,19}")
_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[^\r\n]*)?")
_NEXT_CHUNK = re.compile(rb"\r\n([0-9a-fA-F]{1,15})\r\n")

_MAX_CHUNK_LINE = 4096
_MAX_TRAILER = 8192
_MAX_DECODED_AT_ONCE = 256 * 1024
"""Bytes of a chunked body that are decoded before other tasks of the event loop run."""
_MAX_LINES_AT_ONCE = 1024
"""The same for lines between chunks: a chunk of one byte costs as much as a large one."""


class FramingInvalid(Exception):
    """A message that is not HTTP/1.0 or HTTP/1.1 with one unambiguous end.

    Attributes:
        status: of the response.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def read_head(head: bytes) -> Head:
    """Read a complete head.

    Raises:
        FramingInvalid: it is too long, malformed, of another version of HTTP, or asks for a tunnel.
    """
    if len(head) > MAX_HEAD:
        raise head_too_long()
    if len(head) > MAX_LINE and any(len(line) > MAX_LINE for line in head.split(b"\r\n")):
        raise FramingInvalid(f"a line of the request's head is over {MAX_LINE >> 10} KiB", 431)
    try:
        message = parse_head(head, MAX_HEAD)
    except (HttpProcessingError, ValueError):
        message = None
    if message is None:
        raise FramingInvalid("the request is not valid HTTP")
    if len(message.raw_headers) > MAX_FIELDS:
        raise FramingInvalid(f"the request's head has more than {MAX_FIELDS} fields")
    if message.version not in ((1, 1), (1, 0)):
        raise FramingInvalid("the request is not HTTP/1.1 or HTTP/1.0", 505)
    hosts = message.headers.getall(_HOST, ())
    if len(hosts) > 1 or (not hosts and message.version == (1, 1)):
        raise FramingInvalid("the request has no single Host (RFC 9112, 3.2)")
    if message.method == "CONNECT":
        raise FramingInvalid("this is not a proxy")
    return message


def head_too_long() -> FramingInvalid:
    """The error for a head, complete or not, of more than `MAX_HEAD` bytes."""
    return FramingInvalid(f"the request's head is over {MAX_HEAD >> 10} KiB", 431)


def may_be_head(data: bytes) -> bool:
    """Whether the first bytes of a connection can begin a head: with a method."""
    method, space, _ = data[: _LONGEST_METHOD + 1].partition(b" ")
    is_token = bool(method) and not method.translate(None, _TOKEN)
    return is_token and (bool(space) or len(data) <= _LONGEST_METHOD)


def body_length(head: Head) -> int | None:
    """Return the length in bytes of the body that a head announces; None for a chunked body.

    ==================  =================  ===========================================
    Content-Length      Transfer-Encoding  the body
    ==================  =================  ===========================================
    none                none               has no bytes
    one, 1 to 19 digits none               has as many bytes
    none                one, ``chunked``   is chunked, in HTTP/1.1 only (RFC 9112, 6.1)
    ==================  =================  ===========================================

    Raises:
        FramingInvalid: the body is announced in another way, or more than once.
    """
    headers = head.headers
    if _CONTENT_LENGTH not in headers and _TRANSFER_ENCODING not in headers:
        return 0
    match headers.getall(_CONTENT_LENGTH, []), headers.getall(_TRANSFER_ENCODING, []):
        case [length], [] if _DIGITS.fullmatch(digits := length.strip(" \t")):
            return int(digits)
        # Not every text is ASCII whose lower case is: KELVIN SIGN, for one, becomes a "k".
        case [], [coding] if coding.isascii() and coding.strip(" \t").lower() == "chunked":
            if head.version == (1, 1):
                return None
    raise FramingInvalid("the end of the body is announced in no single, supported way")


def expects_continue(head: Head) -> bool:
    """Whether the client waits for 100 Continue; never in HTTP/1.0 (RFC 9110, 10.1.1)."""
    expected = head.headers.get(_EXPECT, "").strip(" \t")  # not every version of aiohttp strips it
    return head.version == (1, 1) and expected.lower() == "100-continue"


class ContentLengthReader:
    """Decodes a body of known length: its content is its bytes."""

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def complete(self) -> bool:
        """Whether the whole body was received."""
        return self._left == 0

    def limit(self, free: int) -> int:
        """Return how many bytes to receive next, up to ``free``."""
        return min(free, self._left)

    def decode(self, raw: memoryview, into: memoryview) -> tuple[int, int]:
        """See `ChunkedReader.decode`; here the bytes were received in their final place."""
        count = min(len(raw), self._left)
        self._left -= count
        return count, count


class ChunkedReader:
    """Decodes a chunked body.

      ┌──────────────────────────────┐
      ▼                              │
    size ──► content ──► content's line end
      │ 0
      ▼
    trailer ──empty line──► complete
    """

    def __init__(self) -> None:
        self._left = 0
        self._line = b""
        self._after_content = False
        self._in_trailer = False
        self._trailer = 0
        self.complete = False

    def limit(self, free: int) -> int:
        """See `ContentLengthReader.limit`; may include bytes of the next request."""
        return min(free, _MAX_DECODED_AT_ONCE)

    def decode(self, raw: memoryview, into: memoryview) -> tuple[int, int]:
        """Copy the content of raw bytes into a buffer at least as large.

        Returns:
            The number of bytes of content, and of raw bytes consumed. The rest of the raw bytes
            belongs to the next request if the body is complete; otherwise decode it in another turn
            of the event loop.

        Raises:
            FramingInvalid: the chunks are malformed.
        """
        content = used = lines = 0
        while used < len(raw) and not self.complete and lines < _MAX_LINES_AT_ONCE:
            if self._left:
                count = min(self._left, len(raw) - used)
                into[content : content + count] = raw[used : used + count]
                content += count
                used += count
                self._left -= count
                self._after_content = not self._left
                continue
            lines += 1
            if self._after_content and (line := self._next_chunk(raw, used)):
                used += line
            else:
                used += self._read_line(bytes(raw[used : used + 64]))
        return content, used

    def _next_chunk(self, raw: memoryview, at: int) -> int:
        """Read a content's line end and a plain size line at once; return their length, or 0."""
        found = None if self._line else _NEXT_CHUNK.match(raw, at)
        if found is None:
            return 0
        self._after_content = False
        self._begin_chunk(found[1])
        return found.end() - at

    def _begin_chunk(self, size: bytes) -> None:
        self._left = int(size, 16)
        self._in_trailer = not self._left

    def _read_line(self, piece: bytes) -> int:
        """Read a line, or a part of it; return how many bytes of ``piece`` it took."""
        end = piece.find(b"\n") + 1
        self._line += piece[:end] if end else piece
        if len(self._line) > _MAX_CHUNK_LINE:
            raise FramingInvalid("a line between chunks is too long")
        if not end:
            return len(piece)
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise FramingInvalid("a line between chunks does not end in CR LF")
        self._take_line(line[:-2])
        return end

    def _take_line(self, line: bytes) -> None:
        if self._after_content:
            if line:
                raise FramingInvalid("a chunk is longer than its size")
            self._after_content = False
        elif self._in_trailer:
            self._trailer += len(line)
            if self._trailer > _MAX_TRAILER:
                raise FramingInvalid("the trailer is too long")
            self.complete = not line
        else:
            size = _SIZE_LINE.fullmatch(line)
            if size is None:
                raise FramingInvalid("the size of a chunk cannot be read")
            self._begin_chunk(size[1])
