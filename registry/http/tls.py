"""TLS between TCP and the HTTP protocol.

    accepted ─► handshake ──done──► open ──close──► closed
                    └──rejected, or timed out────────┘

asyncio's own TLS copies content more often than it encrypts it, and sends files at a tenth of this
transport's rate. Two things differ here. Files are encrypted and sent by worker threads
(`registry.http.tls_sendfile`). And data is received into one buffer that all connections share, and
decrypted into its final place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from typing import IO, Any

from mayfly.registry.http.body import allocate
from mayfly.registry.http.tls_sendfile import SMALL_WRITE, FileSender

_RECEIVE_BYTES = 256 * 1024

_MAX_HELLO = 16 * 1024
"""Bytes of a client's first message. It takes one or two thousand; OpenSSL would allow 131,396, and
allocates all of it as soon as that many are announced."""

_HELLO_HEAD = 9
"""Bytes of the heads of the first record and of the message in it (RFC 8446, 5.1 and 4)."""

_HANDSHAKE_RECORD = 22

_received = allocate(4096 + _RECEIVE_BYTES)[3072:][:_RECEIVE_BYTES]
"""Shared by all connections of the event loop: empty again when another gets its turn.

It does not begin on a page. OpenSSL copies it to a place 16 bytes after the begin of one; copies
between places with the same offset in their pages were ten times slower on an AMD EPYC.
"""

Factory = Callable[[], asyncio.BufferedProtocol]
"""Creates the HTTP protocol once the handshake is done."""


async def accept(
    connection: socket.socket, context: ssl.SSLContext, factory: Factory, seconds: float | None
) -> None:
    """Take over an accepted socket, and return when its handshake is done.

    Args:
        seconds: for the handshake; None for no limit.

    Raises:
        OSError: the handshake failed, the client is gone, or it took too long.
    """
    loop = asyncio.get_running_loop()
    _, made = await loop.connect_accepted_socket(lambda: TLSTransport(context, factory), connection)
    try:
        async with asyncio.timeout(seconds):
            await made.established
    except BaseException:
        made.abort()
        raise
    finally:
        # Its `established` has the exception, whose traceback has this frame: a cycle otherwise.
        del made


class TLSTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """One connection: a protocol to TCP below, a transport to HTTP above.

    OpenSSL keeps up to a megabyte of buffers for it. Reference counting must free them once the
    connection is lost: the garbage collector counts objects, not bytes, and would leave them for
    long. So no exception that passes here may be kept by an object that its traceback leads to.
    """

    def __init__(self, context: ssl.SSLContext, factory: Factory) -> None:
        super().__init__()
        self._factory = factory
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._tcp: asyncio.Transport
        self._http: asyncio.BufferedProtocol | None = None
        self._hello = b""
        self._writable = asyncio.Event()
        self._writable.set()
        self._files = FileSender(self._tls, self._outgoing, self._writable)
        self._is_sending = False
        """Whether `_files` uses the TLS object."""
        self._is_reading = True
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake has ended; has its error if it failed."""

    @property
    def encrypted(self) -> int:
        """Bytes of the records made of files so far."""
        return self._files.encrypted

    # As TCP's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._tcp = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return _received

    def buffer_updated(self, nbytes: int) -> None:
        if len(self._hello) < _HELLO_HEAD:
            self._hello += _received[: min(nbytes, _HELLO_HEAD - len(self._hello))]
            if not _is_acceptable_hello(self._hello):
                self._fail(ssl.SSLError("the first message is too large, or fragmented"))
                return
        self._incoming.write(_received[:nbytes])
        self._advance()

    def _advance(self) -> None:
        """Go on with the handshake, and with what has arrived, as far as possible."""
        if self._tcp.is_closing() or self._is_sending:
            return
        try:
            if self._http is None:
                self._do_handshake()
            self._decrypt_pending()
            self._flush()  # OpenSSL's own messages, such as answers to key updates
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            self._fail(error)
        except BaseException:
            self.abort()  # asyncio does so only where it called us itself
            raise

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._files.close()
        self._writable.set()
        http, self._http = self._http, None
        if http is not None:
            http.connection_lost(exc)
        else:
            self._fail(exc or ConnectionResetError("the peer ended the handshake"))

    def pause_writing(self) -> None:
        self._writable.clear()
        # OpenSSL answers some messages by itself, whether or not the client reads the answers.
        self._tcp.pause_reading()
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        self._files.release_unsent()
        self._writable.set()
        if self._http is not None:
            self._http.resume_writing()
        self._read_on()

    def _do_handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        self._flush()
        if not self.established.done():  # it may have timed out in this very turn
            self._http = self._factory()
            self.established.set_result(None)
            self._http.connection_made(self)

    def _decrypt_pending(self) -> None:
        """Decrypt what has arrived and pass it up, while HTTP reads."""
        if self._http is None:
            return
        is_drained = got_close_notify = False
        while not is_drained and self._is_reading and not self._is_sending:
            buffer = memoryview(self._http.get_buffer(-1))
            if not buffer:
                raise RuntimeError("the protocol above has no room, and has not paused")
            filled = 0
            try:
                while filled < len(buffer) and not is_drained:
                    count = self._tls.read(len(buffer) - filled, buffer[filled:])
                    filled += count  # type: ignore[operator]
                    is_drained = got_close_notify = not count
            except ssl.SSLWantReadError:
                is_drained = True
            if filled:
                self._http.buffer_updated(filled)
        if got_close_notify:
            self.close()

    def _read_on(self) -> None:
        """Resume reading if nothing prevents it, beginning with what has arrived before."""
        if self._is_reading and not self._is_sending and self._writable.is_set():
            self._tcp.resume_reading()
            asyncio.get_running_loop().call_soon(self._advance)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._tcp.write(self._outgoing.read())

    def _fail(self, error: Exception) -> None:
        if not self.established.done():
            self.established.set_exception(error.with_traceback(None))
            self.established.exception()  # marks it as retrieved, also where nothing waits for it
        self._tcp.close()

    # As HTTP's transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._tls
        if name == "sslcontext":
            return self._tls.context
        return self._tcp.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._tcp.is_closing()

    def close(self) -> None:
        if self._tcp.is_closing():
            return
        if not self._is_sending:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()  # sends close_notify; the client's is not waited for
            self._flush()
        self._tcp.close()

    def abort(self) -> None:
        self._tcp.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._is_sending, "a file is being sent"
        if self._tcp.is_closing():
            return
        left = memoryview(data)
        while left:
            left = left[self._tls.write(left[:SMALL_WRITE]) :]
            self._flush()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        self._is_reading = True
        self._read_on()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._tcp.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._tcp.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._tcp.get_write_buffer_limits()

    async def sendfile(
        self,
        file: IO[bytes],
        offset: int,
        count: int,
        progress: Callable[[int], None] = lambda taken: None,
        release: Callable[[int], None] = os.close,
        ahead: Callable[[int], None] = lambda count: None,
    ) -> int:
        """Send part of a file; see `registry.http.sendfile.sendfile`."""
        if self._tcp.is_closing():
            raise ConnectionResetError("client is gone")
        # A thread uses it: closing the connection frees the socket's own descriptor for another.
        descriptor = os.dup(self._tcp.get_extra_info("socket").fileno())
        self._is_sending = True
        self._tcp.pause_reading()
        self._tcp.set_write_buffer_limits(high=0)
        try:
            part = file, offset, count
            return await self._files.send(self._tcp, descriptor, *part, progress, ahead)
        except BaseException:
            # It may have stopped in the middle of a record, after which nothing can follow.
            self.abort()
            raise
        finally:
            release(descriptor)
            self._is_sending = False
            if not self._tcp.is_closing():
                self._tcp.set_write_buffer_limits()
                self._read_on()


def _is_acceptable_hello(hello: bytes) -> bool:
    """Whether a connection may begin with these bytes, `_HELLO_HEAD` or fewer."""
    if len(hello) < _HELLO_HEAD or hello[0] != _HANDSHAKE_RECORD:
        return True  # OpenSSL itself rejects other records
    record, message = int.from_bytes(hello[3:5]), int.from_bytes(hello[6:9])
    # A head that is fragmented over several records could not be read here; no client sends that.
    return record >= 4 and message <= _MAX_HELLO
