"""Clients that shut down their side: those that read on, and those that are gone.

Both look alike to the server until it sends something. Everything here goes over real sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.api.app import malformed_request
from mayfly.registry.http import receipts
from mayfly.registry.http.body import CONTINUE
from mayfly.registry.http.connection import HTTPServer, State
from mayfly.registry.http.connections import Connections, Limits
from mayfly.registry.http.errors import BodyIncomplete
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.http.send import ContentSender
from mayfly.registry.http.watchdog import Timeouts
from mayfly.registry.pki.context import ServerTLS
from mayfly.storage.interface import Extent
from tests.support.certificates import self_signed
from tests.support.half_closed import KINDS, HalfClosing, Kind
from tests.support.process import resident_bytes, until
from tests.support.wire import TIMEOUT, chunked, message

DATA = bytes(range(256)) * (5 * 4096)  # 5 MiB, more than a socket takes
MIB = 1024 * 1024
WATCHED = Timeouts(header=TIMEOUT, stall=TIMEOUT, vanished=None)


@dataclass
class Handler:
    """Answers with the path and the body; ``/wait`` only once ``gate`` is open.

    Attributes:
        failed: requests that ended with a lost connection.
        unacknowledged: of ``/file``, once that is certain.
    """

    file: Path
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    begun: list[HTTPRequest] = field(default_factory=list)
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    unacknowledged: list[int] = field(default_factory=list)
    sender: ContentSender = field(default_factory=ContentSender)
    size: int = len(DATA)
    piece: bytes = b":\n"

    async def __call__(self, http: HTTPRequest) -> Response:
        self.begun.append(http)
        try:
            return await self._answer(http)
        except ConnectionError:
            self.failed.append(http.raw_path)
            raise

    async def _answer(self, http: HTTPRequest) -> Response:
        path = http.raw_path
        if path.startswith("/wait"):
            await self.gate.wait()
        if path.endswith("/file"):
            content = Extent(self.file, 0, self.size)
            return await self.sender.send(http, content, {}, _Counting(self.unacknowledged))
        if path == "/stream":
            response = Response(headers={"Content-Type": "text/event-stream"})
            http.begin(response)
            for number in range(4):
                await http.send_piece(b"event %d\n" % number)
                await asyncio.sleep(0.02)
            return response
        if path == "/endless":
            http.begin(Response())
            while True:
                await http.send_piece(self.piece)
                await asyncio.sleep(0.01)
        try:
            body = b"" if path == "/unread" else await http.read_body(10**9)
        except BodyIncomplete:
            return Response(400)
        self.seen.append((path, body))
        return Response(body=path.encode())


class _Counting:
    """Notes what of a file was not acknowledged, as coverage does; see `send.SendingObserver`."""

    def __init__(self, unacknowledged: list[int]) -> None:
        self._unacknowledged = unacknowledged

    @contextlib.contextmanager
    def part(self, first: int, count: int, size: int, receipts: Any) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._unacknowledged.append(receipts.unreceived())
            raise
        receipts.on_received(self._unacknowledged.append)

    def count(self, sent: int) -> None:
        pass

    def ahead(self, end: int) -> None:
        pass

    def corrupt(self) -> None:
        raise AssertionError("corrupt")


@dataclass
class Served:
    """A handler behind `Connections`, plain or TLS, and its clients."""

    handler: Handler
    server: HTTPServer
    port: int
    kind: Kind
    trust: ssl.SSLContext

    async def ask(self, data: bytes, receive_buffer: int | None = None) -> HalfClosing:
        """A client that has sent this and shut down its side."""
        client = await self.dial(receive_buffer)
        await asyncio.to_thread(client.send, data, last=True)
        return client

    async def dial(self, receive_buffer: int | None = None) -> HalfClosing:
        return await asyncio.to_thread(
            HalfClosing, self.port, self.kind, self.trust, receive_buffer
        )

    async def answer(self, data: bytes) -> bytes:
        """All that such a client reads until the end of the connection."""
        with await self.ask(data) as client:
            return await asyncio.to_thread(client.read_to_end)

    async def ended(self) -> None:
        """Wait until no connection is left."""
        await until(lambda: self.server.open_count == 0, "no connection is left")


@asynccontextmanager
async def serving(
    tmp_path: Path, kind: Kind, timeouts: Timeouts = WATCHED
) -> AsyncIterator[Served]:
    (tmp_path / "file").write_bytes(DATA)
    handler = Handler(tmp_path / "file")
    pair = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=pair.certificate)
    context = None if kind == "plain" else ServerTLS(pair.certificate, pair.key).context
    server = HTTPServer(handler, refuse=malformed_request)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connections = Connections(server, [listening], context, Limits(1000, timeouts))
        connections.listeners.resume()
        async with asyncio.timeout(2 * TIMEOUT):
            yield Served(handler, server, listening.getsockname()[1], kind, trust)
        handler.gate.set()
        await connections.listeners.close()
        await connections.close(0)


@pytest.fixture(params=KINDS)
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    """A server for each kind of client."""
    async with serving(tmp_path, request.param) as made:
        yield made
        await made.ended()


def _bodies(answers: bytes) -> list[bytes]:
    """The bodies of answers, each with a Content-Length."""
    found = []
    while answers:
        head, _, answers = answers.partition(b"\r\n\r\n")
        length = re.search(rb"\r\nContent-Length: (\d+)", head)
        assert head.startswith(b"HTTP/1.") and length is not None, head
        size = int(length[1])
        found.append(answers[:size])
        answers = answers[size:]
    return found


async def test_handler_that_does_not_wait(served: Served) -> None:
    """The answer comes, and then the end of the connection."""
    answer = await served.answer(message("GET", "/at-once", close=False))
    assert _bodies(answer) == [b"/at-once"]


async def test_handler_that_waits(served: Served) -> None:
    """The answer comes when it is ready, and says that the connection ends."""
    with await served.ask(message("GET", "/wait", close=False)) as client:
        await until(lambda: bool(served.handler.begun), "it is handled")
        await asyncio.sleep(0.1)
        assert not served.handler.begun[0].is_gone()
        served.handler.gate.set()
        answer = await asyncio.to_thread(client.read_to_end)
    assert _bodies(answer) == [b"/wait"]
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_handler_that_waits_for_long(served: Served, version: bytes) -> None:
    """An interim response shows once whether the client is still there; HTTP/1.0 has none."""
    request = message("GET", "/wait").replace(b"HTTP/1.1", b"HTTP/" + version)
    with await served.ask(request) as client:
        await until(lambda: bool(served.handler.begun), "it is handled")
        await asyncio.sleep(1.5)
        served.handler.gate.set()
        answer = await asyncio.to_thread(client.read_to_end)
    assert answer.startswith(CONTINUE) == (version == b"1.1")
    assert _bodies(answer.removeprefix(CONTINUE)) == [b"/wait"]


async def test_left_while_the_handler_waits(served: Served) -> None:
    """A client that has closed both sides is known to be gone by then."""
    client = await served.ask(message("GET", "/wait", close=False))
    await until(lambda: bool(served.handler.begun), "it is handled")
    client.socket.close()
    await until(served.handler.begun[0].is_gone, "it is noticed")


@pytest.mark.parametrize("first", ["/a", "/wait1"])
async def test_pipelined_before_the_end(served: Served, first: str) -> None:
    """Each request that was whole is answered in its turn, also behind one that waits."""
    paths = [first, "/b", "/wait", "/c", "/d", "/wait2", "/e", "/wait3"]
    asked = b"".join(message("GET", path, close=False) for path in paths)
    asked += message("PUT", "/put", b"its body", close=False)
    with await served.ask(asked) as client:
        waiting = 1 + next(n for n, path in enumerate(paths) if path.startswith("/wait"))
        await until(lambda: len(served.handler.begun) == waiting, "one waits")
        await asyncio.sleep(0.05)
        served.handler.gate.set()
        answers = await asyncio.to_thread(client.read_to_end)
    expected = [path.encode() for path in paths] + [b"/put"]
    assert _bodies(answers) == expected
    assert served.handler.seen[-1] == ("/put", b"its body")


async def test_left_while_the_last_of_several_is_handled(served: Served) -> None:
    """A client that leaves is noticed then, as while a request by itself is handled."""
    asked = message("GET", "/a", close=False) + message("GET", "/wait", close=False)
    client = await served.dial()
    await asyncio.to_thread(client.send, asked)
    await until(lambda: len(served.handler.begun) == 2, "the second waits")
    client.reset()
    await until(served.handler.begun[1].is_gone, "it is known to be gone")
    served.handler.gate.set()


async def test_pipelined_behind_a_body(served: Served) -> None:
    """A request that came with the end of a body is answered, although the first one waits."""
    asked = message("PUT", "/wait", b"its body", close=False) + message("GET", "/b", close=False)
    with await served.ask(asked) as client:
        await until(lambda: len(served.handler.begun) == 1, "the first waits")
        await asyncio.sleep(0.05)
        served.handler.gate.set()
        answers = await asyncio.to_thread(client.read_to_end)
    assert _bodies(answers) == [b"/wait", b"/b"]


async def test_head_cut_by_the_end(served: Served) -> None:
    """A head without its end is no request; those before it are answered."""
    for before in (b"", message("GET", "/before", close=False)):
        cut = message("GET", "/cut", close=False)[:-2]
        assert _bodies(await served.answer(before + cut)) == ([b"/before"] if before else [])
    assert [path for path, _ in served.handler.seen] == ["/before"]


async def test_nothing_but_the_end(served: Served) -> None:
    """A connection without a request ends without an answer."""
    assert await served.answer(b"") == b""
    assert served.handler.begun == []


async def test_end_after_an_answer(served: Served) -> None:
    """A connection that is kept for a next request ends with the client's side."""
    with await served.dial() as client:
        for _ in range(2):
            await asyncio.to_thread(client.send, message("GET", "/at-once", close=False))
            assert (await asyncio.to_thread(client.recv)).endswith(b"/at-once")
        await asyncio.to_thread(client.send, b"", last=True)
        assert await asyncio.to_thread(client.read_to_end) == b""


async def test_file(served: Served) -> None:
    """A file is sent whole, and counts as received once the client has taken it."""
    answer = await served.answer(message("GET", "/file", close=False))
    assert _bodies(answer) == [DATA]
    await until(lambda: served.handler.unacknowledged == [0], "all of it counts as received")


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("body", [None, b"cut"])
async def test_file_that_is_taken_late(
    served: Served, monkeypatch: pytest.MonkeyPatch, close: bool, body: bytes | None
) -> None:
    """It counts as received although nothing is left to send long before the client reads."""
    monkeypatch.setattr(receipts, "_AFTER_CLOSE_SECONDS", 0.1)
    served.handler.size = MIB
    headers = {} if body is None else {"Content-Length": "10"}
    asked = message("GET", "/file", body, headers, close=close)
    with await served.ask(asked, receive_buffer=16 * 1024) as client:
        await until(lambda: bool(served.handler.begun), "it is asked for")
        (http,) = served.handler.begun
        await until(lambda: http.connection._state is State.CLOSED, "all of it is sent")
        await asyncio.sleep(0.5)
        answer = await asyncio.to_thread(client.read_to_end)
    assert _bodies(answer) == [DATA[:MIB]]
    await until(lambda: served.handler.unacknowledged == [0], "all of it counts as received")


async def test_end_during_a_file(served: Served) -> None:
    """The end may also come while the file is sent; the request behind it is answered, too."""
    with await served.dial(receive_buffer=16 * 1024) as client:
        asked = message("GET", "/file", close=False) + message("GET", "/next", close=False)
        await asyncio.to_thread(client.send, asked)
        first = await asyncio.to_thread(client.read, 1000)
        await asyncio.to_thread(client.send, b"", last=True)
        rest = await asyncio.to_thread(client.read_to_end)
    assert _bodies(first + rest) == [DATA, b"/next"]
    await until(lambda: served.handler.unacknowledged == [0], "all of it counts as received")


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_gone_during_a_file(served: Served, how: str) -> None:
    """A client that shuts down, reads a part and is gone does not count as having received it."""
    client = await served.ask(message("GET", "/file", close=False), receive_buffer=16 * 1024)
    await asyncio.to_thread(client.read, 1000)
    if how == "close":
        client.socket.close()
    else:
        client.reset()
    await until(lambda: bool(served.handler.unacknowledged), "its end is known")
    assert served.handler.unacknowledged[0] > 0


async def test_gone_before_a_small_file(served: Served) -> None:
    """What fits into the kernel's buffers is sent to a client that is gone, and does not count."""
    served.handler.size = 1000
    client = await served.ask(message("GET", "/wait/file", close=False))
    await until(lambda: bool(served.handler.begun), "it is handled")
    client.socket.close()
    await asyncio.sleep(0.05)
    served.handler.gate.set()
    await until(lambda: bool(served.handler.unacknowledged), "its end is known")
    assert served.handler.unacknowledged[0] > 0


BODIES = {
    "length": ({"Content-Length": "1000"}, b"some"),
    "chunked": ({"Transfer-Encoding": "chunked"}, chunked(b"some")[:-5]),
    "between chunks": ({"Transfer-Encoding": "chunked"}, b"4\r\nsome\r\n"),
    "nothing": ({"Content-Length": "1000"}, b""),
    "expected": ({"Content-Length": "1000", "Expect": "100-continue"}, b""),
}


@pytest.mark.parametrize("case", BODIES)
@pytest.mark.parametrize("path", ["/put", "/wait", "/unread"])
async def test_body_cut_by_the_end(served: Served, case: str, path: str) -> None:
    """It is never taken for whole. The client may read why."""
    headers, body = BODIES[case]
    head = message("PUT", path, None, headers, close=False)
    with await served.ask(head + body) as client:
        await until(lambda: bool(served.handler.begun), "it is handled")
        served.handler.gate.set()
        answer = await asyncio.to_thread(client.read_to_end)
    answer = answer.removeprefix(CONTINUE)
    expected = b"HTTP/1.1 200" if path == "/unread" else b"HTTP/1.1 400"
    assert answer.startswith(expected)
    assert b"\r\nConnection: close\r\n" in answer
    assert [seen for seen, _ in served.handler.seen] == (["/unread"] if path == "/unread" else [])


async def test_stream(served: Served) -> None:
    """A stream continues to its end."""
    answer = await served.answer(message("GET", "/stream", close=False))
    assert answer.endswith(chunked(*(b"event %d\n" % number for number in range(4))))


async def test_gone_during_a_stream(served: Served) -> None:
    """A stream ends with the first piece, or a few, that the client's host refuses."""
    client = await served.ask(message("GET", "/endless", close=False))
    await asyncio.to_thread(client.recv)
    client.socket.close()
    await until(lambda: served.handler.failed == ["/endless"], "the stream has ended")


async def test_reset_while_the_handler_waits(served: Served) -> None:
    """Nothing is read or written then: the watchdog notices, and the handler can know."""
    client = await served.ask(message("GET", "/wait", close=False))
    await until(lambda: bool(served.handler.begun), "it is handled")
    await asyncio.sleep(0.05)
    client.reset()
    await until(served.handler.begun[0].is_gone, "it is noticed")


@pytest.mark.parametrize("kind", KINDS)
async def test_closed_while_the_handler_waits(tmp_path: Path, kind: Kind) -> None:
    """A host forgets a closed connection, and answers the next probe of keepalive with a reset."""
    async with serving(tmp_path, kind, Timeouts(None, None, 2.0)) as served:
        old = message("GET", "/wait").replace(b"HTTP/1.1", b"HTTP/1.0")
        client = await served.ask(old)
        await until(lambda: bool(served.handler.begun), "it is handled")
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)  # seconds, not 60
        client.socket.close()
        await until(served.handler.begun[0].is_gone, "it is noticed")
        await served.ended()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/file", "/endless"])
async def test_neither_reads_nor_leaves(tmp_path: Path, kind: Kind, path: str) -> None:
    """A client that shut down its side and takes nothing is closed like any other."""
    async with serving(tmp_path, kind, Timeouts(None, 1.0, None)) as served:
        with await served.ask(message("GET", path, close=False), receive_buffer=4096):
            served.handler.piece = bytes(65536)
            await until(lambda: served.handler.failed == [path], "it is cut")
            await served.ended()


async def test_bytes_after_close_notify(tmp_path: Path) -> None:
    """They are dropped as they come: nothing is kept of them, and the answer arrives."""
    async with serving(tmp_path, "close_notify") as served:
        client = await served.dial()
        with client:
            await asyncio.to_thread(client.send, message("GET", "/wait", close=False))
            await asyncio.to_thread(client.close_notify)
            await until(lambda: bool(served.handler.begun), "it is handled")
            before = resident_bytes()
            await asyncio.to_thread(client.socket.sendall, bytes(64 * MIB))
            assert resident_bytes() - before < 16 * MIB
            served.handler.gate.set()
            assert _bodies(await asyncio.to_thread(client.read_to_end)) == [b"/wait"]
        await served.ended()
