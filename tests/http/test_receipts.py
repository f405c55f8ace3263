"""What was sent, and what of it the client's host has acknowledged."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest

from mayfly.registry.http.receipts import Receipts

PATIENCE = 30
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


async def test_client_that_is_gone(pair: tuple[asyncio.Transport, socket.socket]) -> None:
    """Of what a client never took in, the number of bytes is told."""
    transport, client = pair
    received: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    receipts, count = sent(transport)
    receipts.on_received(received.set_result)
    client.close()
    async with asyncio.timeout(PATIENCE):
        assert 0 < await received < count


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
