"""What was sent, and what of it the client's host has acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.http import receipts as receipts_module
from mayfly.registry.http import tcp_info
from mayfly.registry.http.connection import Handler, HTTPServer
from mayfly.registry.http.receipts import Receipts
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.http.send import ContentSender
from mayfly.storage.interface import Extent
from tests.support.process import PATIENCE
from tests.support.wire import message

SIZE = 1024 * 1024


@pytest.fixture
async def pair() -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    """A server's transport and its client, which reads when a test does."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * SIZE)
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, accepted)
    with client:
        yield transport, client
        transport.abort()


def sent(transport: asyncio.Transport) -> tuple[Receipts, int]:
    """Receipts for what the kernel takes of a body, and how much that is."""
    receipts = Receipts(transport)
    count = os.write(receipts.begin(), bytes(SIZE))
    return receipts, count


async def test_all_is_read(pair: tuple[asyncio.Transport, socket.socket]) -> None:
    """The receipt comes when the client has read, and not before: the kernel holds the rest."""
    transport, client = pair
    loop = asyncio.get_running_loop()
    received: asyncio.Future[int] = loop.create_future()
    receipts, count = sent(transport)
    receipts.on_received(received.set_result)
    assert not received.done()
    client.setblocking(False)
    left = count
    async with asyncio.timeout(PATIENCE):
        while left:
            left -= len(await loop.sock_recv(client, left))
        assert await received == 0


async def test_bytes_that_the_kernel_has_not_taken(
    pair: tuple[asyncio.Transport, socket.socket],
) -> None:
    """What waits in the transport is not received either."""
    transport, client = pair
    loop = asyncio.get_running_loop()
    received: asyncio.Future[int] = loop.create_future()
    receipts = Receipts(transport)
    receipts.begin()
    size = 16 * SIZE
    transport.write(bytes(size))
    assert transport.get_write_buffer_size()
    receipts.on_received(received.set_result)
    client.setblocking(False)
    left = size
    async with asyncio.timeout(PATIENCE):
        while left:
            assert not received.done()
            left -= len(await loop.sock_recv(client, left))
        assert await received == 0


@contextlib.asynccontextmanager
async def connected(handle: Handler) -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    """A connection of a server with this handler, and its client."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        client.connect(listening.getsockname())
        client.setblocking(False)
        accepted, _ = listening.accept()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(HTTPServer(handle), accepted)
        yield transport, client
        transport.abort()


async def test_the_next_request_is_an_acknowledgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests in a row do not look as if they were made side by side: none waits for a poll."""
    monkeypatch.setattr(receipts_module, "_FIRST_POLL_SECONDS", 10 * PATIENCE)
    (tmp_path / "data").write_bytes(b"content")
    content, sender, events = Extent(tmp_path / "data", 0, 7), ContentSender(), list[str]()

    async def handle(http: HTTPRequest) -> Response:
        events.append("asked")
        return await sender.send(http, content, {}, Noted(events))

    loop = asyncio.get_running_loop()
    async with connected(handle) as (_, client), asyncio.timeout(PATIENCE):
        for _ in range(3):
            await loop.sock_sendall(client, message("GET", "/", close=False))
            found = b""
            while not found.endswith(b"content"):
                found += await loop.sock_recv(client, SIZE)
    assert events[:5] == ["asked", "received", "asked", "received", "asked"]


class Kernel:
    """Stands in for what the kernel tells of a connection.

    Attributes:
        acknowledged: bytes that the client's host has acknowledged; 0 leaves seven unacknowledged.
        looked: is set once receipts have asked for a while.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.acknowledged = self._looks = 0
        self.looked = asyncio.Event()
        monkeypatch.setattr(tcp_info, "_read", self._info)
        monkeypatch.setattr(Receipts, "_outq", lambda _: 0 if self.acknowledged else 7)

    def _info(self, _: socket.socket) -> bytes:
        self._looks += 1
        if self._looks > 12:  # each poll looks several times
            self.looked.set()
        found = bytearray(tcp_info._BYTES_ACKED.pack(self.acknowledged))
        found[0] = 1
        return bytes(found)


async def test_asking_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request waits for the last receipt: unread answers would take a descriptor each."""
    (tmp_path / "data").write_bytes(b"content")
    content, sender, events = Extent(tmp_path / "data", 0, 7), ContentSender(), list[str]()
    kernel = Kernel(monkeypatch)

    async def handle(http: HTTPRequest) -> Response:
        events.append("asked")
        return await sender.send(http, content, {}, Noted(events))

    loop = asyncio.get_running_loop()
    async with connected(handle) as (_, client), asyncio.timeout(PATIENCE):
        asked = message("GET", "/", close=False) * 9 + message("GET", "/", close=True)
        await loop.sock_sendall(client, asked)
        await kernel.looked.wait()
        assert events == ["asked"]
        kernel.acknowledged = 2**40
        found = bytearray()
        while data := await loop.sock_recv(client, SIZE):
            found += data
    assert found.count(b"content") == 10
    assert events == ["asked", "received"] * 10


async def test_acknowledged_before_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing follows a response until it is acknowledged, also where the connection closes then.

    A client that closes with close_notify unread resets the connection: that hides what it has.
    """
    (tmp_path / "data").write_bytes(b"content")
    content, sender, events = Extent(tmp_path / "data", 0, 7), ContentSender(), list[str]()
    kernel = Kernel(monkeypatch)

    async def handle(http: HTTPRequest) -> Response:
        return await sender.send(http, content, {}, Noted(events))

    loop = asyncio.get_running_loop()
    async with connected(handle) as (transport, client), asyncio.timeout(PATIENCE):
        await loop.sock_sendall(client, message("GET", "/", close=True))
        found = b""
        while not found.endswith(b"content"):
            found += await loop.sock_recv(client, SIZE)
        await loop.sock_sendall(client, b"more that nobody asked for")
        await kernel.looked.wait()
        assert not transport.is_closing()
        assert events == []
        kernel.acknowledged = 2**40
        assert await loop.sock_recv(client, SIZE) == b""
    assert events == ["received"]


@pytest.mark.parametrize("size", [1, tcp_info._BYTES_ACKED.size - 1, tcp_info._TCP_INFO.size])
async def test_kernel_that_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Before Linux 4.1, under qemu, in gVisor: the next request and the end come all the same."""
    (tmp_path / "data").write_bytes(b"content")
    content, sender, events = Extent(tmp_path / "data", 0, 7), ContentSender(), list[str]()
    looks = 0

    def outq(_: Receipts) -> int:
        nonlocal looks
        looks += 1
        return 7 if looks % 3 else 0

    async def handle(http: HTTPRequest) -> Response:
        return await sender.send(http, content, {}, Noted(events))

    monkeypatch.setattr(tcp_info, "_read", lambda _: b"\1".ljust(size, b"\0"))
    monkeypatch.setattr(Receipts, "_outq", outq)
    loop = asyncio.get_running_loop()
    async with connected(handle) as (_, client), asyncio.timeout(PATIENCE):
        for close in (False, True):
            await loop.sock_sendall(client, message("GET", "/", close=close))
            found = b""
            while not found.endswith(b"content"):
                found += await loop.sock_recv(client, SIZE)
        assert await loop.sock_recv(client, SIZE) == b""
    assert events == ["received", "received"]


async def test_place_of_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection takes its place until the descriptor of its receipts is closed."""
    (tmp_path / "data").write_bytes(b"content")
    content, sender, places = Extent(tmp_path / "data", 0, 7), ContentSender(), list[int]()

    class Counted(Noted):
        @contextlib.contextmanager
        def part(self, first: int, count: int, size: int, receipts: Any) -> Iterator[None]:
            yield
            receipts.on_received(lambda left: places.append(server.open_count))

    async def handle(http: HTTPRequest) -> Response:
        return await sender.send(http, content, {}, Counted([]))

    monkeypatch.setattr(receipts_module, "_AFTER_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(tcp_info, "acknowledged", lambda _: 0)
    monkeypatch.setattr(Receipts, "_outq", lambda _: 7)
    server = HTTPServer(handle)
    loop = asyncio.get_running_loop()
    ours, client = socket.create_server(("127.0.0.1", 0)), socket.socket()
    with ours, client:
        client.connect(ours.getsockname())
        client.setblocking(False)
        transport, _ = await loop.connect_accepted_socket(server, ours.accept()[0])
        async with asyncio.timeout(PATIENCE):
            await loop.sock_sendall(client, message("GET", "/", close=False))
            found = b""
            while not found.endswith(b"content"):
                found += await loop.sock_recv(client, SIZE)
            transport.abort()
            await server.close(PATIENCE)
    assert places == [1]
    assert server.open_count == 0


class Noted:
    """A `Sending` that notes when everything is acknowledged."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    @contextlib.contextmanager
    def part(self, first: int, count: int, size: int, receipts: Any) -> Iterator[None]:
        yield
        receipts.on_received(lambda left: self._events.append("lost" if left else "received"))

    def count(self, sent: int) -> None:
        pass

    def ahead(self, end: int) -> None:
        pass

    def corrupt(self) -> None:
        raise AssertionError


async def test_client_that_is_gone(pair: tuple[asyncio.Transport, socket.socket]) -> None:
    """Of what a client never took in, the number of bytes is told."""
    transport, client = pair
    received: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    receipts, count = sent(transport)
    receipts.on_received(received.set_result)
    client.close()
    async with asyncio.timeout(PATIENCE):
        assert 0 < await received < count


async def test_end_between_two_looks(
    pair: tuple[asyncio.Transport, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last acknowledgement arrives with the end of the connection, while a poll is made."""
    transport, _ = pair
    received: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    receipts, count = sent(transport)
    looks = 0

    def info(_: socket.socket) -> bytes:
        """An open connection once, then one that has ended, with everything acknowledged."""
        nonlocal looks
        looks += 1
        has_ended = looks > 1
        found = bytearray(tcp_info._BYTES_ACKED.pack(count if has_ended else 0))
        found[0] = tcp_info._TCP_CLOSE if has_ended else 1
        return bytes(found)

    receipts.on_received(received.set_result)
    monkeypatch.setattr(tcp_info, "_read", info)
    async with asyncio.timeout(PATIENCE):
        assert await received == 0
    assert looks > 1


async def test_closed_at_this_end(pair: tuple[asyncio.Transport, socket.socket]) -> None:
    """A connection that we close is closed for the client as well, after the last byte."""
    transport, client = pair
    loop = asyncio.get_running_loop()
    received: asyncio.Future[int] = loop.create_future()
    receipts, count = sent(transport)
    receipts.on_received(received.set_result)
    transport.close()
    client.setblocking(False)
    found = 0
    async with asyncio.timeout(PATIENCE):
        while data := await loop.sock_recv(client, SIZE):
            found += len(data)
        assert found == count
        assert await received == 0


async def test_cut(pair: tuple[asyncio.Transport, socket.socket]) -> None:
    """After a cut it is known at once, also when the connection is closed already."""
    transport, _ = pair
    receipts, count = sent(transport)
    transport.abort()
    await asyncio.sleep(0)
    assert 0 < receipts.unreceived() < count
    assert receipts.unreceived() == 0


async def test_no_tcp() -> None:
    """A connection that is none of TCP's acknowledges nothing, and all of it counts."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
    received: list[int] = []
    receipts = Receipts(transport)
    receipts.begin()
    receipts.on_received(received.append)
    assert received == [0]
    transport.abort()
    theirs.close()
    Receipts(None).on_received(received.append)
    assert received == [0, 0]
