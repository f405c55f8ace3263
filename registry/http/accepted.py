"""Accepted connections that wait to be set up, in an order that is fair to clients.

Accepting a connection costs a twentieth of setting it up and answering it. Clients that open
connections, ask and leave without waiting come faster than they can be answered; in the order of
their arrival everybody else, probes too, would wait behind them. So there are three ranks:

    first    one connection of each client's address in turn
    last     clients that send more requests before the first is answered (`asks_ahead`)
    dropped  clients that have left, and of the last rank all but the newest `MOST_LAST`

Connections are ranked only where some have to wait: otherwise each is set up at once.
"""

from __future__ import annotations

import socket
import struct
from collections import deque

MOST_LAST = 256
"""Connections of clients that ask ahead, kept while others are served first."""

_PEEK = 4096
_HEAD_END = b"\r\n\r\n"
_WITHOUT_BODY = (b"GET ", b"HEAD ")
_CLOSED, _CLOSE_WAIT = 7, 8
"""States of a connection whose client has closed it (netinet/tcp.h)."""


class AcceptedQueue:
    """Belongs to one server."""

    def __init__(self) -> None:
        self._first: dict[str, deque[socket.socket]] = {}
        """By address, the one whose turn is next in front."""
        self._last: deque[socket.socket] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, address: str, connection: socket.socket) -> None:
        """Add a connection from an address."""
        self._first.setdefault(address, deque()).append(connection)
        self._count += 1

    def take(self) -> socket.socket:
        """Remove the connection whose turn it is; there must be one."""
        self._count -= 1
        if not self._first:
            return self._last.pop()
        address = next(iter(self._first))
        connections = self._first.pop(address)
        found = connections.popleft()
        if connections:
            self._first[address] = connections
        return found

    def rank(self, most: int) -> None:
        """Look at the next connections, ``most`` at most, and move or drop those that can wait.

        Those that stay in the first rank are asked again when it is their turn.
        """
        for _ in range(most):
            if not self._first:
                return
            address = next(iter(self._first))
            connections = self._first[address]
            if has_left(connections[0]):
                connections.popleft().close()
                self._count -= 1
            elif asks_ahead(connections[0]):
                self._last.append(connections.popleft())
                if len(self._last) > MOST_LAST:
                    self._last.popleft().close()
                    self._count -= 1
            else:
                return
            if not connections:
                del self._first[address]

    def close(self) -> None:
        """Close all of them."""
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


def asks_ahead(connection: socket.socket) -> bool:
    """Whether more follows a first request that has no body."""
    try:
        data = connection.recv(_PEEK, socket.MSG_PEEK)
    except OSError:
        return False
    if not data.startswith(_WITHOUT_BODY):
        return False
    end = data.find(_HEAD_END)
    return 0 <= end < len(data) - len(_HEAD_END)
