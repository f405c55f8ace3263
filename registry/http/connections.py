"""Listening sockets, TLS, limits and watchdog of an `HTTPServer`."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mayfly.registry.http.connection import HTTPServer
from mayfly.registry.http.listeners import Listeners
from mayfly.registry.http.watchdog import ConnectionWatchdog, Timeouts

if TYPE_CHECKING:
    from mayfly.registry.http.tls import TLSAcceptor

_TOTAL_UNSENT = 256 * 1024 * 1024
_MIN_UNSENT = 256 * 1024
_MAX_UNSENT = 4 * 1024 * 1024


def unsent_limit(connections: int) -> int:
    """Return how many bytes may wait in the kernel for a client, by the number of other clients.

    Without a limit sendfile queues up to 4 MiB for each slow reader: five hundred of them pin
    1.6 GiB of the host's TCP memory. The more may wait, the fewer wake-ups a transfer takes.
    """
    share = _TOTAL_UNSENT // (connections + 1)
    return max(_MIN_UNSENT, min(_MAX_UNSENT, share))


class Limits(NamedTuple):
    """Limits on connections.

    Attributes:
        max_connections: open at once; further ones wait to be accepted.
        timeouts: after which a connection without progress is closed.
    """

    max_connections: int
    timeouts: Timeouts


class Connections:
    """Serves HTTP, or HTTPS, on listening sockets.

    Args:
        server: handles the connections.
        sockets: bound and listening.
        tls: None for plain HTTP.
        limits: on the connections.

    Attributes:
        listeners: accept once they are resumed.
    """

    def __init__(
        self,
        server: HTTPServer,
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
        limits: Limits,
    ) -> None:
        self._server = server
        self._tls: TLSAcceptor | None = None
        if tls is not None:
            # Imported only where TLS is spoken.
            from mayfly.registry.http.tls import TLSAcceptor

            self._tls = TLSAcceptor(tls, server, limits.timeouts.header)
        self._limits = limits
        for listening in sockets:
            limits.timeouts.enable_keepalive(listening)
        self.listeners = Listeners(sockets, self._serve, self._is_full)
        now = asyncio.get_running_loop().time
        self._watchdog = ConnectionWatchdog(server, limits.timeouts, self._is_full, now)
        self._watching: asyncio.Task[None] | None = None

    def _is_full(self, setting_up: int = 0) -> bool:
        return self._server.open_count + setting_up >= self._limits.max_connections

    async def _serve(self, connection: socket.socket) -> None:
        limit = unsent_limit(self._server.open_count)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limit)
        if self._tls is not None:
            await self._tls.accept(connection)
        else:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(self._server, connection)
        # It ends with the last connection, so that nothing wakes an idle server.
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watchdog.run())

    async def close(self, seconds: float) -> None:
        """See `HTTPServer.close`."""
        await self._server.close(seconds)
        if self._watching is not None:
            self._watching.cancel()
