"""Counts the bytes sent on a connection that its peer has acknowledged.

Bytes that the kernel took have not arrived yet: a socket buffers megabytes, which are lost when a
connection breaks. TCP knows which arrived, and Linux tells: SIOCOUTQ counts bytes taken and
not acknowledged, TCP_INFO those acknowledged since the connection began.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import sys
import termios
from collections.abc import Callable

_BYTES_ACKED = struct.Struct("=120xQ")
"""``tcpi_bytes_acked`` of ``struct tcp_info`` (linux/tcp.h, since 4.1)."""

_TCP_CLOSE = 7
"""``tcpi_state`` of a connection that has broken or was closed by both ends."""

_FIRST_LOOK, _LONGEST = 0.005, 0.5
"""Seconds between two looks, doubled each time. Nothing tells of an acknowledgement."""

_MOST_TRIES = 20

_AFTER_CLOSE = 10.0
"""Seconds for the rest to be acknowledged once the connection is closed at this end."""


class Receipts:
    """Acknowledgements of one response's body.

    Make it before, `begin` once the head is written, and let it `take` the descriptor by which the
    body was sent: it is asked after the connection is closed, too.

    Args:
        transport: of the connection, plain or TLS.
    """

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self._transport = transport
        self._descriptor = -1
        self._base = self._sealed = 0

    def __del__(self) -> None:
        self.close()

    def begin(self) -> None:
        """The body follows."""
        self._sealed = self._sealed_now()
        if self._sealed < 0 or self._transport is None:
            return
        # Of TLS the kernel counts records; only their sum says how many it has been given.
        self._descriptor = self._transport.get_extra_info("socket").fileno()
        self._base = self._written() + self._transport.get_write_buffer_size()
        self._descriptor = -1

    def take(self, descriptor: int) -> None:
        """Own a duplicate of the socket's descriptor."""
        self.close()
        self._descriptor = descriptor

    def unreceived(self) -> int:
        """Bytes sent that were not acknowledged by now, at least; nothing is asked after that."""
        try:
            return self._unreceived()
        finally:
            self.close()

    def on_received(self, done: Callable[[int], None]) -> None:
        """Call back when all is acknowledged or the connection is gone.

        The argument is the number of bytes that were not acknowledged.
        """
        if not self._unreceived():
            self.close()
            done(0)
            return
        if self._sealed < 0:
            goal = self._written()
        else:
            goal = self._base + self._sealed_now() - self._sealed
        self._look(goal, done, _FIRST_LOOK, None)

    def _look(
        self, goal: int, done: Callable[[int], None], pause: float, closed: float | None
    ) -> None:
        loop = asyncio.get_running_loop()
        left = max(goal - self._acked(), 0)
        if closed is None and (self._transport is None or self._transport.is_closing()):
            closed = loop.time()
            # Our descriptor keeps the kernel from doing so.
            self._shut()
        if not left or self._has_broken() or (closed and loop.time() - closed >= _AFTER_CLOSE):
            self.close()
            done(left)
            return
        loop.call_later(pause, self._look, goal, done, min(2 * pause, _LONGEST), closed)

    def _unreceived(self) -> int:
        if self._descriptor < 0:
            return 0
        if self._sealed < 0:
            return self._outq()
        written = self._sealed_now() - self._sealed
        return max(0, written - (self._acked() - self._base))

    def _written(self) -> int:
        """Bytes that the kernel was ever given, by the count that has `_acked` in it."""
        for _ in range(_MOST_TRIES):
            before = self._acked()
            written = before + self._outq()
            # An acknowledgement between the two questions would be missing, and one more byte than
            # there is would be waited for in vain.
            if self._acked() == before:
                break
        return written

    def _sealed_now(self) -> int:
        """Bytes of TLS records made of files so far; -1 without TLS."""
        return int(getattr(self._transport, "sealed", -1))

    def _outq(self) -> int:
        if self._descriptor < 0:
            return 0
        try:
            found = fcntl.ioctl(self._descriptor, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(found, sys.byteorder)

    def _acked(self) -> int:
        found = self._info()
        return int(_BYTES_ACKED.unpack_from(found)[0]) if len(found) >= _BYTES_ACKED.size else 0

    def _has_broken(self) -> bool:
        found = self._info()
        return not found or found[0] == _TCP_CLOSE

    def _info(self) -> bytes:
        """TCP_INFO; empty for a socket that is not TCP."""
        if self._descriptor < 0:
            return b""
        asked = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=self._descriptor)
        try:
            return asked.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            return b""
        finally:
            asked.detach()

    def _shut(self) -> None:
        asked = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=self._descriptor)
        with contextlib.suppress(OSError):
            asked.shutdown(socket.SHUT_WR)
        asked.detach()

    def close(self) -> None:
        """Give the descriptor up; until another is taken nothing counts as not acknowledged."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
