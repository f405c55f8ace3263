"""Which request is whose body's, and where one ends: whatever comes, in whatever pieces."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from aiohttp import http_parser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mayfly.registry.http import aiohttp_internals
from mayfly.registry.http.connection import HTTPServer
from mayfly.registry.http.framing import MAX_HEAD
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from tests.fuzz.budget import EXAMPLES
from tests.support.beside import run_what_is_ready
from tests.support.wire import TIMEOUT, chunked, message

RECEIVED = 16 * 1024
H = b"Host: x\r\n"


@pytest.fixture(params=["C", "Python"], autouse=True)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of aiohttp's parsers: machines without a compiled one use the other."""
    chosen = http_parser.HttpRequestParserPy
    if request.param == "C":
        chosen = http_parser.HttpRequestParserC
    monkeypatch.setattr(aiohttp_internals, "HttpRequestParser", chosen)


class Client(asyncio.Transport):
    """A client's end: what it sends is handed over in the pieces given, while it is read."""

    def __init__(self, server: HTTPServer, pieces: list[bytes]) -> None:
        super().__init__()
        self.server = server
        self.protocol = protocol = server()
        self.pieces = pieces
        self.answers = b""
        self.taken = 0
        self.closed = asyncio.Event()
        self._is_paused = self._hangs_up = False
        protocol.connection_made(self)
        asyncio.get_running_loop().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        while self.pieces and not self._is_paused and not self.closed.is_set():
            piece = self.pieces.pop(0)
            room = self.protocol.get_buffer(-1)
            assert len(room), "no room"
            count = min(len(piece), len(room))
            room[:count] = piece[:count]
            if piece[count:]:
                self.pieces.insert(0, piece[count:])
            self.taken += count
            self.protocol.buffer_updated(count)
        if self._hangs_up and not self.pieces:
            self.close()

    def resume_reading(self) -> None:
        self._is_paused = False
        asyncio.get_running_loop().call_soon(self._hand_over)

    def pause_reading(self) -> None:
        self._is_paused = True

    def is_reading(self) -> bool:
        return not self._is_paused

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.answers += data

    def writelines(self, data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.answers += b"".join(data)

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def write_eof(self) -> None:
        """The client hangs up once it has sent all and read the end of the answers."""
        self._hangs_up = True
        asyncio.get_running_loop().call_soon(self._hand_over)

    def is_closing(self) -> bool:
        return self.closed.is_set()

    def close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


class Echo:
    """Answers with the method, the path and the body; ``gate`` holds up ``/wait``."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.seen: list[tuple[str, str, bytes]] = []

    async def __call__(self, http: HTTPRequest) -> Response:
        if http.raw_path == "/wait":
            await self.gate.wait()
        body = b""
        if http.raw_path != "/unread":
            body = await http.read_body(10**9)
        self.seen.append((http.method, http.raw_path, body))
        return Response(body=body)


@asynccontextmanager
async def connected(*pieces: bytes) -> AsyncIterator[tuple[Client, Echo]]:
    """A connection that sends these pieces."""
    echo = Echo()
    connection = Client(HTTPServer(echo), list(pieces))
    try:
        async with asyncio.timeout(TIMEOUT):
            yield connection, echo
    finally:
        connection.close()
        await run_what_is_ready(3)


LAST = message("GET", "/last")
Told = list[tuple[str, str, bytes]]


async def _told(*pieces: bytes) -> Told:
    """What requests a server takes some bytes for; the last one closes the connection."""
    async with connected(*pieces) as (connection, echo):
        await connection.closed.wait()
    return echo.seen


def _request(kind: str, body: bytes) -> tuple[bytes, tuple[str, str, bytes]]:
    match kind:
        case "get":
            return message("GET", "/get", close=False), ("GET", "/get", b"")
        case "sized":
            return message("PUT", "/put", body, close=False), ("PUT", "/put", body)
    headers = {"Transfer-Encoding": "Chunked"}
    raw = message("PATCH", "/x", chunked(body[:7], body[7:]), headers, close=False)
    return raw, ("PATCH", "/x", body)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the parser stays the same
)
@given(
    wanted=st.lists(
        st.tuples(st.sampled_from(["get", "sized", "chunked"]), st.binary(max_size=60)),
        max_size=40,
    ),
    cuts=st.lists(st.integers(0, 6000), max_size=12),
)
def test_any_requests_in_any_pieces(wanted: list[tuple[str, bytes]], cuts: list[int]) -> None:
    """Pipelined requests, with bodies and without, are those that were sent, each with its own."""
    made = [_request(kind, body) for kind, body in wanted]
    raw = b"".join(sent for sent, _ in made) + LAST
    points = sorted({0, len(raw), *(c % len(raw) for c in cuts)})
    pieces = [raw[a:b] for a, b in itertools.pairwise(points)]
    expected = [told for _, told in made] + [("GET", "/last", b"")]
    assert asyncio.run(_told(*pieces)) == expected


async def test_split_at_every_byte() -> None:
    """No place to be cut is special, nor are single bytes."""
    made = [_request(kind, b"a body\r\n\r\n") for kind in ("sized", "get", "chunked", "sized")]
    raw = b"\r\n".join(sent for sent, _ in made) + LAST
    expected = [told for _, told in made] + [("GET", "/last", b"")]
    for at in range(1, len(raw)):
        assert await _told(raw[:at], raw[at:]) == expected, at
    assert await _told(*(raw[i : i + 1] for i in range(len(raw)))) == expected


@pytest.mark.parametrize("count", [15, 16, 17, 31, 32, 33, 100, 5000])
async def test_many_pipelined(count: int) -> None:
    """However many requests come at once, each is answered once and in order."""
    made = [_request("get", b"")] * count
    raw = b"".join(sent for sent, _ in made) + message("PUT", "/put", b"body") + LAST
    assert await _told(raw) == [told for _, told in made] + [("PUT", "/put", b"body")]


async def test_no_more_is_received_than_can_be_used() -> None:
    """Behind a request that takes its time neither requests nor a body pile up."""
    many = message("GET", "/get", close=False) * 14_000
    body = message("PUT", "/put", b"x" * 3_000_000, close=False)
    several = message("GET", "/get", close=False) * 40
    for raw in (many, body, several + body):
        wait = message("GET", "/wait", close=False)
        async with connected(wait + raw, LAST) as (connection, echo):
            await run_what_is_ready(100)
            assert connection.taken <= 2 * RECEIVED
            echo.gate.set()
            await connection.closed.wait()
            assert echo.seen[-1] == ("GET", "/last", b"")
            assert echo.seen.count(("GET", "/get", b"")) == raw.count(b"GET /get")


async def test_no_more_is_received_than_is_answered() -> None:
    """Requests that are answered at once do not pile up either, however fast they come."""
    many = message("GET", "/get", close=False) * 3_000
    async with connected(many, LAST) as (connection, echo):
        while not connection.closed.is_set():
            await asyncio.sleep(0)
            answered = len(echo.seen) * len(message("GET", "/get", close=False))
            assert connection.taken - answered <= 2 * RECEIVED
    assert len(echo.seen) == 3_001


async def test_what_follows_a_body_is_counted() -> None:
    """It is memory of heads from when it has come, not only from when it is read."""
    gate = asyncio.Event()

    async def handle(http: HTTPRequest) -> Response:
        await http.read_body(10**9)
        await gate.wait()
        return Response()

    following = message("GET", "/get", close=False) * 100 + LAST
    headers = {"Transfer-Encoding": "chunked"}
    asked = message("PUT", "/put", chunked(b"body"), headers, close=False)
    server = HTTPServer(handle)
    client = Client(server, [asked[:-1], asked[-1:] + following])
    async with asyncio.timeout(TIMEOUT):
        while client.pieces:  # noqa: ASYNC110 - a turn each
            await asyncio.sleep(0)
        assert server.heads.used == len(following)
        gate.set()
        await client.closed.wait()
    assert client.answers.count(b"HTTP/1.1 200") == 102


@pytest.mark.parametrize("head", [
    b"GET /x HTTP/1.1\r\n" + H + b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"CONNECT x:80 HTTP/1.1\r\n" + H,
])  # fmt: skip
@pytest.mark.parametrize(
    "framing", [b"", b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n"]
)
async def test_no_other_protocol(head: bytes, framing: bytes) -> None:
    """A request to change the protocol is one like any other, a tunnel is refused.

    What follows either is never taken for its body.
    """
    body = {b"": b"", b"Content-Length: 4\r\n": b"body"}.get(framing, chunked(b"body"))
    put = message("PUT", "/put", b"its own", close=False)
    seen = await _told(head + framing + b"\r\n" + body + put + put + LAST)
    methods = [method for method, _, _ in seen]
    assert methods == ([] if head.startswith(b"CONNECT") else ["GET", "PUT", "PUT", "GET"])
    assert all(found == b"its own" for method, _, found in seen if method == "PUT")


async def test_queue_behind_an_upgrade_is_bounded() -> None:
    """What follows a request to upgrade is bounded as behind any other."""
    head = b"GET /wait HTTP/1.1\r\n" + H + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    raw = head + message("GET", "/get", close=False) * 6_000
    raw += message("PUT", "/put", b"x" * 3_000_000, close=False)
    async with connected(raw, LAST) as (connection, echo):
        await run_what_is_ready(100)
        assert connection.taken <= 2 * RECEIVED
        echo.gate.set()
        await connection.closed.wait()
        assert echo.seen[-1] == ("GET", "/last", b"")
        assert echo.seen[-2] == ("PUT", "/put", b"x" * 3_000_000)


LYING = {
    "both": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    "both, other order": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    "two lengths": b"Content-Length: 3\r\nContent-Length: 3\r\n",
    "list of lengths": b"Content-Length: 3, 3\r\n",
    "signed": b"Content-Length: +3\r\n",
    "negative": b"Content-Length: -3\r\n",
    "hexadecimal": b"Content-Length: 0x3\r\n",
    "underscore": b"Content-Length: 1_0\r\n",
    "no length": b"Content-Length:\r\n",
    "enormous": b"Content-Length: 99999999999999999999999\r\n",
    "folded length": b"Content-Length:\r\n 3\r\n",
    "folded on": b"Content-Length: 3\r\n 3\r\n",
    "folded name": b"X: y\r\n Content-Length: 3\r\n",
    "space before colon": b"Content-Length : 3\r\n",
    "tab before colon": b"Transfer-Encoding\t: chunked\r\n",
    "bare CR": b"X: y\rContent-Length: 3\r\n",
    "bare LF": b"X: y\nTransfer-Encoding: chunked\r\n",
    "bare LF after": b"Content-Length: 3\nX: y\r\n",
    "NUL": b"X: \0\r\nContent-Length: 3\r\n",
    "NUL in the value": b"Content-Length: 3\0\r\n",
    "vertical tab": b"Transfer-Encoding: \x0bchunked\r\n",
    "gzip, chunked": b"Transfer-Encoding: gzip, chunked\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n",
    "chunked in two": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "identity": b"Transfer-Encoding: identity\r\n",
    "quoted": b'Transfer-Encoding: "chunked"\r\n',
    "parameter": b"Transfer-Encoding: chunked;q=1\r\n",
}


@pytest.mark.parametrize("case", LYING)
async def test_unclear_announcement(case: str) -> None:
    """A body that two readers might see in two places is refused, and nothing after it is read."""
    raw = b"POST /lie HTTP/1.1\r\n" + LYING[case] + H + b"\r\n0\r\n\r\n" + LAST
    for head in (b"", b"GET /get HTTP/1.1\r\n" + H + b"\r\n"):
        async with connected(head + raw) as (connection, echo):
            await connection.closed.wait()
            assert echo.seen == ([("GET", "/get", b"")] if head else [])
            assert b" 400 Bad Request" in connection.answers


async def test_chunks_in_old_http() -> None:
    """HTTP/1.0 has no chunks: a request that announces some is refused (RFC 9112, 6.1)."""
    for version in (b"1.0", b"2.0", b"1.1 "):
        head = b"POST /lie HTTP/" + version + b"\r\nConnection: keep-alive\r\n" + H
        assert await _told(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + LAST) == []


@pytest.mark.parametrize("head", [
    b"GET /x RTSP/1.0\r\n" + H, b"POST /x HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\nHost x\r\n",
    b"PRI * HTTP/2.0\r\n", b"POST /" + b"x" * 66_000 + b" HTTP/1.1\r\n" + H,
    b"POST /x HTTP/1.1\r\n" + H + b"X: y\r\n z\r\n", b"POST /x HTTP/1.1\n" + H,
])  # fmt: skip
async def test_heads_that_only_aiohttp_refuses(head: bytes) -> None:
    """A body that is clear under a head that is not: refused, and no part of it is a request."""
    inner = message("DELETE", "/smuggled", close=False)
    for raw in (
        head + b"Content-Length: %d\r\n\r\n" % len(inner) + inner,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(inner),
    ):
        for before in (b"", message("PUT", "/put", b"abc", close=False)):
            seen = await _told(before + raw + LAST)
            assert seen == ([("PUT", "/put", b"abc")] if before else [])


async def test_endless_head() -> None:
    """A head without an end is refused when it is longer than any; a first byte may be enough."""
    for raw, status in (
        (b"GET /" + b"a" * MAX_HEAD, b" 431 "),
        (b"\x16\x03\x01", b" 400 "),
        (b" GET", b" 400 "),
    ):
        async with connected(raw) as (connection, _):
            await connection.closed.wait()
            assert status in connection.answers.partition(b"\r\n")[0]


async def test_unread_body_then_a_request() -> None:
    """What has come of an unread body is dropped, not read as a request."""
    inner = message("DELETE", "/smuggled", close=False)
    assert await _told(message("PUT", "/unread", inner, close=False) + LAST) == [
        ("PUT", "/unread", b""),
        ("GET", "/last", b""),
    ]
    half = message("PUT", "/unread", inner, {"Content-Length": "1000"}, close=False)
    assert await _told(half) == [("PUT", "/unread", b"")]


async def test_expectation_is_read_where_it_stands() -> None:
    """Only the field asks for 100 Continue, and only in HTTP/1.1."""
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    field = b"eXpect:100-Continue\t\r\n"
    for head, is_asked in (
        (b"PUT /x HTTP/1.1\r\n" + field, True),
        (b"PUT /x HTTP/1.0\r\nConnection: keep-alive\r\n" + field, False),
        (b"PUT /x?Expect:100-continue HTTP/1.1\r\nX: 100-continue\r\n", False),
    ):
        head += H + b"Content-Length: 4\r\n\r\n"
        async with connected(head) as (connection, echo):
            await run_what_is_ready(10)
            connection.pieces += [b"body", LAST]
            connection.resume_reading()
            await connection.closed.wait()
            assert connection.answers.startswith(go_on) == is_asked
            assert connection.answers.count(go_on) == is_asked
            assert echo.seen[0] == ("PUT", echo.seen[0][1], b"body")


async def test_shutdown_waits_for_no_client_that_lingers() -> None:
    """A client that has its answer and neither sends nor hangs up does not hold up the end."""
    async with connected(b"no HTTP\r\n\r\n") as (connection, _):
        connection.write_eof = lambda: None  # type: ignore[method-assign]
        while b" 400 Bad Request" not in connection.answers:  # noqa: ASYNC110 - a turn each
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not connection.closed.is_set()
        await connection.server.close(100 * TIMEOUT)
        assert connection.closed.is_set()
