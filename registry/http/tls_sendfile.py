"""Encrypts files and sends them over TLS, on worker threads that hold no interpreter lock.

    event loop      await writable ──► turn ──► await writable ──► turn ──► …
    worker thread                       └─ read, encrypt, send: up to `_TURN_BYTES`, or until the
                                           socket is full

Many transfers share the threads in turns, and a client that reads slowly holds no thread. During a
turn OpenSSL's object belongs to the thread: the event loop neither reads nor writes.
"""

from __future__ import annotations

import asyncio
import os
import select
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TypeVar

from mayfly.registry.http.body import allocate

SMALL_WRITE = 64 * 1024
"""Bytes given to OpenSSL at once. OpenSSL keeps as much memory for the rest of a connection."""

_MAX_PIECE = 512 * 1024
_MIN_PIECE = 64 * 1024
"""Bytes read, encrypted and sent at once."""

_TOTAL_UNSENT = 16 * 1024 * 1024
"""Encrypted bytes that all connections together may hold before pieces shrink."""

_TURN_BYTES = 2 * 1024 * 1024
"""After which a transfer gives its thread to another."""

_MAX_LARGE_WRITERS = 48
"""Connections that may give OpenSSL whole pieces at once, which is faster but takes more memory."""

_SOCKET_WAIT_MILLISECONDS = 10
"""For which a thread that no other transfer needs waits for its client."""

_THREADS = min(os.cpu_count() or 1, 8)
_threads = ThreadPoolExecutor(_THREADS, "tls")
_local = threading.local()

# Changed by the event loop only.
_unsent = 0
_large_writers = 0
_turns = 0
"""Turns that run or wait for a thread."""

_T = TypeVar("_T")


class FileSender:
    """Sends files on one connection.

    Args:
        tls: the connection's TLS object.
        outgoing: the buffer that it encrypts into.
        writable: set while the client takes data.

    Attributes:
        encrypted: bytes of the records made of files so far.
    """

    def __init__(
        self, tls: ssl.SSLObject, outgoing: ssl.MemoryBIO, writable: asyncio.Event
    ) -> None:
        self._tls = tls
        self._outgoing = outgoing
        self._writable = writable
        self._write_size = SMALL_WRITE
        self._taken = 0
        self._unsent = 0
        self.encrypted = 0

    async def send(
        self,
        tcp: asyncio.Transport,
        descriptor: int,
        file: IO[bytes],
        offset: int,
        count: int,
        progress: Callable[[int], None],
        ahead: Callable[[int], None],
    ) -> int:
        """Send part of a file, and return the number of bytes sent: fewer if the file ends early.

        Args:
            tcp: the connection's transport; takes what the socket does not.
            descriptor: a duplicate of its socket's. It must stay open until this returns.
            progress: called with the number of bytes taken from the file in each turn.
            ahead: called before each turn with the number of bytes that it may take.

        Raises:
            ConnectionError: the client is gone.
            OSError: the file cannot be read.
        """
        self._claim_large_writes()
        sent = 0
        while sent < count:
            before = self._taken
            ahead(min(count - sent, _TURN_BYTES))
            try:
                done = await self._turn(tcp, descriptor, file, offset + sent, count - sent)
            finally:
                progress(self._taken - before)
            if not done:
                break
            sent += done
        return sent

    def release_unsent(self) -> None:
        """Note that encrypted data was taken by the client, or dropped with the connection."""
        global _unsent
        _unsent -= self._unsent
        self._unsent = 0

    def close(self) -> None:
        """Give up what the connection took of the limits; it is lost."""
        global _large_writers
        self.release_unsent()
        if self._write_size > SMALL_WRITE:
            self._write_size = SMALL_WRITE
            _large_writers -= 1

    def _claim_large_writes(self) -> None:
        global _large_writers
        if self._write_size == SMALL_WRITE and _large_writers < _MAX_LARGE_WRITERS:
            self._write_size = _MAX_PIECE
            _large_writers += 1

    async def _turn(
        self, tcp: asyncio.Transport, descriptor: int, file: IO[bytes], offset: int, count: int
    ) -> int:
        global _turns, _unsent
        await self._writable.wait()
        if tcp.is_closing():
            raise ConnectionResetError("client is gone")
        loop = asyncio.get_running_loop()
        _turns += 1
        try:
            done, rest = await await_uncancelled(
                loop.run_in_executor(
                    _threads, self._send_some, descriptor, file.fileno(), offset, count
                )
            )
        finally:
            _turns -= 1
        if rest:
            tcp.write(rest)
            if not self._writable.is_set():
                self._unsent += len(rest)
                _unsent += len(rest)
        return done

    def _send_some(
        self, descriptor: int, source: int, offset: int, count: int
    ) -> tuple[int, bytes]:
        """In a worker thread: send as much as the socket takes, up to `_TURN_BYTES`.

        Returns:
            The number of bytes taken from the file, and the encrypted bytes that are not sent.
        """
        buffer = _read_buffer()[: _piece_size()]
        done = 0
        while done < min(count, _TURN_BYTES):
            got = os.preadv(source, [buffer[: count - done]], offset + done)
            if not got:
                break
            done += got
            self._taken += got
            rest = _write(descriptor, self._encrypt(buffer[:got]), lambda: _turns > _THREADS)
            if rest:
                return done, rest
        return done, b""

    def _encrypt(self, plain: memoryview) -> list[bytes]:
        records = []
        while plain:
            plain = plain[self._tls.write(plain[: self._write_size]) :]
            records.append(self._outgoing.read())
        self.encrypted += sum(map(len, records))
        return records


async def await_uncancelled(work: asyncio.Future[_T]) -> _T:
    """Wait for a thread's work to end, however often the caller is cancelled, for its result.

    Until then no descriptor may be closed that the thread uses.
    """
    is_cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            is_cancelled = True
    try:
        if is_cancelled:
            work.exception()  # marks it as retrieved
            raise asyncio.CancelledError
        return work.result()
    finally:
        # Its exception has this frame in the traceback: together they would be a cycle.
        del work


def _write(descriptor: int, records: list[bytes], is_thread_needed: Callable[[], bool]) -> bytes:
    """Write to a socket, and return what it did not take.

    While no other transfer needs the thread it waits for the client for a moment: most clients are
    about to read, and going through the event loop costs more than sending.

    Args:
        is_thread_needed: whether another transfer waits for a thread.

    Raises:
        ConnectionError: the client is gone.
    """
    left = [memoryview(data) for data in records]
    while left:
        try:
            sent = os.writev(descriptor, left)
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if left:
                left[0] = left[0][sent:]
        except BlockingIOError:
            if is_thread_needed() or not _wait_writable(descriptor):
                break
        except OSError as error:  # also the network's: no route to the client, or a timeout
            raise ConnectionResetError("client is gone") from error
    return b"".join(left)


def _wait_writable(descriptor: int) -> bool:
    polled = select.poll()
    polled.register(descriptor, select.POLLOUT)
    return bool(polled.poll(_SOCKET_WAIT_MILLISECONDS))


def _piece_size() -> int:
    return max(_MIN_PIECE, min(_MAX_PIECE, (_TOTAL_UNSENT - _unsent) // _THREADS))


def _read_buffer() -> memoryview:
    """Return this thread's buffer."""
    found: memoryview | None = getattr(_local, "buffer", None)
    if found is None:
        found = _local.buffer = allocate(_MAX_PIECE)
    return found
