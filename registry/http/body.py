"""A request's body on its way from the socket into its reader's buffer.

    idle ──read_into──► reading ──buffer full──► idle
                           ├──end of the body──► complete
                           └──connection lost or malformed──► failed

Data is received only while a reader wants it: otherwise reading is paused, and the data stays with
the sender. Bytes that arrived together with the head are buffered meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from collections.abc import Callable

from mayfly.registry.http.errors import BodyIncomplete
from mayfly.registry.http.framing import ChunkedReader, ContentLengthReader, FramingInvalid

UNBOUNDED = 2**62
"""Length in bytes of a body that is discarded until the end of the connection."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Interim response. A client that did not ask for it ignores it (RFC 9110, 15.2.1)."""

_MIN_FREE = 4096
"""Bytes; a buffer with less free space counts as full."""


class Body:
    """The body of one request, for one reader at a time in one event loop.

    Args:
        transport: of the connection; its reading is paused while no reader waits.
        length: in bytes; None for a chunked body.
        expects_continue: whether the client waits for 100 Continue (RFC 9110, 10.1.1).
        on_complete: called at the end of the body with the bytes that arrived after it.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        length: int | None,
        expects_continue: bool,
        on_complete: Callable[[bytes], None],
    ) -> None:
        self.length = length
        self._transport = transport
        self._framing = ChunkedReader() if length is None else ContentLengthReader(length)
        self._expects_continue = expects_continue
        self._on_complete = on_complete
        self._pending = b""
        """Raw bytes that arrived and are not decoded yet."""
        self._buffer = memoryview(b"")
        self._filled = 0
        self._waiter: asyncio.Future[None] | None = None
        self._failure: str | None = None
        """Why no more comes. Kept as text: an exception would lead back here by its traceback."""

    @property
    def complete(self) -> bool:
        """Whether the whole body was read."""
        return self._framing.complete

    @property
    def is_awaited(self) -> bool:
        """Whether a reader waits for the client."""
        return self._waiter is not None

    async def read_into(self, buffer: memoryview) -> int:
        """Fill a buffer; return when it is full or the body is complete.

        Returns:
            The number of bytes; 0 only at the end of the body.

        Raises:
            BodyIncomplete: the body ended before its announced end, or is malformed. Content that
                arrived before that is returned first.
        """
        self._buffer, self._filled = buffer, 0
        self._decode_pending()
        while not self._is_satisfied():
            if self._pending:
                await asyncio.sleep(0)  # let other tasks run before more is decoded
                self._decode_pending()
                continue
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            self._request_more()
            try:
                await waiter
            finally:
                self._wake()  # where the reader was cancelled
        self._buffer = memoryview(b"")
        if self._failure is not None and not self._filled:
            raise BodyIncomplete(self._failure)
        return self._filled

    async def read(self, limit: int) -> bytes:
        """Return the whole body; of one over ``limit`` bytes, a part that is longer than that.

        Raises:
            BodyIncomplete: see `read_into`.
        """
        content = bytearray()
        buffer = memoryview(bytearray(min(self.length or _SMALL, limit + 1, _SMALL)))
        while len(content) <= limit and (count := await self.read_into(buffer)):
            content += buffer[:count]
        return bytes(content)

    async def discard(self, seconds: float) -> None:
        """Receive and discard for a while, so that the client can read its response.

        If the connection were closed at once it would be reset, and the response could be lost.
        Chunks are not decoded: the connection is to be closed, so their end does not matter.
        """
        if self._transport.is_closing():
            return
        # Also of a client that expects 100 Continue: it may stop waiting (RFC 9110, 10.1.1).
        self._expects_continue = False
        if self._failure is not None or isinstance(self._framing, ChunkedReader):
            self._framing, self._failure = ContentLengthReader(UNBOUNDED), None
            self._pending = b""
        with contextlib.suppress(NotImplementedError, OSError):
            self._transport.write_eof()
        try:
            async with asyncio.timeout(seconds):
                while await self.read_into(_discarded):
                    pass
        except (BodyIncomplete, TimeoutError):
            return

    def discard_pending(self) -> bool:
        """Discard the bytes that have arrived; return whether the body is complete by that."""
        while self._pending and not self.complete and self._failure is None:
            self._buffer, self._filled = _discarded, 0
            self._decode_pending()
        self._buffer = memoryview(b"")
        return self.complete

    # Called by the connection

    def receive_buffer(self) -> memoryview | None:
        """Return where to receive data; None while no reader waits."""
        return self._raw_buffer() if self.is_awaited else None

    def received(self, count: int) -> None:
        """Take ``count`` bytes that were received into `receive_buffer`."""
        raw = self._raw_buffer()[:count]
        try:
            content, used = self._framing.decode(raw, self._buffer[self._filled :])
        except FramingInvalid as error:
            self._pending = b""
            self.fail(str(error))
            return
        self._filled += content
        if self.complete:
            rest, self._pending = bytes(raw[used:]) + self._pending, b""
            self._wake()
            self._on_complete(rest)
        elif used < len(raw):
            self._pending = bytes(raw[used:]) + self._pending
            self._wake()
        elif self._is_satisfied():
            self._wake()

    def buffer(self, data: bytes) -> None:
        """Keep bytes that arrived before a reader asked for them, and pause reading."""
        self._expects_continue = False
        self._pending += data
        self._pause()

    def fail(self, reason: str = "the request's body ended early") -> None:
        """End the body before its end: the connection is lost, or the data is malformed."""
        if self._failure is None and not self.complete:
            self._failure = reason
            self._wake()

    def _decode_pending(self) -> None:
        """Decode pending bytes as `received` does, a bounded number at a time."""
        if self._pending and not self._is_full() and not self.complete:
            raw = self._raw_buffer()
            piece, self._pending = self._pending[: len(raw)], self._pending[len(raw) :]
            raw[: len(piece)] = piece
            self.received(len(piece))

    def _raw_buffer(self) -> memoryview:
        """Where raw bytes go: chunked content has to be decoded into its final place."""
        free = self._buffer[self._filled :]
        raw = shared_buffer if isinstance(self._framing, ChunkedReader) else free
        return raw[: self._framing.limit(len(free))]

    def _is_satisfied(self) -> bool:
        return self._is_full() or self.complete or self._failure is not None

    def _is_full(self) -> bool:
        free = len(self._buffer) - self._filled
        return free < min(_MIN_FREE, len(self._buffer))

    def _request_more(self) -> None:
        if self._expects_continue:
            self._expects_continue = False
            self._transport.write(CONTINUE)
        self._transport.resume_reading()

    def _pause(self) -> None:
        if not self.complete and not self._transport.is_closing():
            self._transport.pause_reading()

    def _wake(self) -> None:
        # Pause at once, not in the reader's turn: there is no buffer for data that comes before.
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._pause()
            if not waiter.done():
                waiter.set_result(None)


_SMALL = 64 * 1024


def allocate(size: int) -> memoryview:
    """Return a buffer that begins on a page and is unmapped when it is released.

    Copies into a large bytearray, which begins 16 bytes after a page, were measured to take three
    times as long.
    """
    return memoryview(mmap.mmap(-1, size))


shared_buffer = allocate(256 * 1024)
"""Shared by all connections of the event loop: its content is consumed before other tasks run."""

_discarded = allocate(_SMALL)
"""Receives all bodies that are discarded."""
