"""Counts the bytes sent on a connection that its peer has acknowledged.

Bytes given to the kernel have not arrived yet: a socket buffers megabytes, which are lost when a
connection breaks. TCP knows which bytes arrived, and Linux tells: SIOCOUTQ counts the bytes given
to it and not acknowledged, TCP_INFO those acknowledged since the connection began.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Callable

from mayfly.registry.http import tcp_info

_FIRST_POLL_SECONDS, _MAX_POLL_SECONDS = 0.005, 0.5
"""Between two polls, doubled each time: the kernel reports no acknowledgement by itself."""

_MAX_TRIES = 20

_AFTER_CLOSE_SECONDS = 10.0
"""For the rest to be acknowledged once the connection is closed at this end."""


class Receipts:
    """Acknowledgements of one response's body.

    Create it before the response, and call `begin` once the head is written. It polls a descriptor
    of its own, also after the connection is closed.

    Args:
        transport: of the connection, plain or TLS.
    """

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self._transport = transport
        self._socket: socket.socket | None = None
        """A socket on a duplicate of the connection's descriptor, while this counts."""
        self._base = self._encrypted_before = 0
        self._goal = 0
        """Bytes that are acknowledged once the whole body is."""
        self._done: Callable[[int], None] | None = None
        self._on_ended: Callable[[], None] | None = None
        self._next_poll: asyncio.TimerHandle | None = None

    def __del__(self) -> None:
        self.close()

    def begin(self) -> int:
        """Note the counts before the body; return a duplicate of the socket's descriptor.

        The descriptor is open until the counting ends or this object is closed.

        Raises:
            ConnectionResetError: the connection is closed.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("client is gone")
        duplicate = os.dup(self._transport.get_extra_info("socket").fileno())
        # The family does not matter to the calls below.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=duplicate)
        self._encrypted_before = self._encrypted()
        if self._encrypted_before >= 0:
            # The kernel counts records, not content: counts are compared by their growth.
            self._base = self._written()
        return duplicate

    def unreceived(self) -> int:
        """Return a lower bound of the bytes sent and not acknowledged; ends the counting."""
        try:
            return self._unreceived()
        finally:
            self.close()

    def on_received(self, done: Callable[[int], None]) -> None:
        """Call back with 0 once everything is acknowledged.

        If the connection ends before that, call back with the number of bytes that were not.
        """
        if not self._unreceived():
            self.close()
            done(0)
            return
        if self._encrypted_before < 0:
            self._goal = self._written()
        else:
            self._goal = self._base + self._encrypted() - self._encrypted_before
        self._done = done
        self._poll_later(_FIRST_POLL_SECONDS, None)

    @property
    def is_counting(self) -> bool:
        """Whether `on_received` is still to call back."""
        return self._done is not None

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call once the counting has ended, whatever was received; only while it `is_counting`."""
        self._on_ended = call

    def look(self) -> None:
        """Call back now, not with the next poll, if everything is acknowledged.

        A client that has read a response acknowledges it with its next request.
        """
        if self._done is not None and not self._left():
            self._finish(self._done, 0)

    def _poll(self, pause: float, closed: float | None) -> None:
        """Poll until everything is acknowledged, at longer and longer intervals.

        Args:
            pause: seconds since the last poll.
            closed: when the connection was found closed; None while it is open.
        """
        assert self._done is not None
        loop = asyncio.get_running_loop()
        # First: an acknowledgement may arrive, and the connection end, between the two calls.
        has_broken = self._socket is None or tcp_info.has_broken(self._socket)
        left = self._left()
        if closed is None and (self._transport is None or self._transport.is_closing()):
            closed = loop.time()
            # The kernel does not send FIN by itself while our duplicate is open.
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_WR)
        late = closed is not None and loop.time() - closed >= _AFTER_CLOSE_SECONDS
        if not left or has_broken or late:
            self._finish(self._done, left)
            return
        self._poll_later(min(2 * pause, _MAX_POLL_SECONDS), closed)

    def _poll_later(self, pause: float, closed: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._next_poll = loop.call_later(pause, self._poll, pause, closed)

    def _finish(self, done: Callable[[int], None], left: int) -> None:
        on_ended, self._on_ended = self._on_ended, None
        self.close()
        done(left)
        if on_ended is not None:
            on_ended()

    def _left(self) -> int:
        """Return how many bytes are missing from the goal.

        A kernel that does not tell the acknowledged bytes still tells the unacknowledged ones,
        except of a connection that has broken.
        """
        acked = self._acked()
        if acked or self._socket is None:
            return max(self._goal - acked, 0)
        left = self._outq() + self._buffered()
        return max(left, 1) if tcp_info.has_broken(self._socket) else left

    def _unreceived(self) -> int:
        if self._socket is None:
            return 0
        if self._encrypted_before < 0:
            return self._outq() + self._buffered()
        written = self._encrypted() - self._encrypted_before
        return max(0, written - (self._acked() - self._base))

    def _written(self) -> int:
        """Return the number of bytes ever written to the connection, as `_acked` counts them."""
        for _ in range(_MAX_TRIES):
            before = self._acked()
            written = before + self._outq()
            # An acknowledgement between the two calls would be missing from the sum, and the goal
            # would be off.
            if self._acked() == before:
                break
        return written + self._buffered()

    def _buffered(self) -> int:
        """Return the number of bytes that the kernel has not taken yet; a cut discards them."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _encrypted(self) -> int:
        """Return the number of bytes of TLS records so far; -1 without TLS."""
        channel = None
        if self._transport is not None:
            channel = self._transport.get_extra_info("tls_channel")
        return -1 if channel is None else int(channel.encrypted)

    def _outq(self) -> int:
        if self._socket is None:
            return 0
        try:
            found = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(found, sys.byteorder)

    def _acked(self) -> int:
        return 0 if self._socket is None else tcp_info.acknowledged(self._socket)

    def close(self) -> None:
        """Close the descriptor; nothing counts as unacknowledged from now on."""
        self._done = None
        if self._next_poll is not None:
            self._next_poll.cancel()
            self._next_poll = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
