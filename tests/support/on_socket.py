"""A handler behind real sockets in the test's own event loop, without TLS and a lifecycle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from aiohttp.test_utils import BaseTestServer
from yarl import URL

from mayfly.registry.api.app import malformed_request
from mayfly.registry.http.connection import Handler, HTTPServer


@asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[int]:
    """Serve on a port of its own while the block runs, and give it."""
    server = HTTPServer(handle, refuse=malformed_request)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await server.close(1)


class Served(BaseTestServer):
    """The same for the client of pytest-aiohttp."""

    def __init__(self, handle: Handler) -> None:
        super().__init__(scheme="http")
        self._serving = serving(handle)

    async def start_server(
        self, loop: asyncio.AbstractEventLoop | None = None, **kwargs: Any
    ) -> None:
        if not self.started:
            self.port = await self._serving.__aenter__()
            self._root = URL(f"http://{self.host}:{self.port}")

    @property
    def started(self) -> bool:
        return self._root is not None

    async def close(self) -> None:
        if self.started and not self.closed:
            self._closed = True
            await self._serving.__aexit__(None, None, None)

    async def _make_runner(self, **kwargs: Any) -> NoReturn:
        raise NotImplementedError
