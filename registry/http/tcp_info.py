"""Asks the kernel about a TCP connection (``TCP_INFO`` of linux/tcp.h).

`acknowledged` is known since Linux 4.1, all of `TCPInfo` since 4.6.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import NamedTuple

UNANSWERED_PROBES = 3
"""After which a client counts as vanished."""

_TCP_CLOSE = 7
"""State of a connection that has broken, or that both ends have closed."""

_TCP_INFO = struct.Struct("=B2xB20xI16xI8xI60xQQ8xI")
"""Fields of struct tcp_info (linux/tcp.h): state, probes, unacked, last_data_sent, last_ack_recv,
bytes_acked, bytes_received, notsent_bytes (since 4.6)."""

_BYTES_ACKED = struct.Struct("=120xQ")
"""The field bytes_acked alone (since 4.1)."""


def acknowledged(connected: socket.socket) -> int:
    """Return the bytes sent and acknowledged by the peer; 0 if there are none.

    It is also 0 where the kernel does not tell: that of gVisor answers in full length, with zeros
    (pkg/tcpip of its sources).
    """
    found = _read(connected)
    return int(_BYTES_ACKED.unpack_from(found)[0]) if len(found) >= _BYTES_ACKED.size else 0


def has_broken(connected: socket.socket) -> bool:
    """Whether a connection has broken, was closed by both ends, or is none of TCP."""
    found = _read(connected)
    return not found or found[0] == _TCP_CLOSE


def _read(connected: socket.socket) -> bytes:
    """Return TCP_INFO; empty for a socket that is closed or not TCP's."""
    try:
        return connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return b""


class TCPInfo(NamedTuple):
    """The kernel's counts of a connection.

    Attributes:
        acknowledged: bytes sent and acknowledged by the client's host.
        received: bytes received.
        unsent: whether bytes wait for the client to take more.
        unacked: whether bytes were sent and are not acknowledged.
        probes: window probes without an answer.
        last_sent, last_ack: seconds since data was sent, and since an acknowledgement came.
        broken: whether it was reset, or its peer has answered none of the kernel's probes.
    """

    acknowledged: int
    received: int
    unsent: bool
    unacked: bool
    probes: int
    last_sent: float
    last_ack: float
    broken: bool = False

    @classmethod
    def of(cls, connected: socket.socket) -> TCPInfo:
        """Ask the kernel.

        Raises:
            OSError: the socket is closed, or the kernel does not tell all of that.
        """
        found = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        if len(found) < _TCP_INFO.size:
            raise OSError(errno.ENOPROTOOPT, "TCP_INFO of this kernel is too short")
        state, probes, unacked, sent_ms, ack_ms, acked, received, unsent = _TCP_INFO.unpack(found)
        silent = sent_ms / 1000, ack_ms / 1000
        broken = state == _TCP_CLOSE
        return cls(acked, received, unsent > 0, unacked > 0, probes, *silent, broken)

    @classmethod
    def is_known(cls) -> bool:
        """Whether the kernel tells all of that: Linux before 4.6 does not, nor does qemu's."""
        with socket.socket() as unconnected:
            try:
                cls.of(unconnected)
            except OSError:
                return False
        return True

    def is_vanished(self, timeout: float) -> bool:
        """Whether the client's host has answered nothing for ``timeout`` seconds.

        Silence alone proves nothing: data for which a slow reader has no room is sent again ever
        more rarely, up to two minutes apart, and answered each time.
        """
        if self.last_ack < timeout:
            return False
        if self.probes >= UNANSWERED_PROBES:
            return True
        sent_after_ack = self.last_ack - self.last_sent >= timeout / 2
        return self.unacked and sent_after_ack and self.last_sent >= timeout / 4
