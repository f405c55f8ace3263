"""TLS between TCP and the HTTP protocol: moves bytes between a socket and a `TLSChannel`.

    accepted ─► handshake ──done──► open ──client's end──► half-closed ──close──► closed
                    │                └─────────────────close─────────────────────────┤
                    └──rejected, or timed out────────────────────────────────────────┘

The end of a client's data is its close_notify, or TCP's alone: a request says by itself where it
ends, so that nothing is missed where the former lacks.

asyncio's own TLS copies content more often than it encrypts it, and cannot send files. Here data is
received into one buffer that all connections share, and decrypted into its final place; and while
a file is sent the channel is lent to the sender's threads (`registry.http.file_sender`). A handler
starts inside the call that passes its request up, and may lend the channel there; so decrypting
looks at that after each piece.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from mayfly.registry.http.body import allocate
from mayfly.registry.http.tls_channel import TLSChannel

_RECEIVE_BYTES = 256 * 1024

Factory = Callable[[], asyncio.BufferedProtocol]
"""Creates the HTTP protocol once the handshake is done."""


class TLSAcceptor:
    """Sets up the TLS connections of one server.

    Args:
        context: with the server's certificates.
        factory: see `Factory`.
        seconds: for a handshake; None for no limit.

    Attributes:
        buffer: receives for all connections; it is empty again when another one gets its turn.
    """

    def __init__(
        self, context: ssl.SSLContext, factory: Factory, seconds: float | None = None
    ) -> None:
        self.context = context
        self.factory = factory
        self._seconds = seconds
        # It does not begin on a page: OpenSSL copies it to a place 16 bytes after the begin of one,
        # and copies between places with the same offset in their pages were ten times slower on an
        # AMD EPYC.
        self.buffer = allocate(4096 + _RECEIVE_BYTES)[3072:][:_RECEIVE_BYTES]

    async def accept(self, connection: socket.socket) -> None:
        """Take over an accepted socket, and return when its handshake is done.

        Raises:
            OSError: the handshake failed, the client is gone, or it took too long.
        """
        loop = asyncio.get_running_loop()
        _, made = await loop.connect_accepted_socket(lambda: TLSTransport(self), connection)
        try:
            async with asyncio.timeout(self._seconds):
                await made.established
        except BaseException:
            made.abort()
            raise
        finally:
            # Its `established` has the exception, whose traceback has this frame: a cycle
            # otherwise.
            del made


class TLSTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """One connection: a protocol to TCP below, a transport to HTTP above.

    Reference counting must free the channel's memory once the connection is lost: the garbage
    collector counts objects, not bytes, and would leave it for long. So no exception that passes
    here may be kept by an object that its traceback leads to.
    """

    def __init__(self, acceptor: TLSAcceptor) -> None:
        super().__init__()
        self._factory = acceptor.factory
        self._buffer = acceptor.buffer
        self._channel = TLSChannel(acceptor.context)
        self._tcp: asyncio.Transport
        self._http: asyncio.BufferedProtocol | None = None
        self._is_reading = True
        self._is_writable = True
        self._has_ended = False
        """Whether TCP has ended in the client's direction."""
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake has ended; has its error if it failed."""

    # As TCP's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._tcp = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._channel.has_ended:
            return  # nothing may follow close_notify
        try:
            self._channel.feed(self._buffer[:nbytes])
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._advance()

    def _advance(self) -> None:
        """Continue the handshake, then decrypt, as far as the received bytes allow."""
        if self._tcp.is_closing() or self._channel.is_lent:
            return
        try:
            if self._http is None and self._channel.advance():
                self._open()
            self._decrypt_pending()
            self._flush()
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            self._fail(error)
        except BaseException:
            self.abort()  # asyncio does so only where it called us itself
            raise

    def eof_received(self) -> bool:
        self._has_ended = True
        self._advance()
        return self._http is not None and not self._tcp.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:
        http, self._http = self._http, None
        if http is not None:
            http.connection_lost(exc)
        else:
            self._fail(exc or ConnectionResetError("the peer ended the handshake"))

    def pause_writing(self) -> None:
        self._is_writable = False
        # OpenSSL answers some messages by itself, whether or not the client reads the answers.
        self._tcp.pause_reading()
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        self._is_writable = True
        if self._http is not None:
            self._http.resume_writing()
        self._read_on()

    def _open(self) -> None:
        self._flush()
        if not self.established.done():  # it may have timed out in this very turn
            self._http = self._factory()
            self.established.set_result(None)
            self._http.connection_made(self)

    def _decrypt_pending(self) -> None:
        """Decrypt received bytes and pass them up, with the end of data, while HTTP reads."""
        is_drained = False
        while self._http is not None and not is_drained and self._is_reading:
            if self._channel.is_lent:
                return
            buffer = memoryview(self._http.get_buffer(-1))
            if not buffer:
                raise RuntimeError("the protocol above has no room, and has not paused")
            filled = self._channel.read_into(buffer)
            is_drained = filled < len(buffer)
            if filled:
                self._http.buffer_updated(filled)
        has_ended = self._has_ended or self._channel.has_ended
        if is_drained and has_ended and self._is_reading and self._http is not None:
            is_kept = self._http.eof_received()
            if not is_kept:
                self.close()

    def _read_on(self) -> None:
        """Resume reading if nothing prevents it, beginning with the bytes that have arrived."""
        if self._is_reading and self._is_writable and not self._channel.is_lent:
            self._tcp.resume_reading()
            asyncio.get_running_loop().call_soon(self._advance)

    def _flush(self) -> None:
        """Send OpenSSL's own messages, except if a handler has just begun to send a file."""
        if not self._channel.is_lent and (data := self._channel.take()):
            self._tcp.write(data)

    def _fail(self, error: Exception) -> None:
        if not self.established.done():
            self.established.set_exception(error.with_traceback(None))
            self.established.exception()  # marks it as retrieved, also where nothing waits for it
        self._tcp.close()

    # As HTTP's transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return TCP's information; beside it ``ssl_object``, and the ``tls_channel`` to lend."""
        if name == "ssl_object":
            return self._channel.tls
        if name == "tls_channel":
            return self._channel
        return self._tcp.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._tcp.is_closing()

    def close(self) -> None:
        if self._tcp.is_closing():
            return
        if not self._channel.is_lent:
            self._channel.close()
        self._flush()
        self._tcp.close()

    def abort(self) -> None:
        self._tcp.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._channel.is_lent, "a file is being sent"
        if not self._tcp.is_closing():
            for records in self._channel.encrypt(memoryview(data)):
                self._tcp.write(records)

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        self._is_reading = True
        self._read_on()

    def get_write_buffer_size(self) -> int:
        return self._tcp.get_write_buffer_size()
