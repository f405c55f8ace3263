"""A client of a registry, and a server that answers it as a test says."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, NamedTuple, TypeVar

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from mayfly.registry.upstream.client import Access, Registry
from mayfly.registry.upstream.credentials import Credentials, CredentialStore

HOST = "registry.test"

R = TypeVar("R", bound=Registry)


class Answering(NamedTuple, Generic[R]):
    """See the module.

    Attributes:
        registry: the client, which has a login for the server.
        server: on loopback.
        waits: seconds of each pause, which takes no time.
    """

    registry: R
    server: TestServer
    waits: list[float]


@asynccontextmanager
async def answering(
    kind: type[R], handle: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[Answering[R]]:
    """Run a server that answers every request with ``handle``, and make a client of a kind."""
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", handle)
    server = TestServer(app)
    await server.start_server()
    waits: list[float] = []

    async def slept(seconds: float) -> None:
        waits.append(seconds)

    async with aiohttp.ClientSession(auto_decompress=False) as session:
        reached = Access(str(server.make_url("")).rstrip("/"), None, ssl.create_default_context())
        store = CredentialStore({HOST: Credentials("me", "secret")})
        yield Answering(kind(session, HOST, reached, store, slept), server, waits)
    await server.close()
