"""HTTP connections: where bytes become requests, and responses become bytes.

A connection is in one of four states. In each, one kind of bytes is expected:

              ┌────────────── keep-alive ───────────────┐
              ▼                                         │
    ──────► IDLE ──complete head──► HANDLING ──response sent──┬──close──► CLOSED
            heads │                 body, then the │          │              ▲
              │   │                 next head      │      body not read      │
              │   └──malformed──► 400, 431, 505    │          ▼              │
              │                          └─────────┼────► LINGERING ──end────┤
              │                                    │      discarded          │
              └──────shut down─────────────────────┴──cut, lost──────────────┘

IDLE        Bytes collect until they are a head, which a parser of its own reads
            (`registry.http.framing`). A request begins when the one before it has been answered.
            Bytes that arrive before that are kept, those of one receive at most, and reading
            pauses.
HANDLING    The handler runs. Its body receives straight into the reader's buffer (`Body`), and only
            while it reads. The handler is started at once, inside the call that received the head,
            and becomes a task only if it has to wait: most small requests never do.
LINGERING   The response says that the connection closes, and the client still sends: everything is
            discarded for a while. A reset would take the response away from it.
CLOSED      Nothing is received any more. Responses that were written are still sent, and the
            connection stays open until their counted bytes have been acknowledged.

A shutdown closes connections that are IDLE or LINGERING, and the others after their response. A
client may also send its last request, shut down its side, and read on: the connection closes after
the response. A client that has left looks the same until something is sent to it, which its host
answers with a reset. So if no response has begun by then an interim one is sent; within a response
a client that was sent nothing for some seconds counts as gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import socket
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, cast

from mayfly.registry.http.aiohttp_internals import Head
from mayfly.registry.http.body import CONTINUE, UNBOUNDED, Body, shared_buffer
from mayfly.registry.http.framing import (
    HEAD_END,
    MAX_HEAD,
    FramingInvalid,
    body_length,
    expects_continue,
    head_too_long,
    may_be_head,
    read_head,
)
from mayfly.registry.http.memory import LARGE_HEAD, MAX_HEADS, MAX_RESPONSES, MemoryBudget
from mayfly.registry.http.origin import DIRECT, Origins
from mayfly.registry.http.receipts import Receipts
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response, render_head
from mayfly.registry.http.tcp_info import TCPInfo

logger = logging.getLogger("mayfly")

_HEAD_BUFFER = 16 * 1024
"""Bytes received at once where a head is expected, and kept of those after a request."""

_PROBE_SECONDS = 1.0
"""After the end of a client's data, until an interim response tells whether it has left."""

_IDLE_SECONDS = 10.0
"""Within a response, without anything to send, until a client that sends no more counts as gone."""

_PIECE = 256 * 1024
"""Bytes of a response in memory that are given to the transport at once."""

_LINGER_SECONDS = 10.0
"""For a client that sends more than is wanted, until it has read the response."""

Handler = Callable[[HTTPRequest], Awaitable[Response]]

Refuse = Callable[[int, str], Response]
"""Makes the response to a request that is not valid HTTP, from its status and a text."""


class State(enum.Enum):
    """See the module's description."""

    IDLE = enum.auto()
    HANDLING = enum.auto()
    LINGERING = enum.auto()
    CLOSED = enum.auto()


class Connection(asyncio.BufferedProtocol):
    """One connection, over TCP or TLS.

    By its properties `registry.http.watchdog` learns its state.

    Args:
        server: that it belongs to.

    Attributes:
        transport: None once the connection is lost. Unsent data may keep it open after a close.
        peer: the address at the other end; None for a Unix socket.
        requests: whose heads were complete.
        receipts: of the content of the last response.
    """

    def __init__(self, server: HTTPServer) -> None:
        self._server = server
        self._state = State.IDLE
        self._received = bytearray()
        """The beginning of a head, or bytes after the request that is being handled."""
        self._searched = 0
        """Offset in it from which the end of a head may begin."""
        self._head_size = 0
        """Bytes of the head of the request that is being handled."""
        self._recorded = 0
        """Bytes recorded in the budget."""
        self._is_out_of_step = False
        """Whether bytes were dropped, so that no more requests can be read."""
        self._has_ended = False
        """Whether the client sends no more."""
        self._request: HTTPRequest | None = None
        """The one that is being handled."""
        self._body: Body | None = None
        """The body of the request that is being handled, until it is complete."""
        self._task: asyncio.Task[None] | None = None
        self._is_writable = True
        self._drained: asyncio.Future[None] | None = None
        self.receipts: Receipts | None = None
        self.transport: asyncio.Transport | None = None
        self.peer: str | None = None
        self.requests = 0

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if peer else None
        self._server.opened(self)
        if self.peer is None and self._is_internet():
            # It has been reset, so that nobody would read an answer, and a record of its request
            # would have no address.
            self._abort()

    def _is_internet(self) -> bool:
        connected = self.socket
        return connected is not None and connected.family in (socket.AF_INET, socket.AF_INET6)

    def get_buffer(self, sizehint: int) -> memoryview:
        buffer = self._body.receive_buffer() if self._body is not None else None
        return _head_buffer if buffer is None else buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._body is None:
            self._received += _head_buffer[:nbytes]
            self._advance()
        elif self._body.is_awaited:
            self._body.received(nbytes)
        else:
            self._body.buffer(bytes(_head_buffer[:nbytes]))

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def eof_received(self) -> bool:
        """Note that the client sends no more; return whether the connection stays open meanwhile.

        It does while a response is due, or bytes of the last one are counted by `receipts`.

        Every request that came whole before has been begun, since nothing, this end included, is
        received while one waits. It is called again when reading resumes.
        """
        if not self._has_ended:
            self._has_ended = True
            if self._state is State.HANDLING:
                asyncio.get_running_loop().call_later(_PROBE_SECONDS, self._probe)
        if self._body is not None:
            self._body.fail()
        if self._state is State.IDLE:
            self._close()
        is_counted = self.receipts is not None and self.receipts.is_counting
        return self._state is State.HANDLING or is_counted

    def connection_lost(self, exc: BaseException | None) -> None:
        receipts, self.receipts = self.receipts, None
        self._state, self.transport = State.CLOSED, None
        self._request = None  # it refers to this connection
        if self._body is not None:
            self._body.fail()
            self._body = None  # a handler may hold it for longer, and it refers to this connection
        self._received.clear()
        self._server.heads.record(self, 0)
        self.resume_writing()
        if receipts is not None and receipts.is_counting:
            # Their descriptor takes a place until then.
            receipts.when_ended(lambda: self._server.lost(self))
        else:
            self._server.lost(self)

    # Asked by the watchdog and the budget

    @property
    def socket(self) -> socket.socket | None:
        """The connection's socket; None once it is lost."""
        if self.transport is None:
            return None
        found: socket.socket | None = self.transport.get_extra_info("socket")
        return found

    def is_gone(self) -> bool:
        """Whether the client has left, as far as can be told (see this module)."""
        if self.transport is None or self.transport.is_closing():
            return True
        connected = self.socket
        if not self._has_ended or connected is None:
            return False
        # Nothing is read any more, so that the event loop learns of a reset only where it writes.
        try:
            info = TCPInfo.of(connected)
        except OSError:  # it is not TCP
            return False
        has_begun = self._request is not None and self._request.response is not None
        is_owed = info.unsent or info.unacked
        return info.broken or (has_begun and not is_owed and info.last_sent >= _IDLE_SECONDS)

    @property
    def serving(self) -> bool:
        """Whether a request is being handled, or a refused one discarded."""
        return self._state is State.HANDLING or self._state is State.LINGERING

    @property
    def awaits_body(self) -> bool:
        """Whether a handler waits for more of a request's body."""
        return self._body is not None and self._body.is_awaited

    @property
    def is_writing(self) -> bool:
        """Whether data waits to be given to the kernel."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    def drop(self) -> None:
        """Close the connection at once; a handler is not cancelled, but can send no more."""
        if (connected := self.socket) is not None:
            # Aborting alone would not wake the thread that waits to send a file.
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
        self._abort_transport()

    def release_heads(self) -> bool:
        """Close the connection to free the memory of its heads, unless a request is handled."""
        if self.serving:
            return False
        logger.info("cut a connection from %s: others need the memory of its head", self.peer)
        self._received.clear()
        self._recorded = 0
        self._abort_transport()
        return True

    def release_response(self) -> bool:
        """Close the connection to free the memory of a response that the client does not take."""
        logger.info("cut a connection from %s: others need the memory of its response", self.peer)
        self.drop()
        return True

    # Heads

    def _advance(self) -> None:
        """Begin the next request if its head is complete, and nothing is being handled."""
        if self.transport is None or self.transport.is_closing() or self._state is State.CLOSED:
            self._received.clear()
        elif self._state is State.IDLE:
            if self._is_owed_receipt():
                return
            try:
                head = self._next_head()
                self._record_heads(len(head))
                if head:
                    self._begin(head)
                elif not self.transport.is_reading():
                    self.transport.resume_reading()
            except FramingInvalid as error:
                self._refuse(error)
        elif self._received:
            self.transport.pause_reading()
            try:
                self._record_heads(self._head_size)
            except FramingInvalid:
                self._received.clear()
                self._is_out_of_step = True

    def _is_owed_receipt(self) -> bool:
        """Whether the last response is not acknowledged yet; the next request begins after that.

        A client that has read the response acknowledges it with its next request. One that asks
        ahead, and reads nothing, would otherwise take a descriptor for each response.
        """
        if self.receipts is not None:
            self.receipts.look()
            if self.receipts.is_counting:
                assert self.transport is not None
                self.transport.pause_reading()
                self.receipts.when_ended(self._advance)
                return True
            self.receipts = None
        return False

    def _next_head(self) -> bytes:
        """Take the next head; b"" until it is complete.

        A head that comes in crumbs is searched once, not again with each of them.

        Raises:
            FramingInvalid: the bytes received cannot become a head.
        """
        received = self._received
        if received.startswith((b"\r", b"\n")):
            # A server ought to ignore empty lines here (RFC 9112, 2.2).
            self._received = received = received.lstrip(b"\r\n")
            self._searched = 0
        end = received.find(HEAD_END, self._searched)
        if end >= 0:
            end += len(HEAD_END)
            head = bytes(received[:end])
            del received[:end]
            self._searched = 0
            return head
        self._searched = max(len(received) - len(HEAD_END) + 1, 0)
        if len(received) > MAX_HEAD:
            raise head_too_long()
        if received and not may_be_head(bytes(received[:64])):
            raise FramingInvalid("the request is not valid HTTP")
        return b""

    def _record_heads(self, head: int) -> None:
        """Record the memory of the bytes received, and of a request's head of ``head`` bytes.

        Raises:
            FramingInvalid: it does not fit the budget.
        """
        self._head_size = head
        size = len(self._received)
        if head > LARGE_HEAD:
            size += 2 * head  # its bytes, and its text
        if size != self._recorded:
            self._recorded = size
            if not self._server.heads.record(self, size):
                self._recorded = 0
                raise FramingInvalid("too many long request heads at once; send shorter ones", 431)

    def _begin(self, data: bytes) -> None:
        assert self.transport is not None
        head = read_head(data)
        length = body_length(head)
        self.requests += 1
        self._state = State.HANDLING
        if length != 0:
            body = Body(self.transport, length, expects_continue(head), self._end_body)
            self._body = body
            self.transport.pause_reading()
            if self._received:
                body.buffer(bytes(self._received))
                self._received.clear()
        elif self._received:
            self.transport.pause_reading()  # the next request; see `eof_received`
        elif not self.transport.is_reading():
            self.transport.resume_reading()  # so that a client that leaves is noticed
        self._request = request = self._server.request(self, head, self._body)
        self._run(self._handle(request))

    def _end_body(self, rest: bytes) -> None:
        self._body = None
        if self._state is State.HANDLING and self.transport is not None:
            self._received += rest
            if rest:
                self._advance()
            else:
                self.transport.resume_reading()  # so that a client that leaves is noticed

    def _refuse(self, refusal: FramingInvalid) -> None:
        """Answer a malformed request; nothing that follows it can be told to be a request."""
        logger.debug("refused broken HTTP from %s: %s", self.peer, refusal)
        assert self.transport is not None
        self._received.clear()
        self._record_heads(0)
        self._state = State.LINGERING
        self._body = Body(self.transport, UNBOUNDED, False, self._end_body)
        self.transport.pause_reading()
        response = self._server.refuse(refusal.status, str(refusal))
        length = len(response.body)
        self.transport.write(render_head(response, length, 1, keep_alive=False) + response.body)
        self._run(self._linger(self._body))

    # Handling

    def _run(self, handling: Coroutine[Any, Any, None]) -> None:
        """Run until the first wait now; the rest, if there is one, in a task."""
        start = _Start(handling)
        start.run()
        self._task = start.task

    async def _handle(self, request: HTTPRequest) -> None:
        """Handle one request, from its head to the end of its response."""
        try:
            await self._respond(request)
            if not self._is_writable or self._has_rest(request):
                await self._send_rest(request)
        except ConnectionError:
            self._close()
            return
        except asyncio.CancelledError:
            self._abort()
            raise
        if self._has_ended:
            self._close()
        elif request.body is not None and not request.body.complete:
            await self._linger(request.body)
        elif not request.keep_alive or self._is_out_of_step or self._server.closing:
            self._close()
        else:
            self._expect_next()

    async def _respond(self, request: HTTPRequest) -> None:
        try:
            self._finish(request, await self._server.handle(request))
        except ConnectionError:
            raise
        except Exception:
            logger.exception("%s %s failed", request.method, request.raw_path)
            if request.response is not None:
                self._abort()
                raise ConnectionResetError("response was cut") from None
            response = self._server.refuse(500, "internal error")
            response.close = True
            self._finish(request, response)

    async def _send_rest(self, request: HTTPRequest) -> None:
        """Send the rest of a response, and wait until the client has taken nearly all of it.

        Others may need the memory of it meanwhile.

        Raises:
            ConnectionResetError: the client is gone, or was cut for that.
        """
        assert request.response is not None
        body, responses = memoryview(request.response.body), self._server.responses
        try:
            responses.record(self, min(len(body), MAX_RESPONSES))
            if self._has_rest(request):
                for start in range(_PIECE, len(body), _PIECE):
                    await self.drain()
                    self._write(request, body[start : start + _PIECE])
            await self.drain()
        finally:
            responses.record(self, 0)

    @staticmethod
    def _has_rest(request: HTTPRequest) -> bool:
        """Whether the body of a response in memory is sent in more than one piece."""
        response = request.response
        return response is not None and len(response.body) > _PIECE and request.method != "HEAD"

    def _expect_next(self) -> None:
        if self._state is not State.HANDLING or self.transport is None:
            return
        self._state, self._task, self._request = State.IDLE, None, None
        if self._received:
            # In another turn: a client that sends many requests at once must not hold up others.
            # Until they are handled no more is received.
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._advance)
            return
        self._record_heads(0)
        if not self.transport.is_reading():
            self.transport.resume_reading()

    async def _linger(self, body: Body) -> None:
        """Discard the rest of a body, for a while, so that the client reads its response."""
        if self.transport is not None:
            self._state = State.LINGERING
            await body.discard(_LINGER_SECONDS)
        self._close()

    # Responses

    def begin(self, request: HTTPRequest, response: Response) -> None:
        """Send the head of a response whose content the handler sends: a file, or a stream.

        Raises:
            ConnectionResetError: the client is gone.
        """
        head = self._head_of(request, response, response.length)
        request.response = response
        self._write(request, head)

    async def send_piece(self, request: HTTPRequest, piece: bytes) -> None:
        """Send a piece of a response that has begun, and wait while the client takes no more.

        Raises:
            ConnectionResetError: the client is gone.
        """
        begun = request.response
        if piece and begun is not None and request.method != "HEAD":
            chunked = request.minor and begun.length is None
            self._write(request, b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        await self.drain()

    async def drain(self) -> None:
        """Wait until the client takes more.

        Raises:
            ConnectionResetError: the client is gone.
        """
        if not self._is_writable:
            self._drained = asyncio.get_running_loop().create_future()
            try:
                await self._drained
            finally:
                self._drained = None
        if self.transport is None:
            raise ConnectionResetError("client is gone")

    def _finish(self, request: HTTPRequest, response: Response) -> None:
        """Send a whole response, or the end of one that the handler has begun."""
        if request.response is None:
            head = self._head_of(request, response, len(response.body))
            request.response = response
            # The rest of a large one by `_send_rest`: the transport would copy all of it.
            self._write(
                request, head if request.method == "HEAD" else head + response.body[:_PIECE]
            )
        elif request.response.length is None and request.minor and request.method != "HEAD":
            self._write(request, b"0\r\n\r\n")

    def _head_of(self, request: HTTPRequest, response: Response, length: int | None) -> bytes:
        body = request.body
        if response.close or self._is_out_of_step or self._has_ended or self._server.closing:
            request.keep_alive = False
        elif body is not None and not body.discard_pending():
            request.keep_alive = False  # the rest of the body would have to be received first
        if length is None and not request.minor:
            request.keep_alive = False  # only the end of the connection ends the body
        return render_head(response, length, request.minor, keep_alive=request.keep_alive)

    def _write(self, request: HTTPRequest, data: bytes | memoryview) -> None:
        if self.transport is None or self.transport.is_closing():
            raise ConnectionResetError("client is gone")
        request.sent += len(data)
        self.transport.write(data)

    # Ends

    def _probe(self) -> None:
        """Send an interim response, unless a response has begun, to a client that may have left."""
        request = self._request
        if request is None or request.response is not None or not request.minor:
            return  # HTTP/1.0 has none
        if self._state is State.HANDLING and not self.is_gone():
            assert self.transport is not None
            self.transport.write(CONTINUE)

    def close_soon(self) -> None:
        """Close the connection, after the response to the request that is being handled."""
        if self._state is State.LINGERING and self._body is not None:
            self._body.fail()  # the client has its response
        elif self._state is State.IDLE:
            self._close()

    def cut(self) -> None:
        """Cancel the handler, and close the connection at once."""
        if self._task is not None:
            self._task.cancel()
        self._abort()

    def _close(self) -> None:
        """Close the connection, once the client's host has all bytes that `receipts` counts.

        A client that has read its response often closes at once. If close_notify has arrived by
        then, and was not read, its host sends a reset, and the last acknowledgements are lost.
        """
        self._state = State.CLOSED
        if self._body is not None:
            self._body.fail()
            self._body = None
        if self.transport is not None and self.receipts is not None and self.receipts.is_counting:
            self.receipts.when_ended(self._close_transport)
        else:
            self._close_transport()

    def _close_transport(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def _abort(self) -> None:
        self._state = State.CLOSED
        self._abort_transport()

    def _abort_transport(self) -> None:
        if self.transport is not None:
            self.transport.abort()


_head_buffer = shared_buffer[:_HEAD_BUFFER]


class _Start(Coroutine[Any, Any, None]):
    """Runs a coroutine until its first wait, and is the coroutine of the task that continues it.

    Until then it stands for that task: `asyncio.timeout` and `asyncio.TaskGroup` ask for the
    current task when they begin, and cancel it later.

    Attributes:
        task: that continues the coroutine; None if it ended without a wait.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self._first: list[Any] = []
        """The future that the coroutine waits for first, until the task has asked for it."""
        self.task: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Run the coroutine's first step now."""
        loop, this = asyncio.get_running_loop(), cast(Any, self)
        outer = asyncio.current_task(loop)
        if outer is not None:
            _leave_task(loop, outer)
        _enter_task(loop, this)
        try:
            self._first.append(self._coroutine.send(None))
        except StopIteration:
            return
        finally:
            _leave_task(loop, this)
            if outer is not None:
                _enter_task(loop, outer)
        self.task = loop.create_task(self)

    # As the current task

    def cancel(self, msg: object = None) -> bool:
        return self.task is not None and self.task.cancel(msg)

    def done(self) -> bool:
        return self.task is not None and self.task.done()

    def cancelling(self) -> int:
        return 0 if self.task is None else self.task.cancelling()

    def uncancel(self) -> int:
        return 0 if self.task is None else self.task.uncancel()

    # As the task's coroutine

    def send(self, value: Any) -> Any:
        return self._first.pop() if self._first else self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        self._first.clear()  # cancelled before it waited for that
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("only a task continues it")


def _refuse_in_plain_text(status: int, text: str) -> Response:
    return Response(status, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})


class HTTPServer:
    """The connections of one server, and their shared state.

    Args:
        handle: answers a request.
        origins: how clients reach the server.
        refuse: makes the response to a request that is not valid HTTP.

    Attributes:
        heads: the memory of all request heads.
        responses: the memory of all responses that wait for their clients.
        closing: whether connections close after the response that they are sending.
    """

    def __init__(
        self,
        handle: Handler,
        origins: Origins = DIRECT,
        refuse: Refuse = _refuse_in_plain_text,
    ) -> None:
        self.handle = handle
        self.refuse = refuse
        self.heads = MemoryBudget(MAX_HEADS, Connection.release_heads)
        self.responses = MemoryBudget(MAX_RESPONSES, Connection.release_response)
        self.closing = False
        self._origins = origins
        self._connections: dict[Connection, None] = {}
        self._all_lost = asyncio.Event()
        self._all_lost.set()

    def __call__(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self)

    @property
    def open_count(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def open_connections(self) -> list[Connection]:
        """All connections, some of them about to end."""
        return [*self._connections]

    async def close(self, seconds: float) -> None:
        """Close all connections.

        Args:
            seconds: for the requests that are being handled, and for responses to be sent.
        """
        self.closing = True
        for connection in self.open_connections():
            connection.close_soon()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._all_lost.wait()
        for connection in self.open_connections():
            connection.cut()

    # Called by connections

    def opened(self, connection: Connection) -> None:
        """Add a connection."""
        self._connections[connection] = None
        self._all_lost.clear()
        if self.closing:
            connection.close_soon()

    def lost(self, connection: Connection) -> None:
        """Remove a connection."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._all_lost.set()

    def request(self, connection: Connection, head: Head, body: Body | None) -> HTTPRequest:
        """Return a request that a connection has received."""
        request = HTTPRequest(connection, head, body)
        if self._origins.trusted and (said := self._origins.forwarded(request)) is not None:
            request.client = said.client
        return request
