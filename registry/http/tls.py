"""TLS between TCP and the HTTP protocol above, and the byte path out through it.

    accepted ─► handshake ──through──► open ──close──► closed
                    └───refused, or too slow────────────┘

asyncio's own TLS copies content more often than it encrypts it; what it sends of a file is a tenth
of what this does. Two things differ here. A file's content is read, sealed and sent by worker
threads, which hold no interpreter lock meanwhile, in turns (`_TURN`): many transfers share the
cores, and a client that reads slowly holds no thread. And what arrives is received into one buffer
that all connections share, and opened into the place where it is wanted.

OpenSSL's object is used by one thread at a time: while a file is sent nothing is read or written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from mayfly.registry.http.body import allocate
from mayfly.registry.http.tls_sending import ended, send

_LARGEST_PIECE = 512 * 1024
_SMALLEST_PIECE = 64 * 1024
_MEMORY = 16 * 1024 * 1024
"""Bytes that all connections together may hold sealed and unsent before pieces shrink."""

_TURN = 2 * 1024 * 1024
"""Bytes of a file after which a transfer lets another have its thread."""

_RECEIVED = 256 * 1024

_SEALED_AT_ONCE = 64 * 1024
"""Bytes; a connection keeps as much memory for its whole life, for OpenSSL gives none back."""

_ROOMY = 48
"""Connections that may seal whole pieces instead, which is faster."""

_LARGEST_HELLO = 16 * 1024
"""Bytes of a client's first message. They take one or two thousand; OpenSSL would allow 131,396,
and takes memory for all of it as soon as so many are announced."""

_HELLO_HEAD = 9
"""Bytes of the heads of the first record and of the message in it (RFC 8446, 5.1 and 4)."""

_HANDSHAKE = 22

_received = allocate(4096 + _RECEIVED)[3072:][:_RECEIVED]
"""Shared by all connections of the event loop: empty again whenever another gets its turn.

It does not begin with a page, as OpenSSL copies it to a place 16 bytes behind the begin of one: a
target so close behind its source, page for page, made copies ten times slower on an AMD EPYC.
"""

_THREADS = min(os.cpu_count() or 1, 8)
_threads = ThreadPoolExecutor(_THREADS, "tls")
_local = threading.local()
_unsent = 0
"""Bytes of files that are sealed and wait for their clients."""
_roomy = 0
_turns = 0
"""Turns that run or wait for a thread; counted by the event loop alone, as what is unsent is."""

Factory = Callable[[], asyncio.BufferedProtocol]
"""Makes the protocol above, once the handshake is through."""


async def accept(
    connection: socket.socket, context: ssl.SSLContext, factory: Factory, seconds: float | None
) -> None:
    """Take over an accepted socket; come back when its handshake is through.

    Args:
        seconds: for the handshake; None for as long as it takes.

    Raises:
        OSError: the peer speaks no TLS, is refused, is gone, or took too long.
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
    """One connection with two faces: to TCP it is the protocol, to HTTP the transport.

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
        self._above: asyncio.BufferedProtocol | None = None
        self._hello = b""
        self._writable = asyncio.Event()
        self._writable.set()
        self._sending = False
        self._unsent = 0
        self._is_read = True
        self._sealed_at_once = _SEALED_AT_ONCE
        self._taken = 0
        """Bytes of files taken to be sealed."""
        self.sealed = 0
        """Bytes of the records made of them."""
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake is through, or will never be."""

    # The face to TCP

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._tcp = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return _received

    def buffer_updated(self, nbytes: int) -> None:
        if len(self._hello) < _HELLO_HEAD:
            self._hello += _received[: min(nbytes, _HELLO_HEAD - len(self._hello))]
            if not _may_begin(self._hello):
                self._fail(ssl.SSLError("the first message is too large, or in crumbs"))
                return
        self._incoming.write(_received[:nbytes])
        self._advance()

    def _advance(self) -> None:
        if self._tcp.is_closing() or self._sending:
            return
        try:
            if self._above is None:
                self._shake_hands()
            self._open()
            self._flush()  # what TLS itself has to say
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            self._fail(error)
        except BaseException:
            self.abort()  # asyncio does it only where it called us itself
            raise

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        global _roomy
        if self._sealed_at_once > _SEALED_AT_ONCE:
            _roomy -= 1
        self._let_go()
        above, self._above = self._above, None
        if above is not None:
            above.connection_lost(exc)
        else:
            self._fail(exc or ConnectionResetError("the peer ended the handshake"))

    def pause_writing(self) -> None:
        self._writable.clear()
        # TLS answers by itself to some of what a client sends, whether or not that reads.
        self._tcp.pause_reading()
        if self._above is not None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        self._let_go()
        if self._above is not None:
            self._above.resume_writing()
        self._resume()

    def _let_go(self) -> None:
        """What waited for the client is gone, to it or with it."""
        global _unsent
        _unsent -= self._unsent
        self._unsent = 0
        self._writable.set()

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        self._flush()
        if not self.established.done():  # not given up in this very moment
            self._above = self._factory()
            self.established.set_result(None)
            self._above.connection_made(self)

    def _open(self) -> None:
        """Hand up what has arrived, as long as it is wanted."""
        if self._above is None:
            return
        over = said_goodbye = False
        while not over and self._is_read and not self._sending:
            room = memoryview(self._above.get_buffer(-1))
            if not room:
                raise RuntimeError("the protocol above has no room, and has not paused")
            filled = 0
            try:
                while filled < len(room) and not over:
                    count = self._tls.read(len(room) - filled, room[filled:])
                    filled += count  # type: ignore[operator]
                    over = said_goodbye = not count
            except ssl.SSLWantReadError:
                over = True
            if filled:
                self._above.buffer_updated(filled)
        if said_goodbye:
            self.close()

    def _resume(self) -> None:
        """Read on where nothing stands against it, beginning with what has arrived before."""
        if self._is_read and not self._sending and self._writable.is_set():
            self._tcp.resume_reading()
            asyncio.get_running_loop().call_soon(self._advance)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._tcp.write(self._outgoing.read())

    def _fail(self, error: Exception) -> None:
        if not self.established.done():
            self.established.set_exception(error.with_traceback(None))
            self.established.exception()  # known to asyncio as seen, also where nobody waits
        self._tcp.close()

    # The face to HTTP

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
        if not self._sending:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()  # says goodbye; that of the peer is not waited for
            self._flush()
        self._tcp.close()

    def abort(self) -> None:
        self._tcp.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._sending, "a file is being sent"
        if self._tcp.is_closing():
            return
        left = memoryview(data)
        while left:
            left = left[self._tls.write(left[:_SEALED_AT_ONCE]) :]
            self._flush()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def is_reading(self) -> bool:
        return self._is_read

    def pause_reading(self) -> None:
        self._is_read = False
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        self._is_read = True
        self._resume()

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
        """Send part of a file; the number of bytes that there were, ``count`` at most.

        Args:
            progress: told of the bytes taken from the file, also of a transfer that is cut.
            release: given the duplicate of the socket's descriptor that the sending took.
            ahead: told, before each step, of the bytes that it may take.

        Raises:
            ConnectionError: the client is gone.
            OSError: the file cannot be read.
        """
        global _roomy
        if self._tcp.is_closing():
            raise ConnectionResetError("client is gone")
        # Closing the connection frees its descriptor for another; a thread needs one of its own.
        descriptor = os.dup(self._tcp.get_extra_info("socket").fileno())
        self._sending = True
        self._tcp.pause_reading()
        self._tcp.set_write_buffer_limits(high=0)
        if self._sealed_at_once == _SEALED_AT_ONCE and _roomy < _ROOMY:
            self._sealed_at_once = _LARGEST_PIECE
            _roomy += 1
        try:
            sent = 0
            while sent < count:
                before = self._taken
                ahead(min(count - sent, _TURN))
                try:
                    done = await self._turn(descriptor, file, offset, count, sent)
                finally:
                    progress(self._taken - before)
                if not done:
                    break
                sent += done
            return sent
        except BaseException:
            # Perhaps in the middle of a record: nothing that could follow would make sense.
            self.abort()
            raise
        finally:
            release(descriptor)
            self._sending = False
            if not self._tcp.is_closing():
                self._tcp.set_write_buffer_limits()
                self._resume()

    async def _turn(
        self, descriptor: int, file: IO[bytes], offset: int, count: int, sent: int
    ) -> int:
        global _turns, _unsent
        await self._writable.wait()
        if self._tcp.is_closing():
            raise ConnectionResetError("client is gone")
        loop, part = asyncio.get_running_loop(), (file.fileno(), offset + sent, count - sent)
        _turns += 1
        try:
            done, rest = await ended(
                loop.run_in_executor(_threads, self._send_some, descriptor, *part)
            )
        finally:
            _turns -= 1
        if rest:
            self._tcp.write(rest)
            if not self._writable.is_set():
                self._unsent += len(rest)
                _unsent += len(rest)
        return done

    def _send_some(
        self, descriptor: int, source: int, offset: int, count: int
    ) -> tuple[int, bytes]:
        """In a worker thread: send as much as goes, a turn's worth at most.

        Returns:
            The number of bytes taken from the file, and what of them is sealed but not sent.
        """
        buffer = _buffer()[: _piece_size()]
        done = 0
        while done < min(count, _TURN):
            got = os.preadv(source, [buffer[: count - done]], offset + done)
            if not got:
                break
            done += got
            self._taken += got
            rest = send(descriptor, self._seal(buffer[:got]), lambda: _turns > _THREADS)
            if rest:
                return done, rest
        return done, b""

    def _seal(self, plain: memoryview) -> list[bytes]:
        sealed = []
        while plain:
            plain = plain[self._tls.write(plain[: self._sealed_at_once]) :]
            sealed.append(self._outgoing.read())
        self.sealed += sum(map(len, sealed))
        return sealed


def _may_begin(hello: bytes) -> bool:
    """Whether what a connection begins with, `_HELLO_HEAD` bytes or less, may go on."""
    if len(hello) < _HELLO_HEAD or hello[0] != _HANDSHAKE:
        return True  # what is no handshake OpenSSL refuses by itself
    record, message = int.from_bytes(hello[3:5]), int.from_bytes(hello[6:9])
    # A head that is spread over several records could not be read here; nobody sends that.
    return record >= 4 and message <= _LARGEST_HELLO


def _piece_size() -> int:
    return max(_SMALLEST_PIECE, min(_LARGEST_PIECE, (_MEMORY - _unsent) // _THREADS))


def _buffer() -> memoryview:
    """The reading buffer of this thread."""
    found: memoryview | None = getattr(_local, "buffer", None)
    if found is None:
        found = _local.buffer = allocate(_LARGEST_PIECE)
    return found
