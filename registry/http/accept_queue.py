"""Accepted connections that wait for their setup, in an order that is fair to clients.

Accepting a connection costs a twentieth of setting it up and answering it. Clients that connect,
send requests and leave without waiting come faster than they can be answered. In order of arrival
everybody else, probes too, would wait behind them. So there are three ranks:

    first    one connection of each client address in turn
    last     clients that pipeline requests before the first is answered (`is_pipelining`)
    dropped  clients that have left, and all but the newest `MAX_LAST` of the last rank

Connections are ranked only while some have to wait; otherwise each is set up at once.
"""

from __future__ import annotations

import socket
import struct
from collections import deque

MAX_LAST = 256
"""Connections of pipelining clients that are kept while others are served first."""

_PEEK_BYTES = 4096
_HEAD_END = b"\r\n\r\n"
_BODILESS_METHODS = (b"GET ", b"HEAD ")
_CLOSED, _CLOSE_WAIT = 7, 8
"""TCP states of a connection whose client has closed it (netinet/tcp.h)."""


class AcceptQueue:
    """The waiting connections of one server."""

    def __init__(self) -> None:
        self._first: dict[str, deque[socket.socket]] = {}
        """By address; the address whose turn is next comes first."""
        self._last: deque[socket.socket] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, address: str, connection: socket.socket) -> None:
        """Add a connection from an address."""
        self._first.setdefault(address, deque()).append(connection)
        self._count += 1

    def take(self) -> socket.socket:
        """Remove and return the next connection; there must be one."""
        self._count -= 1
        if not self._first:
            return self._last.pop()
        address = next(iter(self._first))
        connections = self._first.pop(address)
        found = connections.popleft()
        if connections:
            self._first[address] = connections
        return found

    def rank(self, limit: int) -> None:
        """Inspect up to ``limit`` of the next connections; drop or demote those that can wait.

        Stops at the first connection that keeps its rank. It is inspected again at its turn.
        """
        for _ in range(limit):
            if not self._first:
                return
            address = next(iter(self._first))
            connections = self._first[address]
            if has_left(connections[0]):
                connections.popleft().close()
                self._count -= 1
            elif is_pipelining(connections[0]):
                self._last.append(connections.popleft())
                if len(self._last) > MAX_LAST:
                    self._last.popleft().close()
                    self._count -= 1
            else:
                return
            if not connections:
                del self._first[address]

    def close(self) -> None:
        """Close all waiting connections."""
        while self:
            self.take().close()


def has_left(connection: socket.socket) -> bool:
    """Whether the client has closed its end."""
    if connection.family == socket.AF_UNIX:
        return False
    try:
        (state,) = struct.unpack("B", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))
    except OSError:
        return True
    return state in (_CLOSED, _CLOSE_WAIT)


def is_pipelining(connection: socket.socket) -> bool:
    """Whether more data follows a first request that has no body."""
    try:
        data = connection.recv(_PEEK_BYTES, socket.MSG_PEEK)
    except OSError:
        return False
    if not data.startswith(_BODILESS_METHODS):
        return False
    end = data.find(_HEAD_END)
    return 0 <= end < len(data) - len(_HEAD_END)
