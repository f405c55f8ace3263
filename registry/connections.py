"""The HTTP server as the lifetime sees it: sockets that accept, connections that close."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from functools import partial

from registry.app import HTTPServer
from registry.lifetime.activity import Activity
from registry.lifetime.listen import Listeners

_AT_ONCE = 0.01


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
        loop = asyncio.get_running_loop()
        serve = partial(loop.connect_accepted_socket, server, ssl=tls)
        self.listeners = Listeners(sockets, serve, activity)

    async def close(self, seconds: float) -> None:
        """Close all connections; handlers that still run have so many seconds."""
        self._server.pre_shutdown()
        # To aiohttp no time at all means as long as it takes.
        await self._server.shutdown(max(seconds, _AT_ONCE))
