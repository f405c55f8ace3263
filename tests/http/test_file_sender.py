"""Files to clients, by event loop and threads: in order, whole, and ended with the connection."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.http.file_sender import FileSender, _Transfer
from mayfly.registry.http.outlets import PlainOutlet
from tests.support.process import descriptors, until
from tests.support.wire import TIMEOUT

CONTENT = os.urandom(8 * 1024 * 1024)


class _Server(asyncio.Protocol):
    """Notes that a client sent something."""

    def __init__(self) -> None:
        self.came = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.came.set()


class Connection:
    """A connection of a server, and its client.

    Attributes:
        descriptor: as the sender needs it.
    """

    def __init__(
        self,
        files: FileSender,
        transport: asyncio.Transport,
        server: _Server,
        client: socket.socket,
    ) -> None:
        self.files = files
        self.transport = transport
        self.server = server
        self.client = client
        self.descriptor = os.dup(transport.get_extra_info("socket").fileno())

    def send(self, file: Any, offset: int, count: int, watcher: Any = None) -> asyncio.Task[None]:
        """Begin to send."""
        sending = self.files.send(self.transport, self.descriptor, file, offset, count, watcher)
        return asyncio.create_task(sending)

    async def receive(self, count: int) -> bytes:
        """Receive a number of bytes, or all until the end."""
        loop, found = asyncio.get_running_loop(), bytearray()
        async with asyncio.timeout(TIMEOUT):
            while (left := count - len(found)) and (
                data := await loop.sock_recv(self.client, left)
            ):
                found += data
        return bytes(found)


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """A file larger than what a socket takes at once."""
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Any]]:
    """Makes connections that end with the test."""
    loop = asyncio.get_running_loop()
    made: list[Connection] = []

    async def connect(files: FileSender) -> Connection:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            accepted, _ = listening.accept()
        client.setblocking(False)
        accepted.setblocking(False)
        transport, server = await loop.connect_accepted_socket(_Server, accepted)
        made.append(Connection(files, transport, server, client))
        return made[-1]

    yield connect
    for one in made:
        one.client.close()
        one.transport.abort()
        os.close(one.descriptor)


@pytest.fixture
async def connection(connect: Callable[..., Any], files: FileSender) -> Connection:
    """One connection."""
    made: Connection = await connect(files)
    return made


async def test_after_what_was_written(connection: Connection, content: Path) -> None:
    """What was written before and could not go yet is sent before the content."""
    head = os.urandom(4 * 1024 * 1024)
    connection.transport.write(head)
    assert connection.transport.get_write_buffer_size()
    with content.open("rb", buffering=0) as file:
        sending = connection.send(file, 1, len(CONTENT) - 2)
        assert await connection.receive(len(head) + len(CONTENT) - 2) == head + CONTENT[1:-1]
        await sending
    connection.transport.write(b"next")
    assert await connection.receive(4) == b"next"


@pytest.mark.parametrize("small", [0, len(CONTENT)])
async def test_small_file_for_a_full_socket(
    connection: Connection, content: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    """What the event loop cannot send at once is left to a thread."""
    monkeypatch.setattr(PlainOutlet, "small", small)
    with content.open("rb", buffering=0) as file:
        sending = connection.send(file, 0, len(CONTENT))
        assert await connection.receive(len(CONTENT)) == CONTENT
        await sending


async def test_small_files_need_no_thread(connection: Connection, content: Path) -> None:
    """A socket with room takes them before the event loop does anything else."""
    before = threading.active_count()
    with content.open("rb", buffering=0) as file:
        sending = connection.send(file, 0, PlainOutlet.small)
        await sending
        assert threading.active_count() == before
    assert await connection.receive(PlainOutlet.small) == CONTENT[: PlainOutlet.small]


async def test_nothing_is_received_meanwhile(connection: Connection, content: Path) -> None:
    """What the client sends waits until the content is out."""
    with content.open("rb", buffering=0) as file:
        sending = connection.send(file, 0, len(CONTENT))
        await connection.receive(1)
        connection.client.send(b"GET")
        await connection.receive(len(CONTENT) // 2)
        assert not connection.server.came.is_set()
        await connection.receive(len(CONTENT) - 1 - len(CONTENT) // 2)
        await sending
    await asyncio.wait_for(connection.server.came.wait(), TIMEOUT)


async def test_file_that_ends_early(connection: Connection, content: Path) -> None:
    """The connection is cut after the bytes that there were."""
    with content.open("rb", buffering=0) as file:
        sending = connection.send(file, 0, len(CONTENT) + 1)
        assert await connection.receive(len(CONTENT)) == CONTENT
        with pytest.raises(ConnectionResetError, match="ended after"):
            await sending
    assert connection.transport.is_closing()


class Watcher:
    """Notes what it is told, and by which threads."""

    def __init__(self) -> None:
        self.counted = 0
        self.end = 0
        self.is_late = False
        self.counting: set[int] = set()

    def count(self, sent: int) -> None:
        self.counted += sent
        self.is_late = self.is_late or self.counted > self.end
        self.counting.add(threading.get_ident())

    def ahead(self, end: int) -> None:
        self.end = end


async def test_watched(connection: Connection, content: Path) -> None:
    """Bytes are counted on the event loop, never before their end was announced."""
    watcher = Watcher()
    with content.open("rb", buffering=0) as file:
        sending = connection.send(file, 0, len(CONTENT), watcher)
        await connection.receive(1)
        await until(lambda: 0 < watcher.counted == watcher.end, "what the socket took is counted")
        assert watcher.counted < len(CONTENT)
        await connection.receive(len(CONTENT) - 1)
        await sending
    assert (watcher.counted, watcher.end, watcher.is_late) == (len(CONTENT), len(CONTENT), False)
    assert watcher.counting == {threading.get_ident()}


@pytest.mark.parametrize("files", [FileSender(threads=1)])
async def test_clients_that_stop_hold_no_thread(
    files: FileSender, connect: Callable[..., Any], content: Path
) -> None:
    """One thread serves a client beside many that stand still, and these when they read again."""
    with content.open("rb", buffering=0) as file:
        stopped = [await connect(files) for _ in range(20)]
        sending = [one.send(file, 0, len(CONTENT)) for one in stopped]
        other = await connect(files)
        served = other.send(file, 0, len(CONTENT))
        assert await other.receive(len(CONTENT)) == CONTENT
        await served
        await until(lambda: files.running == 0, "nothing runs")
        assert files.active == len(stopped)
        for one in stopped:
            assert await one.receive(len(CONTENT)) == CONTENT
        await asyncio.gather(*sending)


async def test_turns(
    connect: Callable[..., Any], content: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that always has room does not keep the only thread from another one."""
    files, order = FileSender(threads=1), []

    def slowly(target: int, source: int, offset: int, count: int) -> int:
        threading.Event().wait(0.02)
        order.append(target)
        return os.write(target, bytes(min(count, 4096)))

    monkeypatch.setattr(os, "sendfile", slowly)
    with content.open("rb", buffering=0) as file:
        pair = [await connect(files) for _ in range(2)]
        await asyncio.gather(*(one.send(file, 0, 80_000) for one in pair))
    # The first turn of each is the event loop's, beside the thread.
    second = [order.index(one, order.index(one) + 1) for one in (p.descriptor for p in pair)]
    together = order[max(second) :][:10]
    assert all(one != other for one, other in pairwise(together)), order


@pytest.mark.parametrize("end", ["client", "server"])
async def test_connection_that_is_lost(connection: Connection, content: Path, end: str) -> None:
    """Sending ends with the connection, at whichever end it is closed."""
    with content.open("rb", buffering=0) as file:
        sending = connection.send(file, 0, len(CONTENT))
        await connection.receive(65536)
        if end == "client":
            connection.client.close()
        else:
            connection.transport.abort()  # and the client reads no more
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(sending, TIMEOUT)
    assert connection.files.active == 0


async def test_cancelled(connection: Connection, content: Path) -> None:
    """A cancelled transfer leaves nothing behind, and its connection is cut."""
    before = descriptors()
    with content.open("rb", buffering=0) as file:
        sending = connection.send(file, 0, len(CONTENT))
        await connection.receive(1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert connection.files.active == 0
    assert connection.transport.is_closing()
    await until(lambda: descriptors() == before - 1, "the connection is closed, and no more")


async def test_no_thread_is_left(connection: Connection, content: Path) -> None:
    """With nothing to send the threads end."""

    def names() -> list[str]:
        return [one.name for one in threading.enumerate()]

    with content.open("rb", buffering=0) as file:
        sending = connection.send(file, 0, len(CONTENT))
        await connection.receive(len(CONTENT))
        await sending
        await until(lambda: "files" not in names(), "the threads ended")
        sending = connection.send(file, 0, len(CONTENT))
        assert await connection.receive(len(CONTENT)) == CONTENT
        await sending


async def test_no_thread_can_be_started(
    connection: Connection, content: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the host allows no thread a transfer fails; the next is sent by a thread again."""

    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with content.open("rb") as file:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            with pytest.raises(RuntimeError):
                await connection.files._send(
                    connection.transport, connection.descriptor, _transfer(connection, file)
                )
        assert connection.files.active == 0
        sending = connection.send(file, 0, len(CONTENT))
        assert await connection.receive(len(CONTENT)) == CONTENT
        await sending


def _transfer(connection: Connection, file: Any) -> _Transfer:
    outlet = PlainOutlet(connection.descriptor, file.fileno())
    return _Transfer(outlet, 0, len(CONTENT), None, connection.transport.is_closing)
