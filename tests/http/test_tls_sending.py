"""Content out through TLS: right to the byte, for each reader, and whatever breaks meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import random
import socket
import ssl
import struct
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.http import outlets, tls, tls_channel
from mayfly.registry.http.connection import Connection
from mayfly.registry.http.file_sender import FileSender
from tests.support.images import digest_of
from tests.support.process import PATIENCE, Mayfly, descriptors, resident_bytes, until
from tests.support.secured import Secured, drain, read_answer
from tests.support.wire import message

REPO = "team/app"
MIB = 1024 * 1024
LARGE = random.Random(1).randbytes(9 * 1024 * 1024 + 11)
"""More than sockets, one turn and one piece hold."""

_RESET = struct.pack("ii", 1, 0)
_SMALL_BUFFER = 32 * 1024


def _file(root: Path, data: bytes) -> Path:
    hexadecimal = digest_of(data).removeprefix("sha256:")
    (found,) = root.rglob(f"{hexadecimal}/data")
    return found


async def _fetch(server: Secured, target: str) -> bytes:
    status, body = await server.ask("GET", target)
    assert status == 200
    return body


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 512 * 1024 + 1, len(LARGE)])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_sizes(server: Secured, size: int, version: ssl.TLSVersion) -> None:
    """Around a record, a piece and a turn; the connection is good for the next request."""
    target = await server.push(REPO, LARGE[:size])
    server.trust.minimum_version = server.trust.maximum_version = version
    client = await server.connect()
    with client:
        assert client.version() == version.name.replace("_", ".")
        for _ in range(2):
            client.sendall(message("GET", target, close=False))
            assert await asyncio.to_thread(read_answer, client) == (200, LARGE[:size])


@pytest.mark.parametrize(
    ("first", "last"),
    [(0, 0), (1, 16384), (16383, 65537), (1_000_001, len(LARGE) - 1), (len(LARGE) - 1, None)],
)
async def test_ranges(server: Secured, first: int, last: int | None) -> None:
    """A part of a file begins and ends where it was asked to."""
    target = await server.push(REPO, LARGE)
    wanted = f"bytes={first}-{'' if last is None else last}"
    status, body = await server.ask("GET", target, headers={"Range": wanted})
    assert status == 206
    assert body == LARGE[first : None if last is None else last + 1]


async def test_small_bites(server: Secured) -> None:
    """A client with a small buffer that takes a few bytes at a time gets them all."""
    target = await server.push(REPO, LARGE[:700_001])
    client = await server.begin(target, _SMALL_BUFFER)
    with client:
        answer = await asyncio.to_thread(read_answer, client, 777)
    assert answer == (200, LARGE[:700_001])


async def test_clients_that_stop_hold_no_thread(server: Secured) -> None:
    """More clients than threads stand still; others are served, and they continue later."""
    target = await server.push(REPO, LARGE)
    stopped = [await server.begin(target, _SMALL_BUFFER) for _ in range(3 * server.files.threads)]
    try:
        await until(lambda: server.files.active == len(stopped), "all transfers began")
        assert await _fetch(server, target) == LARGE
        await until(lambda: server.files.running == 0, "no turn runs for clients that stand still")
        for client in stopped:
            assert await asyncio.to_thread(read_answer, client) == (200, LARGE)
    finally:
        for client in stopped:
            client.close()


@pytest.mark.parametrize("files", [FileSender(total_sealed=2 * MIB)])
async def test_what_waits_for_clients_is_bounded(server: Secured) -> None:
    """The more is sealed for clients that stand still, the smaller are the pieces; it is let go."""
    target = await server.push(REPO, LARGE)
    before = descriptors()
    stopped = [await server.begin(target, _SMALL_BUFFER) for _ in range(40)]
    await until(lambda: server.files.active == len(stopped), "all transfers began")
    await until(lambda: server.files.running == 0, "no turn runs for clients that stand still")
    assert 40 * 1024 < server.files.sealed.unsent < 2 * MIB + len(stopped) * 80 * 1024
    for client in stopped:
        client.close()
    await server.idle(before)


async def test_many_at_once(server: Secured) -> None:
    """Several times as many transfers as threads: none gets another's bytes."""
    parts = [LARGE[n * 1001 :][: 1_500_000 + n] for n in range(6 * server.files.threads)]
    targets = [await server.push(REPO, part) for part in parts]
    assert await asyncio.gather(*(_fetch(server, target) for target in targets)) == parts


async def test_pipelined_requests(server: Secured) -> None:
    """What is asked while a file is sent is answered after it, in order."""
    targets = [await server.push(REPO, LARGE[n:]) for n in (0, 4_000_000)]
    client = await server.begin(targets[0])
    with client:
        await until(lambda: server.files.active == 1, "the transfer began")
        for target in (targets[1], "/v2/", targets[0]):
            client.sendall(message("GET", target, close=False))
        answers = [await asyncio.to_thread(read_answer, client) for _ in range(4)]
    assert [body for _, body in answers] == [LARGE, LARGE[4_000_000:], b"{}", LARGE]


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "end"])
async def test_client_gone(server: Secured, reset: bool) -> None:
    """Clients that leave in the middle leave nothing behind."""
    target = await server.push(REPO, LARGE)
    await server.idle(descriptors())
    before = descriptors()
    clients = [await server.begin(target, _SMALL_BUFFER) for _ in range(8)]
    await until(lambda: server.files.active == len(clients), "all transfers began")
    for client in clients:
        client.recv(1000)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        client.close()
    await server.idle(before)


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Iterator[weakref.WeakSet[Any]]:
    """Both halves of the connections made during a test, with the garbage collector off."""
    found: weakref.WeakSet[Any] = weakref.WeakSet()

    def note(kind: type[asyncio.BaseProtocol]) -> None:
        made = kind.connection_made

        def connection_made(self: asyncio.BaseProtocol, transport: asyncio.BaseTransport) -> None:
            found.add(self)
            made(self, transport)

        monkeypatch.setattr(kind, "connection_made", connection_made)

    note(tls.TLSTransport)
    note(Connection)
    gc.collect()
    gc.disable()
    yield found
    gc.enable()


async def _lose_sending(server: Secured, target: str) -> socket.socket:
    client = await server.begin(target, _SMALL_BUFFER)
    await until(lambda: server.files.active == 1, "the transfer began")
    return client


async def _lose_receiving(server: Secured, target: str) -> socket.socket:
    client = await server.connect()
    upload = f"/v2/{REPO}/blobs/uploads/?digest={target.rpartition('/')[2]}"
    head, _, body = message("POST", upload, LARGE).partition(b"\r\n\r\n")
    await asyncio.to_thread(client.sendall, head + b"\r\n\r\n" + body[: 3 * MIB])
    await until(lambda: any(one.awaits_body for one in server.server.open_connections()), "awaited")
    return client


async def _lose_idle(server: Secured, target: str) -> socket.socket:
    client = await server.begin(target)
    await asyncio.to_thread(read_answer, client)
    return client


async def _lose_handshake(server: Secured, target: str) -> socket.socket:
    client = server.dial()
    client.sendall(message("GET", target))
    await asyncio.to_thread(drain, client)
    return client


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "end"])
@pytest.mark.parametrize(
    "begin", [_lose_sending, _lose_receiving, _lose_idle, _lose_handshake], ids=lambda f: f.__name__
)
async def test_lost_connections_need_no_garbage_collector(
    server: Secured,
    alive: weakref.WeakSet[Any],
    begin: Callable[[Secured, str], Awaitable[socket.socket]],
    reset: bool,
) -> None:
    """Reference counting frees a lost connection, with the buffers that OpenSSL keeps for it."""
    target = await server.push(REPO, LARGE)
    client = await begin(server, target)
    assert alive
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    client.close()
    await until(lambda: not alive, "every connection is freed")


async def test_file_shorter_than_promised(server: Secured, root: Path) -> None:
    """The connection is cut, for its length is promised; nothing follows what there was."""
    target = await server.push(REPO, LARGE)
    client = await server.begin(target, _SMALL_BUFFER)
    with client:
        await until(lambda: server.files.active == 1, "the transfer began")
        os.truncate(_file(root, LARGE), len(LARGE) - 1)
        with pytest.raises(OSError, match=r"cut after|EOF occurred"):
            await asyncio.to_thread(read_answer, client)


class Reads:
    """`os.preadv`, held up, failing or both, from the second call on.

    Attributes:
        held: set when a call waits for `go`.
        sources: whether the file was open at the end of each call.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *, wait: bool, error: int | None = None) -> None:
        self.held = threading.Event()
        self.go = threading.Event()
        self.sources: list[bool] = []
        self._wait = wait
        self._error = error
        self._calls = 0
        self._preadv = os.preadv
        patch.setattr(os, "preadv", self)

    def __call__(self, source: int, buffers: Any, offset: int) -> int:
        self._calls += 1
        if self._calls > 1 and self._wait:
            self.held.set()
            assert self.go.wait(PATIENCE)
        with contextlib.suppress(OSError):
            os.fstat(source)
            self.sources.append(True)
        if self._calls > 1 and self._error is not None:
            raise OSError(self._error, os.strerror(self._error))
        return self._preadv(source, buffers, offset)


async def test_file_that_cannot_be_read(
    server: Secured, monkeypatch: pytest.MonkeyPatch, may_log_errors: pytest.LogCaptureFixture
) -> None:
    """A bad disk cuts the connection and is logged, once."""
    target = await server.push(REPO, LARGE)
    before = descriptors()
    Reads(monkeypatch, wait=False, error=errno.EIO)
    with await server.begin(target) as client, pytest.raises(OSError, match=r"cut after|EOF occ"):
        await asyncio.to_thread(read_answer, client)
    await server.idle(before)
    gc.collect()
    (record,) = may_log_errors.records
    assert "Input/output error" in record.getMessage()


async def test_network_that_gives_up(server: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a socket says of a client that is out of reach is no failure of the server's."""
    target = await server.push(REPO, LARGE)
    before = descriptors()

    def writev(descriptor: int, data: Any) -> int:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr(os, "writev", writev)
    with await server.begin(target) as client, pytest.raises(OSError, match=r"cut after|EOF occ"):
        await asyncio.to_thread(read_answer, client)
    monkeypatch.undo()
    await server.idle(before)


@pytest.mark.parametrize("error", [None, errno.EIO])
async def test_cancelled_in_mid_turn(
    server: Secured, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    """However often it is cancelled, a transfer closes nothing under a thread's hands."""
    target = await server.push(REPO, LARGE)
    before = descriptors()
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    reads = Reads(monkeypatch, wait=True, error=error)
    tasks = asyncio.all_tasks()
    with await server.begin(target) as client:
        await until(reads.held.is_set, "the thread reads")
        handlers = asyncio.all_tasks() - tasks
        for _ in range(3):
            for handler in handlers:
                handler.cancel()
            await asyncio.sleep(0.01)
        assert server.files.running == 1
        reads.go.set()
        with pytest.raises(OSError, match=r"cut after|EOF occurred"):
            await asyncio.to_thread(read_answer, client)
    assert len(reads.sources) == reads._calls
    await server.idle(before)
    del handlers, handler
    gc.collect()
    assert unheard == []


async def test_nothing_is_read_meanwhile(server: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a thread seals, OpenSSL's object is its own, whatever HTTP wants of the transport."""
    target = await server.push(REPO, LARGE)
    reads = Reads(monkeypatch, wait=True)
    with await server.begin(target) as client:
        await until(reads.held.is_set, "the thread reads")
        (handler,) = (h for h in server.server.open_connections() if h.serving)
        assert isinstance(handler.transport, tls.TLSTransport)
        assert not handler.transport._tcp.is_reading()
        handler.transport.pause_reading()
        handler.transport.resume_reading()
        assert not handler.transport._tcp.is_reading()
        client.sendall(message("GET", "/v2/", close=False))
        reads.go.set()
        assert await asyncio.to_thread(read_answer, client) == (200, LARGE)
        await until(lambda: server.files.active == 0, "the transfer ended")
        assert await asyncio.to_thread(read_answer, client) == (200, b"{}")


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_connection_ended_in_mid_turn(
    server: Secured, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Nothing is written to whatever has the descriptor after the connection."""
    target = await server.push(REPO, LARGE)
    before = descriptors()
    reads = Reads(monkeypatch, wait=True)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with await server.begin(target) as client:
        await until(reads.held.is_set, "the thread reads")
        (handler,) = (h for h in server.server.open_connections() if h.serving)
        transport = handler.transport
        assert transport is not None
        freed = transport.get_extra_info("socket").fileno()
        getattr(transport, how)()
        await until(lambda: handler.transport is None, "the connection is lost")
        os.dup2(writer, freed)
        reads.go.set()
        with pytest.raises(OSError, match=r"cut after|EOF occurred"):
            await asyncio.to_thread(read_answer, client)
        await until(lambda: server.files.active == 0, "the transfer ended")
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
    for descriptor in (reader, writer, freed):
        os.close(descriptor)
    await server.idle(before)


async def test_store_is_not_needed_for_what_is_on_its_way(server: Secured) -> None:
    """A blob deleted while it is sent arrives whole."""
    target = await server.push(REPO, LARGE)
    client = await server.begin(target, _SMALL_BUFFER)
    with client:
        await until(lambda: server.files.active == 1, "the transfer began")
        assert (await server.ask("DELETE", target))[0] == 202
        assert await asyncio.to_thread(read_answer, client) == (200, LARGE)


def test_memory(start_mayfly: Callable[..., Mayfly]) -> None:
    """Fifty transfers at once, and two hundred connections that each had one, cost little."""
    running = start_mayfly("--tls", "auto")
    trust = ssl.create_default_context(cafile=running.state_dir / "ca.crt")
    host, port = running.host.rsplit(":", 1)
    digest = digest_of(LARGE)

    def connect() -> ssl.SSLSocket:
        plain = socket.create_connection((host, int(port)), timeout=30)
        return trust.wrap_socket(plain, server_hostname=host)

    def pull(client: ssl.SSLSocket) -> None:
        client.sendall(message("GET", f"/v2/{REPO}/blobs/{digest}", close=False))

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(connect())
        target = f"/v2/{REPO}/blobs/uploads/?digest={digest}"
        first.sendall(message("POST", target, LARGE, close=False))
        assert read_answer(first)[0] == 201
        for _ in range(3):
            pull(first)
            assert read_answer(first) == (200, LARGE)
        before = resident_bytes(running.pid)
        clients = [stack.enter_context(connect()) for _ in range(50)]
        for client in clients:
            pull(client)
            client.recv(1)  # it is under way
        assert resident_bytes(running.pid) - before < 40 * MIB
        for client in clients:
            client.close()
        for _ in range(200):
            client = stack.enter_context(connect())
            part = {"Range": "bytes=0-1999999"}
            target = f"/v2/{REPO}/blobs/{digest}"
            client.sendall(message("GET", target, headers=part, close=False))
            assert read_answer(client) == (206, LARGE[:2_000_000])
        # Some keep the memory to seal a whole piece, the others an eighth, and their states.
        # The level is the first: what the fifty had may be given back by now, or used again.
        large = outlets.MAX_LARGE_WRITERS * outlets.MAX_SEALED
        assert resident_bytes(running.pid) - before < large + 200 * 3 * tls_channel.SMALL_WRITE
