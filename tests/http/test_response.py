"""Responses as bytes: whole ones, streams, failures, and clients that do not take them."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import re
import time

import pytest

from mayfly.registry.http import connection
from mayfly.registry.http.connection import Connection, Handler, HTTPServer
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response, render_head
from tests.support.beside import run_what_is_ready

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
HEAD = GET.replace(b"GET", b"HEAD")


class Client(asyncio.Transport):
    """A transport in memory, and the connection above it."""

    def __init__(self, handle: Handler) -> None:
        super().__init__()
        self.server = HTTPServer(handle)
        self.got = b""
        self.is_closed = False
        self.connection: Connection = self.server()
        self.connection.connection_made(self)

    async def send(self, data: bytes) -> bytes:
        """Send some bytes, and return what has come back some turns later."""
        self.connection.get_buffer(-1)[: len(data)] = data
        self.connection.buffer_updated(len(data))
        await run_what_is_ready()
        got, self.got = self.got, b""
        return got

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closed
        self.got += data

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return self.is_closed

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        """What is sent arrives all the same."""

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    abort = close


def _text(response: Response, minor: int = 1, *, keep_alive: bool = True) -> list[str]:
    head = render_head(response, len(response.body), minor, keep_alive=keep_alive)
    assert head.endswith(b"\r\n\r\n")
    return head.decode().removesuffix("\r\n\r\n").split("\r\n")


def test_head() -> None:
    """The status, the headers in their order, the length, and the date of now."""
    response = Response(201, b"made", {"A": "1"})
    response.headers.add("B", "2")
    response.headers.add("B", "3")
    *lines, date = _text(response)
    assert lines == ["HTTP/1.1 201 Created", "A: 1", "B: 2", "B: 3", "Content-Length: 4"]
    when = email.utils.parsedate_to_datetime(date.removeprefix("Date: "))
    assert abs(when.timestamp() - time.time()) < 60
    assert date.removeprefix("Date: ") == email.utils.format_datetime(when, usegmt=True)


@pytest.mark.parametrize(
    ("minor", "keep_alive", "said"),
    [(1, True, None), (1, False, "close"), (0, False, None), (0, True, "keep-alive")],
)
def test_connection_header(minor: int, keep_alive: bool, said: str | None) -> None:
    """The header says what differs from the version's own rule (RFC 9112, 9.3)."""
    lines = _text(Response(), minor, keep_alive=keep_alive)
    assert lines[0] == f"HTTP/1.{minor} 200 OK"
    assert [line for line in lines if "onnection" in line] == (
        [f"Connection: {said}"] if said else []
    )


@pytest.mark.parametrize("status", [204, 304])
def test_no_length_where_there_is_no_body(status: int) -> None:
    """A status that has no body announces none."""
    assert not any("Content-Length" in line for line in _text(Response(status)))


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\n", "\r", "a\r\n\r\nbody"])
def test_no_header_begins_another(value: str) -> None:
    """A line end in a header is an error, never a line of its own."""
    for headers in ({"A": value}, {value: "a"}):
        with pytest.raises(ValueError, match="line end"):
            render_head(Response(headers=headers), 0, 1, keep_alive=True)


async def test_header_that_cannot_be_sent(caplog: pytest.LogCaptureFixture) -> None:
    """It is a failure of the server's, which the client reads and the log explains."""

    async def handle(http: HTTPRequest) -> Response:
        return Response(headers={"Location": "/a\r\nSet-Cookie: b"})

    client = Client(handle)
    got = await client.send(GET)
    assert got.startswith(b"HTTP/1.1 500 ") and b"Connection: close" in got
    assert b"Cookie" not in got
    assert client.is_closed
    assert "line end" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("waits", [False, True])
async def test_handler_that_fails(waits: bool, caplog: pytest.LogCaptureFixture) -> None:
    """An error before the response is a 500; after its head the connection is cut."""

    async def handle(http: HTTPRequest) -> Response:
        if waits:
            await asyncio.sleep(0)
        if http.method == "POST":
            http.begin(Response(length=5))
        raise ZeroDivisionError

    client = Client(handle)
    assert (await client.send(GET)).startswith(b"HTTP/1.1 500 ")
    assert client.is_closed
    client = Client(handle)
    got = await client.send(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200 ") and got.endswith(b"\r\n\r\n")
    assert client.is_closed
    assert len(caplog.records) == 2
    caplog.clear()


async def _stream(http: HTTPRequest) -> Response:
    response = Response(headers={"A": "b"})
    http.begin(response)
    for piece in (b"one", b"", b"three and four"):
        await http.send_piece(piece)
    return response


async def test_stream() -> None:
    """Pieces are chunks in HTTP/1.1, and the connection stays; an empty piece is no end."""
    client = Client(_stream)
    for _ in range(2):
        head, _, body = (await client.send(GET)).partition(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head and b"Content-Length" not in head
        assert body == b"3\r\none\r\ne\r\nthree and four\r\n0\r\n\r\n"
    assert not client.is_closed


async def test_stream_without_chunks() -> None:
    """HTTP/1.0 has none: there the end of the connection ends the body. HEAD has no body."""
    client = Client(_stream)
    head, _, body = (await client.send(HEAD)).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head and body == b""
    keep = OLD.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")
    head, _, body = (await client.send(keep)).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head and b"keep-alive" not in head
    assert body == b"onethree and four"
    assert client.is_closed


async def test_client_that_takes_nothing() -> None:
    """While it does not take a response, no further request of it is handled."""
    handled = []

    async def handle(http: HTTPRequest) -> Response:
        handled.append(http.raw_path)
        return Response(body=b"x" * 100)

    client = Client(handle)
    client.connection.pause_writing()
    await client.send(GET * 5)
    assert len(handled) == 1
    client.connection.resume_writing()
    got = await client.send(GET)
    assert len(handled) == 6 and len(re.findall(b"HTTP/1.1 200", got)) == 5


@pytest.mark.parametrize("more", [-1, 0, 1, 3 * connection._PIECE + 1])
async def test_large_response(more: int) -> None:
    """It is sent in pieces, each once the client takes more; the next request begins after it."""
    body = bytes(range(256)) * 1024 + bytes(max(more, 0))
    body = body[: connection._PIECE + more]

    async def handle(http: HTTPRequest) -> Response:
        return Response(body=body)

    client = Client(handle)
    got = await client.send(GET + HEAD + GET)
    head, _, rest = got.partition(b"\r\n\r\n")
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert rest.startswith(body + b"HTTP/1.1 200") and rest.endswith(body)
    assert rest.count(b"HTTP/1.1 200") == 2
    client.connection.pause_writing()
    got = await client.send(GET)
    assert got.endswith(body[: connection._PIECE]) and len(got) < 2 * connection._PIECE
    assert client.server.responses.used == len(body)
    client.connection.resume_writing()
    assert await client.send(b"") == body[connection._PIECE :]
    assert client.server.responses.used == 0


async def test_client_that_leaves_while_it_is_waited_for() -> None:
    """A handler that waits for a client is woken by its end."""
    ended = []

    async def handle(http: HTTPRequest) -> Response:
        http.begin(Response())
        try:
            await http.send_piece(b"a")
        except ConnectionResetError as error:
            ended.append(error)
            raise
        return Response()

    client = Client(handle)
    client.connection.pause_writing()
    await client.send(GET)
    client.close()
    await client.send(b"")
    assert len(ended) == 1
    assert client.server.open_count == 0


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_cut_while_handling(turns: int) -> None:
    """A handler is cancelled wherever it waits, also in the turn in which it began to."""
    ended = []

    async def handle(http: HTTPRequest) -> Response:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            ended.append("cancelled")
            raise
        return Response()

    client = Client(handle)
    client.connection.get_buffer(-1)[: len(GET)] = GET
    client.connection.buffer_updated(len(GET))
    await run_what_is_ready(turns)
    client.connection.cut()
    assert await client.send(b"") == b""
    assert ended == ["cancelled"]
    assert client.is_closed


async def test_close_waits_for_responses() -> None:
    """A shutdown closes idle connections at once, and others after a response that says so."""
    gate = asyncio.Event()

    async def handle(http: HTTPRequest) -> Response:
        await gate.wait()
        return Response(body=b"late")

    client = Client(handle)
    await client.send(GET)
    closing = asyncio.create_task(client.server.close(30))
    await asyncio.sleep(0)
    assert not client.is_closed
    gate.set()
    await closing
    assert client.got.endswith(b"late") and b"Connection: close" in client.got
    assert client.server.open_count == 0


@pytest.mark.parametrize("waits", [False, True])
async def test_timeouts_before_the_first_wait(*, waits: bool) -> None:
    """A handler that begins a timeout or a group of tasks before it first waits is cut by it."""
    seen: list[str] = []

    async def fail() -> None:
        raise ZeroDivisionError

    async def handle(http: HTTPRequest) -> Response:
        try:
            async with asyncio.timeout(0.01 if waits else 30):
                await (asyncio.Event().wait() if waits else asyncio.sleep(0))
        except TimeoutError:
            seen.append("timeout")
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.Event().wait()
        seen.append("group")
        return Response()

    async def first_a_group(http: HTTPRequest) -> Response:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.Event().wait()
        except ExceptionGroup:
            return await handle(http)
        return Response()

    for handler in (handle, first_a_group):
        client = Client(handler)
        got = await client.send(GET)
        while not got:
            await asyncio.sleep(0.01)
            got = await client.send(b"")
        assert got.startswith(b"HTTP/1.1 200 ")
        assert seen == (["timeout", "group"] if waits else ["group"])
        seen.clear()


async def test_current_task_is_left_as_it_was() -> None:
    """A handler that ends at once leaves no trace in the task that delivered its request."""

    async def handle(http: HTTPRequest) -> Response:
        assert asyncio.current_task() is not before
        return Response()

    before = asyncio.current_task()
    assert await Client(handle).send(GET)
    assert asyncio.current_task() is before
