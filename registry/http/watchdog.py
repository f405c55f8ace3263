"""Closes connections that take a place and make no progress.

The watchdog looks at all connections every few seconds. The kernel counts the bytes of each
(``TCP_INFO``), so nothing is done for a single read or write, and it is the same with TLS. A
connection is in one of these states:

    idle       no request is being handled, and the last response is acknowledged
        quiet       nothing was received since: stays open until others need its place
        beginning   a head has begun, or the first is due: complete within the header timeout
    busy       a request is being handled, or its response is not acknowledged to its end
        working     the client owes nothing, the server is at work: never closed
        moving the client owes a part of the body, or has not acknowledged all bytes: at
                    least `MIN_PROGRESS` bytes must move within the stall timeout, so that a slow
                    link that makes progress is never closed

A client that vanished without a FIN (power, a cable, a firewall) acknowledges nothing. While data
is on its way to the client that shows here, otherwise by the kernel's keepalive. The event loop is
told of a broken connection only while it reads or writes; others are found broken here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from mayfly.registry.http.connection import Connection, HTTPServer
from mayfly.registry.http.tcp_info import UNANSWERED_PROBES, TCPInfo

logger = logging.getLogger("mayfly")

MIN_PROGRESS = 1024
"""Bytes that a transfer has to move within the stall timeout."""

IDLE_GRACE_SECONDS = 5.0
"""For which a quiet connection keeps its place although others wait for one."""

_MAX_INTERVAL_SECONDS = 5.0
_MIN_INTERVAL_SECONDS = 0.1
_CHECKED_AT_ONCE = 500
"""Connections checked before other tasks of the event loop run."""


class Timeouts(NamedTuple):
    """Seconds until a client's connection is closed; None for never.

    Attributes:
        header: for a request's head, and for the first request of a connection.
        stall: without progress in a transfer.
        vanished: without any sign of life from the client's host.
    """

    header: float | None
    stall: float | None
    vanished: float | None

    @property
    def interval(self) -> float:
        """Seconds between two checks of a connection."""
        shortest = min(s or math.inf for s in (self.header, self.stall, self.vanished))
        return max(_MIN_INTERVAL_SECONDS, min(_MAX_INTERVAL_SECONDS, shortest / 5))

    def enable_keepalive(self, listening: socket.socket) -> None:
        """Have the kernel probe silent connections; those of a listening socket inherit it."""
        if self.vanished is None:
            return
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle, interval = max(1, int(self.vanished / 2)), max(1, int(self.vanished / 6))
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, UNANSWERED_PROBES)


@dataclass(slots=True)
class _Checkpoint:
    """A connection's state, and the time and counts at which it began or last made progress."""

    busy: bool
    requests: int
    since: float
    acknowledged: int
    received: int
    head_begun: bool = False


class ConnectionWatchdog:
    """Checks the connections of one server.

    Args:
        server: whose connections are checked.
        timeouts: of its clients.
        is_crowded: whether new connections wait for a place.
        now: seconds, monotonic.
    """

    def __init__(
        self,
        server: HTTPServer,
        timeouts: Timeouts,
        is_crowded: Callable[[], bool],
        now: Callable[[], float],
    ) -> None:
        self._server = server
        self._timeouts = timeouts
        self._is_crowded = is_crowded
        self._now = now
        self._checkpoints: dict[Connection, _Checkpoint] = {}

    async def run(self) -> None:
        """Check all connections again and again, until there are none."""
        while self._server.open_count:
            await self._check_all(self._server.open_connections())
            await asyncio.sleep(self._timeouts.interval)
        self._checkpoints.clear()

    async def _check_all(self, connections: list[Connection]) -> None:
        known = self._checkpoints
        self._checkpoints = {one: known[one] for one in connections if one in known}
        for number, connection in enumerate(connections, 1):
            self.check(connection)
            if number % _CHECKED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def check(self, connection: Connection) -> None:
        """Check one connection, and close it if it exceeds a timeout."""
        found = connection.socket
        if found is None:
            return
        try:
            info = TCPInfo.of(found)
        except OSError:
            return
        reason = self._exceeded(connection, info)
        if reason is not None:
            # A broken one is a client that has left, as at any other time.
            level = logging.DEBUG if info.broken else logging.INFO
            logger.log(level, "cut a connection from %s: %s", connection.peer, reason)
            connection.drop()

    def _exceeded(self, connection: Connection, info: TCPInfo) -> str | None:
        """The reason to close a connection, if there is one."""
        if info.broken:
            return "it is broken"
        vanished = self._timeouts.vanished
        if vanished is not None and info.is_vanished(vanished):
            return "the client does not answer any more"
        now = self._now()
        # A response is handled before it is sent: the rest of it waits here or in the kernel, or is
        # on its way, also when the connection is to be closed.
        busy = connection.serving or info.unsent or info.unacked or connection.is_writing
        requests = connection.requests
        last = self._checkpoints.get(connection)
        if last is None or (last.busy, last.requests) != (busy, requests):
            # Everything received before the first request is a part of it.
            received = info.received if requests else 0
            last = _Checkpoint(busy, requests, now, info.acknowledged, received)
            self._checkpoints[connection] = last
        if busy:
            return self._exceeded_by_transfer(connection, info, last, now)
        return self._exceeded_by_idle(info, last, now)

    def _exceeded_by_transfer(
        self, connection: Connection, info: TCPInfo, last: _Checkpoint, now: float
    ) -> str | None:
        moved = info.acknowledged - last.acknowledged
        if connection.awaits_body:  # otherwise nobody reads the client's data
            moved += info.received - last.received
        sending = info.unsent or info.unacked or connection.is_writing
        client_owes = sending or connection.awaits_body
        if moved >= MIN_PROGRESS or not client_owes:
            last.since = now
            last.acknowledged, last.received = info.acknowledged, info.received
        elif _exceeds(now - last.since, self._timeouts.stall):
            return f"a transfer has moved {moved} bytes in {now - last.since:.0f} s"
        return None

    def _exceeded_by_idle(self, info: TCPInfo, last: _Checkpoint, now: float) -> str | None:
        if info.received > last.received and not last.head_begun:
            last.head_begun = True
            if last.requests:
                last.since = now
        if last.head_begun or not last.requests:
            late = _exceeds(now - last.since, self._timeouts.header)
            return "no request came" if late else None
        if self._is_crowded() and now - last.since >= IDLE_GRACE_SECONDS:
            return "others need its place"
        return None


def _exceeds(seconds: float, limit: float | None) -> bool:
    return limit is not None and seconds >= limit
