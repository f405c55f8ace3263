"""HTTP connections: aiohttp parses the heads of requests, `registry.http.body` frames the bodies.

received data ──► head ──checked──► aiohttp's parser ──► handler
     │             └──malformed──► 400, then everything else is discarded
     └──after a head with a body──► Body ──► handler
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from aiohttp.web_server import Server

from mayfly.registry.http.body import UNBOUNDED, Body, HTTPRequest, shared_buffer
from mayfly.registry.http.framing import (
    HEAD_END,
    MAX_HEAD,
    FramingInvalid,
    body_length,
    check_head,
    expects_continue,
    head_too_long,
    may_be_head,
    without_body,
)
from mayfly.registry.http.heads import LARGE_HEAD, HeadBudget
from mayfly.registry.http.origin import DIRECT, Origins

logger = logging.getLogger("mayfly")

_MAX_WAITING = 1
"""Requests of a connection that may wait for the one before. More would be parsed in vain for a
client that leaves without its responses; aiohttp itself would pause a connection at 32."""

_HEAD_BUFFER = 16 * 1024
"""Bytes received at once where a head is expected, and kept of what follows waiting requests."""

_LINGER_SECONDS = 10.0
"""For a client that sends more than is wanted, until it has read the response."""

_MALFORMED_HEAD = b"malformed\r\n\r\n"
"""Given to aiohttp's parser, which rejects it, in place of a head that must not be interpreted."""

Refuse = Callable[[int, str], StreamResponse]
"""Makes the response to a request that is not valid HTTP, from its status and a text."""


class HTTPProtocol(RequestHandler, asyncio.BufferedProtocol):
    """aiohttp's connection handler, with bodies and refusals of malformed HTTP of our own.

    Its properties tell `registry.http.watchdog` what the connection waits for.
    """

    def __init__(self, *args: Any, heads: HeadBudget, refuse: Refuse, **options: Any) -> None:
        super().__init__(*args, **options)
        self._refuse_with = refuse
        self._head = bytearray()
        """The beginning of a head, or heads that follow the waiting requests."""
        self._searched = 0
        """Bytes of it already searched for the end of a head."""
        self._heads = heads
        self._large_heads = 0
        """Bytes that large heads take: aiohttp keeps a request until the next one comes."""
        self._recorded = 0
        """Bytes recorded in the budget."""
        self._refusal: FramingInvalid | None = None
        self._body: Body | None = None
        self._bodies: deque[Body | None] = deque()
        """Of the requests that aiohttp has parsed and not begun to handle."""
        self._has_excess_heads = False
        """Whether reading is paused because `_MAX_WAITING` requests wait."""
        self._lingering: Body | None = None
        self._connection: asyncio.Transport | None = None
        """As `transport`, which aiohttp forgets as soon as it closes it. Unsent data may keep the
        connection open after that."""
        self.requests = 0
        """Requests whose heads were complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connection = transport
        super().connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        buffer = self._body.receive_buffer() if self._body is not None else None
        return _head_buffer if buffer is None else buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._body is not None and self._body.is_awaited:
            self._body.received(nbytes)
        else:
            self._take_heads(_head_buffer[:nbytes])

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._body is not None:
            self._body.fail()
        # A handler may hold a body for longer, and a body refers to this connection.
        self._body = self._lingering = self._connection = None
        self._bodies.clear()
        self._heads.record(self, 0)
        super().connection_lost(exc)

    @property
    def socket(self) -> socket.socket | None:
        """The connection's socket; None once it is closed."""
        if self._connection is None:
            return None
        found: socket.socket | None = self._connection.get_extra_info("socket")
        return found

    @property
    def serving(self) -> bool:
        """Whether a request is being handled."""
        return self._request_in_progress or bool(self._messages)

    @property
    def awaits_body(self) -> bool:
        """Whether a handler waits for more of a request's body."""
        return self._body is not None and self._body.is_awaited

    @property
    def is_writing(self) -> bool:
        """Whether data waits to be given to the kernel."""
        return self._connection is not None and self._connection.get_write_buffer_size() > 0

    def next_body(self) -> Body | None:
        """Return the body of the next request to handle, and read on if reading was paused."""
        body = self._bodies.popleft() if self._bodies else None
        has_place = len(self._bodies) < _MAX_WAITING and self.transport is not None
        if self._has_excess_heads and has_place:
            self._has_excess_heads = False
            self._take_heads(b"")
            if not self._has_excess_heads and self._body is None and self.transport is not None:
                self.transport.resume_reading()
        return body

    def _take_heads(self, data: bytes | memoryview) -> None:
        """Pass heads to aiohttp one by one, and the bytes after a head to its body.

        A head that arrives in small pieces is searched once, not again with each piece.
        """
        heads, searched = self._head, self._searched
        heads += data
        at = 0
        while at < len(heads) and self.transport is not None:
            if self._body is not None:
                self._body.buffer(bytes(heads[at:]))
                at = len(heads)
                break
            if len(self._bodies) >= _MAX_WAITING:
                self._has_excess_heads, searched = True, at
                self.transport.pause_reading()
                break
            if heads[at] in b"\r\n":
                at += 1  # a server ought to ignore empty lines here (RFC 9112, 2.2)
                continue
            end = heads.find(HEAD_END, max(at, searched - len(HEAD_END) + 1)) + len(HEAD_END)
            if end < len(HEAD_END):
                searched = len(heads)
                if refusal := _never_a_head(heads, at):
                    self._refuse(refusal)
                    at = searched
                break
            self._begin_request(bytes(heads[at:end]))
            at = end
        del heads[:at]
        self._searched = max(searched - at, 0)
        if not self._record_heads():
            heads.clear()
            self._refuse(_heads_exhausted())

    def _record_heads(self) -> bool:
        """Record the size of the connection's heads; return whether they fit the budget."""
        size = len(self._head) + self._large_heads
        if size == self._recorded:
            return True
        self._recorded = size
        return self._heads.record(self, size)

    def drop_heads(self) -> None:
        """Close the connection to free the memory of its heads."""
        logger.info("cut a connection from %s: others need the memory of its head", self.peername)
        self._head.clear()
        self._recorded = 0
        if self._connection is not None:
            self._connection.abort()

    def _begin_request(self, head: bytes) -> None:
        assert self.transport is not None
        try:
            check_head(head)
            length = body_length(head)
            self._record_large_head(len(head))
        except FramingInvalid as error:
            self._refuse(error)
            return
        body = None
        if length != 0:
            body = self._body = Body(self.transport, length, expects_continue(head), self._end_body)
            self.transport.pause_reading()
            head = without_body(head, length)
        self._bodies.append(body)
        self.requests += 1
        self.data_received(head)

    def _record_large_head(self, size: int) -> None:
        if not self.serving:
            self._large_heads = 0
        if size > LARGE_HEAD:
            self._large_heads += 2 * size  # aiohttp keeps it as bytes and as text
            self._recorded = self._large_heads
            if not self._heads.record(self, self._large_heads):
                raise _heads_exhausted()

    def _end_body(self, rest: bytes) -> None:
        self._body = None
        if self.transport is not None:
            self.transport.resume_reading()
            self._take_heads(rest)

    def _refuse(self, refusal: FramingInvalid) -> None:
        if self.transport is not None:
            self._refusal = refusal
            self._bodies.append(self._discard_rest())
            self.data_received(_MALFORMED_HEAD)

    def _discard_rest(self) -> Body:
        """Make everything else that comes one body: none of it can be a request."""
        assert self.transport is not None
        self.transport.pause_reading()
        self._body = Body(self.transport, UNBOUNDED, False, self._end_body)
        return self._body

    async def finish_response(
        self, request: BaseRequest, resp: StreamResponse, start_time: float | None
    ) -> tuple[StreamResponse, bool]:
        """Linger after a response to a request whose body was not read to its end."""
        found = await super().finish_response(request, resp, start_time)
        assert isinstance(request, HTTPRequest)
        if request.body is not None and not request.body.complete and self.transport is not None:
            self._lingering = request.body
            try:
                await request.body.discard(_LINGER_SECONDS)
            finally:
                self._lingering = None
        return found

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's
        """End the connection; a client that only lingers has its response, and is cut off."""
        if self._lingering is not None:
            self._lingering.fail()
        await super().shutdown(timeout)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        text = "the request is not valid HTTP" if status < 500 else "internal error"
        if self._refusal is not None and status < 500:
            status, text = self._refusal.status, str(self._refusal)
            message = text
        logger.debug("refused broken HTTP from %s: %s", request.remote, message or exc)
        response = self._refuse_with(status, text)
        response.force_close()
        if self.transport is not None and isinstance(request, HTTPRequest):
            request.body = self._discard_rest()
        return response


_head_buffer = shared_buffer[:_HEAD_BUFFER]


def _never_a_head(data: bytearray, at: int) -> FramingInvalid | None:
    """The error if the bytes so far cannot be the beginning of a head; else None."""
    if len(data) - at > MAX_HEAD:
        return head_too_long()
    if not may_be_head(bytes(data[at : at + 64])):
        return FramingInvalid("the request is not valid HTTP")
    return None


def _heads_exhausted() -> FramingInvalid:
    return FramingInvalid("too many long request heads at once; send shorter ones", 431)


def _refuse_in_plain_text(status: int, text: str) -> StreamResponse:
    return Response(status=status, text=text)


class HTTPServer(Server):
    """aiohttp's low-level server: no router, no middleware, nothing decompressed.

    Args:
        app: handles an `HTTPRequest`.
        origins: how clients reach the server.
        refuse: makes the response to a request that is not valid HTTP.
    """

    def __init__(
        self,
        app: Callable[[Any], Awaitable[StreamResponse]],
        origins: Origins = DIRECT,
        refuse: Refuse = _refuse_in_plain_text,
    ) -> None:
        super().__init__(app, request_factory=self._make_request)
        self._origins = origins
        self._options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,
            "logger": logger,
            # Lengths were checked before, by `registry.http.framing`.
            "max_line_size": MAX_HEAD,
            "max_field_size": MAX_HEAD,
            "heads": HeadBudget(),
            "refuse": refuse,
        }

    @property
    def open_count(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def open_connections(self) -> list[HTTPProtocol]:
        """All connections, some of them about to end."""
        return [one for one in self.connections if isinstance(one, HTTPProtocol)]

    def __call__(self) -> HTTPProtocol:
        return HTTPProtocol(self, loop=self._loop, **self._options)

    def _make_request(
        self, message: Any, payload: Any, protocol: RequestHandler, writer: Any, task: Any
    ) -> HTTPRequest:
        assert isinstance(protocol, HTTPProtocol)
        request = HTTPRequest(message, payload, protocol, writer, task, self._loop)
        request.body = protocol.next_body()
        if self._origins.trusted and (said := self._origins.forwarded(request)) is not None:
            request.client = said.client
        return request
