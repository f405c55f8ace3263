"""Framing of request bodies (RFC 9112, sections 6 and 7). Pure: bytes in, bytes out.

aiohttp parses the heads of requests. Their bodies take a shorter path (`registry.http.body`), so
they are framed here. A head may announce its body in one of two ways, once and in plain syntax.
Everything else is rejected: a proxy that reads it differently could take part of a body for a
request.
"""

from __future__ import annotations

import re

MAX_HEAD = 80 * 1024
"""Bytes of a request's head. A token that grants many scopes takes some KiB."""

MAX_LINE = 64 * 1024
"""Bytes of one line in a head: the request line or a header field."""

HEAD_END = b"\r\n\r\n"

_FIELD = re.compile(rb"\r\n(content-length|transfer-encoding):([^\r\n]*)(?=\r\n)")
_MENTION = re.compile(rb"[\r\n][ \t]*(?:content-length|transfer-encoding)[ \t]*:")
_LENGTH = re.compile(rb"(?<=\r\n)(content-length:)[^\r\n]*", re.IGNORECASE)
_EXPECTATION = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n")
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}(?: |\Z)")
_DIGITS = re.compile(rb"[0-9]{1,19}")
_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[^\r\n]*)?")
_NEXT_CHUNK = re.compile(rb"\r\n([0-9a-fA-F]{1,15})\r\n")

_HTTP_1_0 = b" HTTP/1.0"
_HTTP_1_1 = b" HTTP/1.1"

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


def check_head(head: bytes) -> None:
    """Check a complete head's lengths and version, before any pattern is applied to it.

    Raises:
        FramingInvalid: the head or a line of it is too long, or its version is not 1.0 or 1.1.
    """
    if len(head) > MAX_HEAD:
        raise head_too_long()
    if len(head) > MAX_LINE and any(len(line) > MAX_LINE for line in head.split(b"\r\n")):
        raise FramingInvalid(f"a line of the request's head is over {MAX_LINE >> 10} KiB", 431)
    line = head[: head.find(b"\r\n")]
    if not line.endswith((_HTTP_1_1, _HTTP_1_0)):
        raise FramingInvalid("the request is not HTTP/1.1 or HTTP/1.0", _status_of_version(line))


def head_too_long() -> FramingInvalid:
    """The error for a head, complete or not, of more than `MAX_HEAD` bytes."""
    return FramingInvalid(f"the request's head is over {MAX_HEAD >> 10} KiB", 431)


def _status_of_version(line: bytes) -> int:
    """Return 505 for an unsupported version of HTTP, 400 for a line without a version."""
    return 505 if line.rpartition(b" ")[2].startswith(b"HTTP/") else 400


def _is_http_1_1(head: bytes) -> bool:
    return head[: head.find(b"\r\n")].endswith(_HTTP_1_1)


def body_length(head: bytes) -> int | None:
    """Return the length in bytes of the body that a head announces; None for a chunked body.

    Raises:
        FramingInvalid: the body is announced in another way, or more than once.
    """
    lowered = head.lower()
    if b"content-length" not in lowered and b"transfer-encoding" not in lowered:
        return 0
    # Blanks are stripped here: a pattern that matches them at the end of a value takes time
    # quadratic in the number of blanks within it.
    fields = [(name, value.strip(b" \t")) for name, value in _FIELD.findall(lowered)]
    if len(fields) != len(_MENTION.findall(lowered)):
        raise FramingInvalid("a body is announced in an unclear way")
    match fields:
        case []:
            return 0
        case [(b"transfer-encoding", b"chunked")] if _is_http_1_1(head):
            return None  # HTTP/1.0 has no chunks: its framing is faulty (RFC 9112, 6.1)
        case [(b"content-length", digits)] if _DIGITS.fullmatch(digits):
            return int(digits)
    raise FramingInvalid("the end of the body is announced in no single, supported way")


def expects_continue(head: bytes) -> bool:
    """Whether the client waits for 100 Continue; never in HTTP/1.0 (RFC 9110, 10.1.1)."""
    return _is_http_1_1(head) and _EXPECTATION.search(head.lower()) is not None


def may_be_head(data: bytes | bytearray) -> bool:
    """Whether data can be the beginning of a head: it starts with a method."""
    return _METHOD.match(data) is not None


def without_body(head: bytes, length: int | None) -> bytes:
    """Return the same request with an empty body, for a parser that is not given the body."""
    return head + b"0\r\n\r\n" if length is None else _LENGTH.sub(rb"\1 0", head)


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
            belongs to the next request if the body is complete; else decode it in another turn of
            the event loop.

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
