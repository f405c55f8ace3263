"""Ending connections that take a place and make no progress.

Every few seconds one sweep looks at all connections. The kernel counts what each has moved
(``TCP_INFO``), so nothing is done for a single read or write, and it is the same over TLS. A
connection is in one of these states:

    waiting    no request is being handled, and the last answer is sent
        silent      nothing has come since the last one: kept open, until others need the place
        beginning   a header has begun, or the first is due: complete within the header timeout
    busy       a request is being handled, or its answer, or the last of it, is yet to be sent
        working     the client owes nothing, we are at work: never cut
        moving      it owes a part of the body, or has not acknowledged what was sent: within the
                    stall timeout `LEAST` bytes must move, so a slow link that makes progress is
                    never cut

A client that is gone without a word (no FIN: power, a cable, a firewall) acknowledges nothing.
While it is owed data that shows here, otherwise by the kernel's keepalive.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from mayfly.registry.http.protocol import HTTPServer, Protocol

logger = logging.getLogger("mayfly")

LEAST = 1024
"""Bytes that a transfer has to move within the stall timeout."""

SPARED = 5.0
"""Seconds for which a silent connection keeps its place although others wait for one."""

_LONGEST_PAUSE = 5.0
_SHORTEST_PAUSE = 0.1
_AT_ONCE = 500
"""Connections looked at before the event loop goes on."""

_UNANSWERED_PROBES = 3
_TCP_INFO = struct.Struct("=3xB20xI16xI8xI60xQQ8xI")
"""linux/tcp.h, struct tcp_info: probes, unacked, last_data_sent, last_ack_recv, bytes_acked,
bytes_received, notsent_bytes."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds until a client is given up; None is never.

    Attributes:
        header: for a request's header, and for the first request of a connection.
        stall: without progress in a transfer.
        vanished: without any sign of life from the client's host.
    """

    header: float | None
    stall: float | None
    vanished: float | None

    @property
    def pause(self) -> float:
        """Seconds between two sweeps."""
        shortest = min(s or math.inf for s in (self.header, self.stall, self.vanished))
        return max(_SHORTEST_PAUSE, min(_LONGEST_PAUSE, shortest / 5))

    def watch(self, listening: socket.socket) -> None:
        """Have the kernel probe the silent connections of a listening socket; they inherit it."""
        if self.vanished is None:
            return
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle, interval = max(1, int(self.vanished / 2)), max(1, int(self.vanished / 6))
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _UNANSWERED_PROBES)


@dataclass(frozen=True, slots=True)
class Counts:
    """What the kernel tells of a connection.

    Attributes:
        acknowledged: bytes of ours that the client's host has.
        received: bytes of the client that we have.
        unsent: whether there is more to send than the client takes.
        unacked: whether something sent is not acknowledged.
        probes: questions for room, none of them answered.
        spoken, heard: seconds since we last sent something, and since anything was acknowledged.
    """

    acknowledged: int
    received: int
    unsent: bool
    unacked: bool
    probes: int
    spoken: float
    heard: float

    @classmethod
    def of(cls, connected: socket.socket) -> Counts:
        """Raises OSError: it is closed."""
        found = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        probes, unacked, spoken, heard, acked, received, unsent = _TCP_INFO.unpack(found)
        return cls(acked, received, unsent > 0, unacked > 0, probes, spoken / 1000, heard / 1000)

    def is_vanished(self, after: float) -> bool:
        """Whether the client's host has not answered for so many seconds though it was asked.

        The silence alone says nothing: what a crawling reader has no room for is sent again ever
        more rarely, up to two minutes apart, and answered each time.
        """
        if self.heard < after:
            return False
        if self.probes >= _UNANSWERED_PROBES:
            return True
        asked_late = self.heard - self.spoken >= after / 2
        return self.unacked and asked_late and self.spoken >= after / 4


@dataclass(slots=True)
class _Seen:
    """A connection's state, and the counts and time at which it began or last made progress."""

    busy: bool
    requests: int
    since: float
    acknowledged: int
    received: int
    begun: bool = False


class Sweep:
    """Looks after the connections of one server.

    Args:
        server: whose they are.
        patience: with them.
        crowded: whether others wait for a place.
        now: seconds, monotonic.
    """

    def __init__(
        self,
        server: HTTPServer,
        patience: Patience,
        crowded: Callable[[], bool],
        now: Callable[[], float],
    ) -> None:
        self._server = server
        self._patience = patience
        self._crowded = crowded
        self._now = now
        self._seen: dict[Protocol, _Seen] = {}

    async def run(self) -> None:
        """Sweep until there are no connections."""
        while connections := self._server.open_connections():
            self._seen = {one: self._seen[one] for one in connections if one in self._seen}
            for number, connection in enumerate(connections, 1):
                self.look(connection)
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(self._patience.pause)
        self._seen.clear()

    def look(self, connection: Protocol) -> None:
        """Judge one connection, and cut it if it has to go."""
        found = connection.socket
        if found is None:
            return
        try:
            counts = Counts.of(found)
        except OSError:
            return
        reason = self._judge(connection, counts)
        if reason is not None:
            logger.info("cut a connection from %s: %s", connection.peername, reason)
            # Not transport.abort(): what waits for the socket, sendfile too, wakes up of this.
            with contextlib.suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)

    def _judge(self, connection: Protocol, counts: Counts) -> str | None:
        vanished = self._patience.vanished
        if vanished is not None and counts.is_vanished(vanished):
            return "the client does not answer any more"
        now = self._now()
        # An answer is handled before it is sent: what of it the client does not take waits, here
        # or in the kernel, also when the connection is to be closed.
        busy = connection.serving or counts.unsent or connection.is_writing
        requests = connection.requests
        seen = self._seen.get(connection)
        if seen is None or (seen.busy, seen.requests) != (busy, requests):
            # What has come before the first request is a part of it.
            received = counts.received if requests else 0
            seen = _Seen(busy, requests, now, counts.acknowledged, received)
            self._seen[connection] = seen
        if busy:
            return self._judge_transfer(connection, counts, seen, now)
        return self._judge_waiting(counts, seen, now)

    def _judge_transfer(
        self, connection: Protocol, counts: Counts, seen: _Seen, now: float
    ) -> str | None:
        moved = counts.acknowledged - seen.acknowledged + counts.received - seen.received
        sending = counts.unsent or counts.unacked or connection.is_writing
        owes = sending or connection.awaits_body
        if moved >= LEAST or not owes:
            seen.since = now
            seen.acknowledged, seen.received = counts.acknowledged, counts.received
        elif _over(now - seen.since, self._patience.stall):
            return f"a transfer has moved {moved} bytes in {now - seen.since:.0f} s"
        return None

    def _judge_waiting(self, counts: Counts, seen: _Seen, now: float) -> str | None:
        if counts.received > seen.received and not seen.begun:
            seen.begun = True
            if seen.requests:
                seen.since = now
        if seen.begun or not seen.requests:
            late = _over(now - seen.since, self._patience.header)
            return "no request came" if late else None
        if self._crowded() and now - seen.since >= SPARED:
            return "others need its place"
        return None


def _over(seconds: float, limit: float | None) -> bool:
    return limit is not None and seconds >= limit
