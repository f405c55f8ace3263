"""Where a request's body begins and ends (RFC 9112, 6 and 7). Pure: bytes in, bytes out.

aiohttp reads the heads of requests; their bodies take a shorter way (`registry.http.body`), so they
are framed here. Of the two ways to announce a body a head may have one, once and plainly written.
All else is refused: whoever reads it differently could take part of a body for a request.
"""

from __future__ import annotations

import re

MAX_HEAD = 80 * 1024
"""Bytes of a request's head. A token that grants many scopes takes some KiB."""

MAX_LINE = 64 * 1024
"""Bytes of one line in a head, the request line or a header field."""

HEAD_END = b"\r\n\r\n"

_FIELD = re.compile(rb"\r\n(content-length|transfer-encoding):([^\r\n]*)(?=\r\n)")
_MENTION = re.compile(rb"[\r\n][ \t]*(?:content-length|transfer-encoding)[ \t]*:")
_LENGTH = re.compile(rb"(?<=\r\n)(content-length:)[^\r\n]*", re.IGNORECASE)
_EXPECTATION = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n")
_BEGINNING = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}(?: |\Z)")
_DIGITS = re.compile(rb"[0-9]{1,19}")
_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[^\r\n]*)?")
_NEXT_CHUNK = re.compile(rb"\r\n([0-9a-fA-F]{1,15})\r\n")

_HTTP_1_0 = b" HTTP/1.0"
_HTTP_1_1 = b" HTTP/1.1"

_MAX_CHUNK_LINE = 4096
_MAX_TRAILER = 8192
_AT_ONCE = 256 * 1024
"""Bytes of a chunked body that are decoded before others of the event loop get their turn."""
_LINES_AT_ONCE = 1024
"""Lines between chunks for the same: a chunk of one byte takes as long as one of many."""


class FramingInvalid(Exception):
    """A message is not HTTP/1.1 or HTTP/1.0 with one clear end.

    Attributes:
        status: of the answer.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def check_head(head: bytes) -> None:
    """Check a complete head's lengths and version, before any pattern looks at it.

    Raises:
        FramingInvalid: it is too long, a line of it is, or its version is not 1.0 or 1.1.
    """
    if len(head) > MAX_HEAD:
        raise too_long()
    if len(head) > MAX_LINE and any(len(line) > MAX_LINE for line in head.split(b"\r\n")):
        raise FramingInvalid(f"a line of the request's head is over {MAX_LINE >> 10} KiB", 431)
    line = head[: head.find(b"\r\n")]
    if not line.endswith((_HTTP_1_1, _HTTP_1_0)):
        raise FramingInvalid("the request is not HTTP/1.1 or HTTP/1.0", _status_of_version(line))


def too_long() -> FramingInvalid:
    """The error for a head, complete or not, of more than `MAX_HEAD` bytes."""
    return FramingInvalid(f"the request's head is over {MAX_HEAD >> 10} KiB", 431)


def _status_of_version(line: bytes) -> int:
    """Return 505 for an unsupported version of HTTP, 400 where none is named."""
    return 505 if line.rpartition(b" ")[2].startswith(b"HTTP/") else 400


def _is_http_1_1(head: bytes) -> bool:
    return head[: head.find(b"\r\n")].endswith(_HTTP_1_1)


def body_length(head: bytes) -> int | None:
    """The number of bytes in the body that a head announces; None for a chunked one.

    Raises:
        FramingInvalid: it announces one in another way, or more than once.
    """
    lowered = head.lower()
    if b"content-length" not in lowered and b"transfer-encoding" not in lowered:
        return 0
    # Blanks are stripped here: a pattern that looks for those at the end of a value takes time that
    # grows with the square of those within it.
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


def waits_to_be_asked(head: bytes) -> bool:
    """Whether the body comes only after 100 Continue; never in HTTP/1.0 (RFC 9110, 10.1.1)."""
    return _is_http_1_1(head) and _EXPECTATION.search(head.lower()) is not None


def may_be_head(data: bytes | bytearray) -> bool:
    """Whether what has arrived so far may become a head: it begins with a method."""
    return _BEGINNING.match(data) is not None


def without_body(head: bytes, length: int | None) -> bytes:
    """The same request for a parser that is not to see the body."""
    return head + b"0\r\n\r\n" if length is None else _LENGTH.sub(rb"\1 0", head)


class Sized:
    """The content of a body whose length was announced."""

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def over(self) -> bool:
        """Whether all of the body has come."""
        return self._left == 0

    def room(self, free: int) -> int:
        """How many of ``free`` bytes may be received without going beyond the body."""
        return min(free, self._left)

    def decode(self, raw: memoryview, into: memoryview) -> tuple[int, int]:
        """See `Chunked.decode`; but it is all content, and received in its place."""
        count = min(len(raw), self._left)
        self._left -= count
        return count, count


class Chunked:
    """The content of a chunked body.

      ┌──────────────────────────────┐
      ▼                              │
    size ──► content ──► content's line end
      │ 0
      ▼
    trailer ──empty line──► over
    """

    def __init__(self) -> None:
        self._left = 0
        self._line = b""
        self._ends_content = False
        self._in_trailer = False
        self._trailer = 0
        self.over = False

    def room(self, free: int) -> int:
        """See `Sized.room`: where a chunked body ends only its last bytes tell."""
        return min(free, _AT_ONCE)

    def decode(self, raw: memoryview, into: memoryview) -> tuple[int, int]:
        """Copy the content among some raw bytes to a place with room for all of them.

        Returns:
            The number of bytes of content, and of raw bytes used. Those left when the body is over
            belong to the next request; otherwise they are to be decoded in another turn.

        Raises:
            FramingInvalid: the chunks are broken.
        """
        content = used = lines = 0
        while used < len(raw) and not self.over and lines < _LINES_AT_ONCE:
            if self._left:
                count = min(self._left, len(raw) - used)
                into[content : content + count] = raw[used : used + count]
                content += count
                used += count
                self._left -= count
                self._ends_content = not self._left
                continue
            lines += 1
            if self._ends_content and (line := self._next_chunk(raw, used)):
                used += line
            else:
                used += self._read_line(bytes(raw[used : used + 64]))
        return content, used

    def _next_chunk(self, raw: memoryview, at: int) -> int:
        """A content's line end and a plain size line in one step; their length, or 0."""
        found = None if self._line else _NEXT_CHUNK.match(raw, at)
        if found is None:
            return 0
        self._ends_content = False
        self._begin(found[1])
        return found.end() - at

    def _begin(self, size: bytes) -> None:
        self._left = int(size, 16)
        self._in_trailer = not self._left

    def _read_line(self, piece: bytes) -> int:
        """Take the bytes of a line; how many of ``piece`` they were."""
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
        if self._ends_content:
            if line:
                raise FramingInvalid("a chunk is longer than its size")
            self._ends_content = False
        elif self._in_trailer:
            self._trailer += len(line)
            if self._trailer > _MAX_TRAILER:
                raise FramingInvalid("the trailer is too long")
            self.over = not line
        else:
            size = _SIZE_LINE.fullmatch(line)
            if size is None:
                raise FramingInvalid("the size of a chunk cannot be read")
            self._begin(size[1])
