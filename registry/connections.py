"""The HTTP server as the lifetime sees it: sockets that accept, connections that close."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence

from registry.lifetime.activity import Activity
from registry.lifetime.listen import Listeners
from registry.protocol import HTTPServer

_AT_ONCE = 0.01
_HANDSHAKE_SECONDS = 60.0


class Connections:
    """See `registry.lifetime.life.Served`."""

    def __init__(
        self,
        server: HTTPServer,
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
        activity: Activity,
    ) -> None:
        self._server = server
        self._tls = tls
        self.listeners = Listeners(sockets, self._serve, activity)

    async def _serve(self, connection: socket.socket) -> None:
        if self._tls is not None:
            # Imported by who speaks TLS.
            from registry.tls import accept

            await accept(connection, self._tls, self._server, _HANDSHAKE_SECONDS)
        else:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(self._server, connection)

    async def close(self, seconds: float) -> None:
        """Close all connections; handlers that still run have so many seconds."""
        self._server.pre_shutdown()
        # To aiohttp no time at all means as long as it takes.
        await self._server.shutdown(max(seconds, _AT_ONCE))
