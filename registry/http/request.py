"""A request, as the connection gives it to the handler."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mayfly.registry.http.body import Body

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

    from mayfly.registry.http.aiohttp_internals import Head
    from mayfly.registry.http.connection import Connection
    from mayfly.registry.http.response import Response


class HTTPRequest:
    """One request on a connection.

    Args:
        connection: on which it came.
        head: as the parser read it.
        body: None for a request without one.

    Attributes:
        method: as sent.
        raw_path: the request target as sent, still percent-encoded, with the query.
        endpoint: the name of its route, once that is known; "" before, and without one.
        headers: case-insensitive.
        minor: 0 or 1, of the version of HTTP.
        keep_alive: whether another request may follow.
        client: the client's address according to a trusted proxy, if there is one.
        response: the response whose head was sent; None before that.
        sent: bytes of the response that were given to the kernel or the transport so far.
    """

    __slots__ = (
        "body",
        "client",
        "connection",
        "endpoint",
        "headers",
        "keep_alive",
        "method",
        "minor",
        "raw_path",
        "response",
        "sent",
    )

    def __init__(self, connection: Connection, head: Head, body: Body | None) -> None:
        self.connection = connection
        self.method: str = head.method
        self.raw_path: str = head.path
        self.headers: CIMultiDictProxy[str] = head.headers
        self.minor: int = head.version[1]
        self.keep_alive = not head.should_close
        self.body = body
        self.endpoint = ""
        self.client: str | None = None
        self.response: Response | None = None
        self.sent = 0

    @property
    def transport(self) -> asyncio.Transport | None:
        """The connection's transport; None once the connection is lost."""
        return self.connection.transport

    @property
    def remote(self) -> str | None:
        """The client's address: from a trusted proxy's header, otherwise from the connection."""
        return self.connection.peer if self.client is None else self.client

    def is_gone(self) -> bool:
        """Whether the client has left."""
        return self.connection.is_gone()

    @property
    def announced_length(self) -> int:
        """The body's length in bytes; 0 if none is announced."""
        return (self.body.length or 0) if self.body is not None else 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See `asyncio.BaseTransport.get_extra_info`."""
        transport = self.connection.transport
        return default if transport is None else transport.get_extra_info(name, default)

    async def read_body(self, limit: int) -> bytes:
        """See `Body.read`."""
        return await self.body.read(limit) if self.body is not None else b""

    def begin(self, response: Response) -> None:
        """Send the head of a response; its content is sent by the handler.

        Raises:
            ConnectionResetError: the client is gone.
        """
        self.connection.begin(self, response)

    def drop(self) -> None:
        """See `Connection.drop`."""
        self.connection.drop()

    async def send_piece(self, piece: bytes) -> None:
        """Send a piece of a response that has begun, and wait while the client takes no more.

        Raises:
            ConnectionResetError: the client is gone.
        """
        await self.connection.send_piece(self, piece)
