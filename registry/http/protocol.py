"""A connection: heads of requests go to aiohttp, bodies to their readers (`registry.http.body`)."""

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

from mayfly.registry.http.body import ENDLESS, Body, HTTPRequest, received
from mayfly.registry.http.framing import (
    HEAD_END,
    MAX_HEAD,
    FramingInvalid,
    body_length,
    check_head,
    may_be_head,
    too_long,
    waits_to_be_asked,
    without_body,
)
from mayfly.registry.http.heads import LARGE_HEAD, HeadBudget
from mayfly.registry.http.origin import AS_ASKED, Origins

logger = logging.getLogger("mayfly")

_MOST_WAITING = 1
"""Requests that may wait for the one before. More would be read in vain for a client that leaves
without its answers; aiohttp would hold up a connection at 32 by itself."""

_HEADS_AT_ONCE = 16 * 1024
"""Bytes received at once where heads are expected; so many a connection may keep of what follows
those that wait."""

_LINGER_SECONDS = 10.0
"""For a client that sends what is not wanted, until it has read why."""

_NO_HTTP = b"unclear\r\n\r\n"
"""What aiohttp's parser refuses in the place of a head that must not be read either way."""


Refuse = Callable[[int, str], StreamResponse]
"""Makes the answer to a request that is not valid HTTP, from its status and a text."""


class Protocol(RequestHandler, asyncio.BufferedProtocol):
    """aiohttp's connection handler, with refusals of our own for broken HTTP.

    It also says what its client is about (`registry.http.sweep`).
    """

    def __init__(self, *args: Any, heads: HeadBudget, refuse: Refuse, **options: Any) -> None:
        super().__init__(*args, **options)
        self._refuse_with = refuse
        self._head = bytearray()
        """The beginning of a head, or the heads after those that wait."""
        self._searched = 0
        """Bytes of it already searched for the end of a head."""
        self._heads = heads
        self._large_heads = 0
        """Bytes that large heads take: aiohttp keeps a request until the next one comes."""
        self._noted = 0
        self._refusal: FramingInvalid | None = None
        self._body: Body | None = None
        self._bodies: deque[Body | None] = deque()
        """Of the requests that aiohttp has and has not begun to handle."""
        self._is_held_up = False
        self._lingering: Body | None = None
        self._connection: asyncio.Transport | None = None
        """As `transport`, which aiohttp forgets as soon as it closes it: what waits to be sent may
        keep it open after that."""
        self.requests = 0
        """Whose heads were complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connection = transport
        super().connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._body.room() if self._body is not None else None
        return _head_buffer if room is None else room

    def buffer_updated(self, nbytes: int) -> None:
        if self._body is not None and self._body.is_awaited:
            self._body.received(nbytes)
        else:
            self._take(_head_buffer[:nbytes])

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._body is not None:
            self._body.broken()
        # Handlers may hold a body for longer, and it leads to this connection.
        self._body = self._lingering = self._connection = None
        self._bodies.clear()
        self._heads.keep(self, 0)
        super().connection_lost(exc)

    @property
    def socket(self) -> socket.socket | None:
        """Of the connection, None once it is closed."""
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
        """Whether we wait for more of a request's body."""
        return self._body is not None and self._body.is_awaited

    @property
    def is_writing(self) -> bool:
        """Whether something is still on its way to the kernel."""
        return self._connection is not None and self._connection.get_write_buffer_size() > 0

    def next_body(self) -> Body | None:
        """The body of the request that is to be handled next."""
        body = self._bodies.popleft() if self._bodies else None
        if self._is_held_up and len(self._bodies) < _MOST_WAITING and self.transport is not None:
            self._is_held_up = False
            self._take(b"")
            if not self._is_held_up and self._body is None and self.transport is not None:
                self.transport.resume_reading()
        return body

    def _take(self, data: bytes | memoryview) -> None:
        """Pass heads to aiohttp one by one, and the bytes after a head to its body.

        A head that arrives in small pieces is searched once, not again with each piece.
        """
        heads, searched = self._head, self._searched
        heads += data
        at = 0
        while at < len(heads) and self.transport is not None:
            if self._body is not None:
                self._body.hold(bytes(heads[at:]))
                at = len(heads)
                break
            if len(self._bodies) >= _MOST_WAITING:
                self._is_held_up, searched = True, at
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
            self._begin(bytes(heads[at:end]))
            at = end
        del heads[:at]
        self._searched = max(searched - at, 0)
        if not self._keep_heads():
            heads.clear()
            self._refuse(_no_room())

    def _keep_heads(self) -> bool:
        """Record the size of the connection's heads; False if they do not fit the budget."""
        size = len(self._head) + self._large_heads
        if size == self._noted:
            return True
        self._noted = size
        return self._heads.keep(self, size)

    def give_up_heads(self) -> None:
        """Close the connection to free the memory of its heads."""
        logger.info("cut a connection from %s: others need the memory of its head", self.peername)
        self._head.clear()
        self._noted = 0
        if self._connection is not None:
            self._connection.abort()

    def _begin(self, head: bytes) -> None:
        assert self.transport is not None
        try:
            check_head(head)
            length = body_length(head)
            self._count_head(len(head))
        except FramingInvalid as error:
            self._refuse(error)
            return
        body = None
        if length != 0:
            expects = waits_to_be_asked(head)
            body = self._body = Body(self.transport, length, expects, self._end)
            self.transport.pause_reading()
            head = without_body(head, length)
        self._bodies.append(body)
        self.requests += 1
        self.data_received(head)

    def _count_head(self, size: int) -> None:
        if not self.serving:
            self._large_heads = 0
        if size > LARGE_HEAD:
            self._large_heads += 2 * size  # aiohttp keeps it as bytes and as text
            self._noted = self._large_heads
            if not self._heads.keep(self, self._large_heads):
                raise _no_room()

    def _end(self, rest: bytes) -> None:
        self._body = None
        if self.transport is not None:
            self.transport.resume_reading()
            self._take(rest)

    def _refuse(self, refusal: FramingInvalid) -> None:
        if self.transport is not None:
            self._refusal = refusal
            self._bodies.append(self._endless())
            self.data_received(_NO_HTTP)

    def _endless(self) -> Body:
        """All that will come: none of it is a request."""
        assert self.transport is not None
        self.transport.pause_reading()
        self._body = Body(self.transport, ENDLESS, False, self._end)
        return self._body

    async def finish_response(
        self, request: BaseRequest, resp: StreamResponse, start_time: float | None
    ) -> tuple[StreamResponse, bool]:
        """Linger after an answer whose request has not come to its end."""
        if resp is _CUT:
            return resp, True
        found = await super().finish_response(request, resp, start_time)
        assert isinstance(request, HTTPRequest)
        if request.body is not None and not request.body.over:
            self._lingering = request.body
            await request.body.skip(_LINGER_SECONDS)
        return found

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's
        """End the connection; who lingers has its answer, and is not waited for."""
        if self._lingering is not None:
            self._lingering.broken()
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
            request.body = self._endless()
        return response


_CUT = StreamResponse()
"""Returned for a connection that is gone or was cut: nothing more is sent on it."""

_head_buffer = received[:_HEADS_AT_ONCE]


def _never_a_head(data: bytearray, at: int) -> FramingInvalid | None:
    """The error if the bytes so far cannot be the beginning of a head; else None."""
    if len(data) - at > MAX_HEAD:
        return too_long()
    if not may_be_head(bytes(data[at : at + 64])):
        return FramingInvalid("the request is not valid HTTP")
    return None


def _refuse_plainly(status: int, text: str) -> StreamResponse:
    return Response(status=status, text=text)


def _no_room() -> FramingInvalid:
    return FramingInvalid("too many long request heads at once; send shorter ones", 431)


class HTTPServer(Server):
    """aiohttp's low-level server: no router, no middleware, nothing decompressed.

    Args:
        app: answers a request. May raise ConnectionError when the client is gone or was cut off.
        origins: how clients reach the server.
        refuse: makes the answer, from a status and a text, to a request that is not valid HTTP.
    """

    def __init__(
        self,
        app: Callable[[HTTPRequest], Awaitable[StreamResponse]],
        origins: Origins = AS_ASKED,
        refuse: Refuse = _refuse_plainly,
    ) -> None:
        super().__init__(self._handle, request_factory=self._make)
        self._app = app
        self._origins = origins
        self._options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,
            "logger": logger,
            # Lengths are checked before, by `registry.http.framing`.
            "max_line_size": MAX_HEAD,
            "max_field_size": MAX_HEAD,
            "heads": HeadBudget(),
            "refuse": refuse,
        }

    @property
    def open_count(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    def open_connections(self) -> list[Protocol]:
        """All there are, some of them about to end."""
        return [one for one in self.connections if isinstance(one, Protocol)]

    async def _handle(self, request: BaseRequest) -> StreamResponse:
        try:
            assert isinstance(request, HTTPRequest)
            return await self._app(request)
        except ConnectionError:
            # aiohttp would keep it in the task that it is in the traceback of, a cycle with all
            # that the frames hold: buffers, the transport.
            return _CUT

    def __call__(self) -> Protocol:
        return Protocol(self, loop=self._loop, **self._options)

    def _make(
        self, message: Any, payload: Any, protocol: RequestHandler, writer: Any, task: Any
    ) -> HTTPRequest:
        assert isinstance(protocol, Protocol)
        request = HTTPRequest(message, payload, protocol, writer, task, self._loop)
        request.body = protocol.next_body()
        if self._origins.trusted and (said := self._origins.forwarded(request)) is not None:
            request.client = said.client
        return request
