"""Part of a file to a plain socket: in order, whole, and ended with the connection."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.base_protocol import BaseProtocol

from mayfly.registry.http.sendfile import sendfile

CONTENT = os.urandom(8 * 1024 * 1024)
PATIENCE = 30


class _Server(BaseProtocol):
    """Keeps what a client sends."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.came = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.came.set()


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """A file larger than what a socket takes at once."""
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
async def pair() -> AsyncIterator[tuple[_Server, asyncio.Transport, socket.socket]]:
    """A server's protocol and transport, and its client."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    client.setblocking(False)
    transport, server = await loop.connect_accepted_socket(_Server, accepted)
    with client:
        yield server, transport, client
        transport.abort()


async def _receive(client: socket.socket, count: int) -> bytes:
    loop, found = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(PATIENCE):
        while (left := count - len(found)) and (data := await loop.sock_recv(client, left)):
            found += data
    return bytes(found)


async def test_after_what_was_written(
    pair: tuple[_Server, asyncio.Transport, socket.socket], content: Path
) -> None:
    """What was written before and could not go yet is sent before the content."""
    server, transport, client = pair
    head = os.urandom(4 * 1024 * 1024)
    transport.write(head)
    assert transport.get_write_buffer_size()
    with content.open("rb", buffering=0) as file:
        sending = asyncio.create_task(sendfile(server, transport, file, 1, len(CONTENT) - 2))
        found = await _receive(client, len(head) + len(CONTENT) - 2)
        assert await sending == len(CONTENT) - 2
    assert found == head + CONTENT[1:-1]
    transport.write(b"next")
    assert await _receive(client, 4) == b"next"


async def test_nothing_is_received_meanwhile(
    pair: tuple[_Server, asyncio.Transport, socket.socket], content: Path
) -> None:
    """What the client sends waits until the content is out."""
    server, transport, client = pair
    with content.open("rb", buffering=0) as file:
        sending = asyncio.create_task(sendfile(server, transport, file, 0, len(CONTENT)))
        await _receive(client, 1)
        client.send(b"GET")
        await _receive(client, len(CONTENT) // 2)
        assert not server.came.is_set()
        await _receive(client, len(CONTENT) - 1 - len(CONTENT) // 2)
        await sending
    await asyncio.wait_for(server.came.wait(), PATIENCE)


async def test_file_that_ends_early(
    pair: tuple[_Server, asyncio.Transport, socket.socket], content: Path
) -> None:
    """It is told how many bytes there were."""
    server, transport, client = pair
    with content.open("rb", buffering=0) as file:
        sending = asyncio.create_task(sendfile(server, transport, file, 0, len(CONTENT) + 1))
        await _receive(client, len(CONTENT))
        assert await asyncio.wait_for(sending, PATIENCE) == len(CONTENT)


@pytest.mark.parametrize(
    ("seconds_per_mib", "asked"),
    [(1.0, 256 * 1024), (0.005, 2 * 1024 * 1024), (0.0, 16 * 1024 * 1024)],
    ids=["slow", "fair", "in memory"],
)
async def test_others_get_their_turn(
    pair: tuple[_Server, asyncio.Transport, socket.socket],
    content: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds_per_mib: float,
    asked: int,
) -> None:
    """No more is sent at once than the disk reads in a hundredth of a second, nor 16 MiB."""
    server, transport, client = pair
    size = 32 * 1024 * 1024
    now, counts = 0.0, []

    def slowly(target: int, source: int, offset: int, count: int) -> int:
        nonlocal now
        done = os.write(target, bytes(min(count, 65536)))
        counts.append(count)
        now += done / 1024**2 * seconds_per_mib
        return done

    monkeypatch.setattr("mayfly.registry.http.sendfile.os.sendfile", slowly)
    monkeypatch.setattr("mayfly.registry.http.sendfile.time.perf_counter", lambda: now)
    with content.open("rb", buffering=0) as file:
        sending = asyncio.create_task(sendfile(server, transport, file, 0, size))
        await _receive(client, size)
        await sending
    assert counts[0] == 1024 * 1024
    assert abs(counts[1] - asked) <= 2
    assert max(counts[1:]) <= asked + 2


@pytest.mark.parametrize("end", ["client", "server"])
async def test_connection_that_is_lost(
    pair: tuple[_Server, asyncio.Transport, socket.socket], content: Path, end: str
) -> None:
    """Sending ends with the connection, whoever closes it, and no descriptor is left."""
    server, transport, client = pair
    before = len(os.listdir("/proc/self/fd"))
    with content.open("rb", buffering=0) as file:
        sending = asyncio.create_task(sendfile(server, transport, file, 0, len(CONTENT)))
        await _receive(client, 65536)
        if end == "client":
            client.close()
        else:
            transport.abort()
            await _receive(client, len(CONTENT))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(sending, PATIENCE)
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_cancelled(
    pair: tuple[_Server, asyncio.Transport, socket.socket], content: Path
) -> None:
    """Who is cancelled while a client does not read leaves nothing behind with the loop."""
    server, transport, client = pair
    before = len(os.listdir("/proc/self/fd"))
    with content.open("rb", buffering=0) as file:
        sending = asyncio.create_task(sendfile(server, transport, file, 0, len(CONTENT)))
        await _receive(client, 1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert len(os.listdir("/proc/self/fd")) == before
