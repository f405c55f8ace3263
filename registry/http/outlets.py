"""The two ways of a file into a socket, each used by one thread at a time.

    PlainOutlet   file ──sendfile(2)──► socket
    TLSOutlet     file ──read──► buffer ──encrypt──► records ──write──► socket

Neither ever waits for the client: both raise `BlockingIOError` once the socket is full.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from typing import Protocol
from weakref import WeakSet

from mayfly.registry.http.body import allocate
from mayfly.registry.http.tls_channel import SMALL_WRITE, TLSChannel

PIECE = 1024 * 1024
"""Bytes that one call takes from a file at most: the next part may be on a slow disk."""

MAX_SEALED = 512 * 1024
_MIN_SEALED = 64 * 1024
"""Bytes read, encrypted and sent at once."""

_NO_LIMIT = 4 * 1024 * 1024
"""Bytes; see `_unsent_limit`."""

MAX_LARGE_WRITERS = 48
"""Connections that may give OpenSSL whole pieces at once, which is faster but takes more memory."""


class Outlet(Protocol):
    """Sends one file on one connection."""

    @property
    def small(self) -> int:
        """Bytes that it sends in about the time that it takes to hand them to a thread."""

    @property
    def turn_bytes(self) -> int:
        """Bytes that a socket takes at once after it was reported to have room."""

    def send(self, offset: int, count: int) -> int:
        """Take up to ``count`` bytes of the file, `PIECE` at most; return how many.

        Fewer than that were taken if the socket is full; 0 only at the end of the file.

        Raises:
            BlockingIOError: the socket is full, and nothing was taken.
            ConnectionError: the client is gone.
            OSError: the file cannot be read.
        """

    def flush(self) -> None:
        """Send everything that was taken.

        Raises:
            BlockingIOError: the socket is full.
            ConnectionError: the client is gone.
        """

    def close(self) -> None:
        """Drop the bytes that were taken and not sent."""


class PlainOutlet:
    """Sends a file as it is; see `Outlet`.

    Args:
        descriptor: of the socket.
        source: descriptor of the file.
    """

    small = 256 * 1024
    turn_bytes = sys.maxsize
    """As many as it takes: the rest stays in the file."""

    def __init__(self, descriptor: int, source: int) -> None:
        self._descriptor = descriptor
        self._source = source

    def send(self, offset: int, count: int) -> int:
        try:
            return os.sendfile(self._descriptor, self._source, offset, min(count, PIECE))
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.EIO:
                raise
            # Other errors are the network's: a reset, no route to the client, or a timeout.
            raise ConnectionResetError("client is gone") from None

    def flush(self) -> None:
        """Do nothing: all bytes taken were sent."""

    def close(self) -> None:
        """Do nothing: all bytes taken were sent."""


class SealedMemory:
    """Bounds the memory of encrypted data that waits for clients of one server.

    Args:
        total: encrypted bytes that all connections together may hold before pieces shrink.
        threads: that encrypt at once.

    Attributes:
        unsent: encrypted bytes that clients have not taken.
    """

    def __init__(self, total: int, threads: int) -> None:
        self._total = total
        self._threads = threads
        self._lock = threading.Lock()
        self._local = threading.local()
        self._large_writers: WeakSet[TLSChannel] = WeakSet()
        self.unsent = 0

    def claim_large_writes(self, channel: TLSChannel) -> None:
        """Let a channel encrypt whole pieces at once, if few others do; for as long as it lives."""
        if channel.write_size == SMALL_WRITE and len(self._large_writers) < MAX_LARGE_WRITERS:
            self._large_writers.add(channel)
            channel.write_size = MAX_SEALED

    def hold(self, count: int) -> None:
        """Count more bytes as unsent, or fewer."""
        with self._lock:
            self.unsent += count

    def buffer(self) -> memoryview:
        """Return this thread's buffer for the next piece."""
        found: memoryview | None = getattr(self._local, "buffer", None)
        if found is None:
            found = self._local.buffer = allocate(MAX_SEALED)
        share = (self._total - self.unsent) // self._threads
        return found[: max(_MIN_SEALED, min(MAX_SEALED, share))]


class TLSOutlet:
    """Encrypts a file and sends it; see `Outlet`.

    Args:
        descriptor: of the socket.
        source: descriptor of the file.
        channel: of the connection.
        memory: limits the encrypted data that clients have not taken yet.
    """

    small = SMALL_WRITE

    def __init__(
        self, descriptor: int, source: int, channel: TLSChannel, memory: SealedMemory
    ) -> None:
        self._descriptor = descriptor
        self._source = source
        # Linux reports room when half of this is left. More would be encrypted only to wait.
        self.turn_bytes = _unsent_limit(descriptor) // 2
        self._channel = channel
        self._memory = memory
        self._unsent: list[memoryview] = []
        self._is_gone = False
        """Whether the client went while something was sent that counts as taken."""
        self._held = 0
        """Bytes that `memory` knows of."""

    def send(self, offset: int, count: int) -> int:
        self.flush()
        piece = self._memory.buffer()[: min(count, self.turn_bytes)]
        taken = os.preadv(self._source, [piece], offset)
        if taken:
            self._unsent = [memoryview(one) for one in self._channel.encrypt(piece[:taken])]
            try:
                self._write()
            except BlockingIOError:
                # One object without the part that was sent.
                self._unsent = [memoryview(b"".join(self._unsent))]
                self._note_held()
            except ConnectionResetError:
                # The piece is encrypted, and so counts in the channel: it must also count here.
                self._unsent, self._is_gone = [], True
        return taken

    def flush(self) -> None:
        if self._is_gone:
            raise ConnectionResetError("client is gone")
        if self._unsent:
            try:
                self._write()
            finally:
                self._note_held()

    def close(self) -> None:
        self._unsent = []
        self._note_held()

    def _write(self) -> None:
        left = self._unsent
        while left:
            try:
                sent = os.writev(self._descriptor, left)
            except BlockingIOError:
                raise
            except OSError:  # also the network's: no route to the client, or a timeout
                raise ConnectionResetError("client is gone") from None
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if left:
                left[0] = left[0][sent:]

    def _note_held(self) -> None:
        held = sum(map(len, self._unsent))
        self._memory.hold(held - self._held)
        self._held = held


def _unsent_limit(descriptor: int) -> int:
    """Return how many bytes may wait in the kernel for the client."""
    asked = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=descriptor)
    try:
        return asked.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) or _NO_LIMIT
    except OSError:  # it is not TCP
        return _NO_LIMIT
    finally:
        asked.detach()
