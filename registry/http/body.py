"""A request's body on its way from the socket into the buffer of whoever wants it.

    begun ──fill──► waiting ──full──► begun
                       │ └──end──► over
                       └──cut, or no HTTP──► broken

Nothing is received that nobody asked for: a body that is not wanted yet stays with its sender. What
arrived together with the head is held meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from collections.abc import Callable

from aiohttp.web_request import BaseRequest

from mayfly.registry.http.errors import BodyIncomplete
from mayfly.registry.http.framing import Chunked, FramingInvalid, Sized

ENDLESS = 2**62
"""Bytes; the length of what comes when nobody can tell any more where a request ends."""

_LEAST_ROOM = 4096
"""Bytes; a buffer with less room counts as full."""


class HTTPRequest(BaseRequest):
    """aiohttp's request, whose body is not aiohttp's."""

    body: Body | None = None
    """None where there is none."""

    client: str | None = None
    """The client's address, where a trusted proxy says it."""

    @property
    def remote(self) -> str | None:
        """The client's address: from a trusted proxy's header, else from the connection."""
        if self.client is not None:
            return self.client
        peer = self.get_extra_info("peername")
        return str(peer[0]) if peer else None

    @property
    def announced_length(self) -> int:
        """Bytes; 0 where none is announced."""
        return (self.body.length or 0) if self.body is not None else 0

    async def read_body(self, limit: int) -> bytes:
        """See `Body.read`."""
        return await self.body.read(limit) if self.body is not None else b""


class Body:
    """Belongs to one event loop and to one reader.

    Args:
        transport: of the connection; paused as long as nobody reads.
        length: in bytes; None for a chunked body.
        expects: whether the client waits to be asked for it (RFC 9110, 10.1.1).
        ended: called with what arrived after the body.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        length: int | None,
        expects: bool,
        ended: Callable[[bytes], None],
    ) -> None:
        self.length = length
        self._transport = transport
        self._framing = Chunked() if length is None else Sized(length)
        self._expects = expects
        self._ended = ended
        self._held = b""
        self._buffer = memoryview(b"")
        self._filled = 0
        self._waiter: asyncio.Future[None] | None = None
        self._failure: str | None = None
        """Why no more comes. Kept as text: an exception would lead back here by its traceback."""

    @property
    def over(self) -> bool:
        """Whether all of it was read."""
        return self._framing.over

    @property
    def is_awaited(self) -> bool:
        """Whether the sender is waited for."""
        return self._waiter is not None

    async def fill(self, buffer: memoryview) -> int:
        """Put the next content into a buffer; comes back when that is full, or the body over.

        Returns:
            The number of bytes; 0 at the end of the body only.

        Raises:
            BodyIncomplete: the body ended before its announced end, or is no HTTP. What arrived
                before was returned before.
        """
        self._buffer, self._filled = buffer, 0
        self._use_held()
        while not self._is_satisfied():
            if self._held:
                await asyncio.sleep(0)  # let other tasks run before more is decoded
                self._use_held()
                continue
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            self._ask()
            try:
                await waiter
            finally:
                self._wake()  # where the reader was cancelled
        self._buffer = memoryview(b"")
        if self._failure is not None and not self._filled:
            raise BodyIncomplete(self._failure)
        return self._filled

    async def read(self, limit: int) -> bytes:
        """A whole small body; of one over ``limit`` bytes only so much that it shows.

        Raises:
            BodyIncomplete: see `fill`.
        """
        content = bytearray()
        buffer = memoryview(bytearray(min(self.length or _SMALL, limit + 1)))
        while len(content) <= limit and (count := await self.fill(buffer)):
            content += buffer[:count]
        return bytes(content)

    async def skip(self, seconds: float) -> None:
        """Receive and discard for a while, so that the client can read its answer.

        Closed at once, the connection would be reset, and the answer lost on its way. Chunks are
        not decoded: the connection is to be closed, so nobody needs to know where they end.
        """
        if self._expects or self._transport.is_closing():
            return  # It was never asked for, or nobody is left.
        if self._failure is not None or isinstance(self._framing, Chunked):
            self._framing, self._failure, self._held = Sized(ENDLESS), None, b""
        with contextlib.suppress(NotImplementedError, OSError):
            self._transport.write_eof()
        try:
            async with asyncio.timeout(seconds):
                while await self.fill(_dropped):
                    pass
        except (BodyIncomplete, TimeoutError):
            return

    def skip_held(self) -> bool:
        """Drop what has arrived; whether that was all of the body."""
        while self._held and not self.over and self._failure is None:
            self._buffer, self._filled = _dropped, 0
            self._use_held()
        self._buffer = memoryview(b"")
        return self.over

    # From the connection

    def room(self) -> memoryview | None:
        """Where to receive into; None while nobody reads."""
        return self._place() if self.is_awaited else None

    def received(self, count: int) -> None:
        """So many bytes were received into `room`."""
        raw = self._place()[:count]
        try:
            content, used = self._framing.decode(raw, self._buffer[self._filled :])
        except FramingInvalid as error:
            self._held = b""
            self.broken(str(error))
            return
        self._filled += content
        if self.over:
            rest, self._held = bytes(raw[used:]) + self._held, b""
            self._wake()
            self._ended(rest)
        elif used < len(raw):
            self._held = bytes(raw[used:]) + self._held
            self._wake()
        elif self._is_satisfied():
            self._wake()

    def hold(self, data: bytes) -> None:
        """Keep bytes that nobody has asked for yet, and let no more come."""
        self._expects = False
        self._held += data
        self._pause()

    def broken(self, reason: str = "the request's body ended early") -> None:
        """Nothing more will come."""
        if self._failure is None and not self.over:
            self._failure = reason
            self._wake()

    def _use_held(self) -> None:
        """Decode held bytes as `received` does, no more than are decoded at once."""
        if self._held and not self._is_full() and not self.over:
            place = self._place()
            piece, self._held = self._held[: len(place)], self._held[len(place) :]
            place[: len(piece)] = piece
            self.received(len(piece))

    def _place(self) -> memoryview:
        """Where raw bytes go: content that comes in chunks cannot go to its place at once."""
        free = self._buffer[self._filled :]
        place = received if isinstance(self._framing, Chunked) else free
        return place[: self._framing.room(len(free))]

    def _is_satisfied(self) -> bool:
        return self._is_full() or self.over or self._failure is not None

    def _is_full(self) -> bool:
        room = len(self._buffer) - self._filled
        return room < min(_LEAST_ROOM, len(self._buffer))

    def _ask(self) -> None:
        if self._expects:
            self._expects = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._transport.resume_reading()

    def _pause(self) -> None:
        if not self.over and not self._transport.is_closing():
            self._transport.pause_reading()

    def _wake(self) -> None:
        # At once, not when the reader gets its turn: there is no room for what comes before.
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._pause()
            if not waiter.done():
                waiter.set_result(None)


_SMALL = 64 * 1024


def allocate(size: int) -> memoryview:
    """A buffer to receive or read into.

    It begins on a page, and is gone from memory when it is let go: copies into a large bytearray,
    which begins 16 bytes after one, were measured to take three times as long.
    """
    return memoryview(mmap.mmap(-1, size))


received = allocate(256 * 1024)
"""Shared by all connections of the event loop: what is received is used up before others run."""

_dropped = allocate(_SMALL)
"""Where all bodies that nobody wants go."""
