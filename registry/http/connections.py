"""The HTTP server as the lifetime sees it: sockets that accept, connections that close."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from mayfly.registry.http.listen import Listeners
from mayfly.registry.http.protocol import HTTPServer
from mayfly.registry.http.sweep import Patience, Sweep

_AT_ONCE = 0.01

_UNSENT_IN_ALL = 256 * 1024 * 1024
_LEAST_UNSENT = 256 * 1024
_MOST_UNSENT = 4 * 1024 * 1024


def unsent(connections: int) -> int:
    """Bytes that may wait in the kernel for the client that comes after so many.

    Without a limit sendfile queues up to 4 MiB for each slow reader: five hundred of them pin
    1.6 GiB of the host's TCP memory. The more may wait, the fewer are the wake-ups of a transfer.
    """
    share = _UNSENT_IN_ALL // (connections + 1)
    return max(_LEAST_UNSENT, min(_MOST_UNSENT, share))


@dataclass(frozen=True, slots=True)
class Limits:
    """What connections may take.

    Attributes:
        most: open at once; others wait to be accepted.
        patience: with those that do not get on.
    """

    most: int
    patience: Patience


class Connections:
    """See `registry.serving.Served`."""

    def __init__(
        self,
        server: HTTPServer,
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
        limits: Limits,
    ) -> None:
        self._server = server
        self._tls = tls
        self._limits = limits
        for listening in sockets:
            limits.patience.watch(listening)
        self.listeners = Listeners(sockets, self._serve, self._is_full)
        now = asyncio.get_running_loop().time
        self._sweep = Sweep(server, limits.patience, self._is_full, now)
        self._sweeping: asyncio.Task[None] | None = None

    def _is_full(self, setting_up: int = 0) -> bool:
        return self._server.open_count + setting_up >= self._limits.most

    async def _serve(self, connection: socket.socket) -> None:
        limit = unsent(self._server.open_count)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limit)
        if self._tls is not None:
            # Imported by who speaks TLS.
            from mayfly.registry.http.tls import accept

            await accept(connection, self._tls, self._server, self._limits.patience.header)
        else:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(self._server, connection)
        # It ends with the last connection: an idle server is woken by nobody.
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._sweep.run())

    async def close(self, seconds: float) -> None:
        """Close all connections; handlers that still run have so many seconds."""
        self._server.pre_shutdown()
        # To aiohttp no time at all means as long as it takes.
        await self._server.shutdown(max(seconds, _AT_ONCE))
        if self._sweeping is not None:
            self._sweeping.cancel()
