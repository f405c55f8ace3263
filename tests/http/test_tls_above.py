"""TLS and the protocol above it: how each holds the other up, and where one of them fails."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mayfly.registry.http.tls import TLSAcceptor, TLSTransport
from mayfly.registry.pki.context import ServerTLS
from tests.support.certificates import self_signed
from tests.support.key_updates import key_updates
from tests.support.process import until
from tests.support.secured import NAME, drain
from tests.support.wire import TIMEOUT

DATA = bytes(range(256)) * (5 * 4096)  # 5 MiB
MIB = 1024 * 1024


class Above(asyncio.BufferedProtocol):
    """A protocol that pauses at the first data, and the factory of it.

    Attributes:
        is_greedy: whether it does not pause.
        failure: raised when data comes.
        room: bytes that it receives at once.
    """

    def __init__(self, made: list[Above]) -> None:
        self._made = made
        self.got = bytearray()
        self.pauses = 0
        self.is_greedy = False
        self.failure: Exception | None = None
        self.room = 65536
        self._buffer = bytearray(self.room)
        self.transport: asyncio.Transport

    def __call__(self) -> Above:
        self._made.append(self)
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[: self.room]

    def buffer_updated(self, nbytes: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.got += self._buffer[:nbytes]
        if not self.is_greedy and self.transport.is_reading():
            self.transport.pause_reading()
            self.pauses += 1


def _read(client: ssl.SSLSocket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size and (piece := client.recv(65536)):
        got += piece
    return bytes(got)


@asynccontextmanager
async def _accepted(tmp_path: Path) -> AsyncIterator[tuple[Above, ssl.SSLSocket]]:
    """A protocol behind TLS, and its client, blocking, whose context logs its keys."""
    pair = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=pair.certificate)
    trust.keylog_filename = str(tmp_path / "keys")
    made: list[Above] = []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(TIMEOUT)
    acceptor = TLSAcceptor(ServerTLS(pair.certificate, pair.key).context, Above(made), TIMEOUT)
    accepted = asyncio.ensure_future(acceptor.accept(ours))
    with await asyncio.to_thread(trust.wrap_socket, theirs, server_hostname=NAME) as client:
        await accepted
        (above,) = made
        yield above, client


async def test_too_late_by_a_moment(tmp_path: Path) -> None:
    """A handshake that comes through when it was given up makes no connection above."""
    pair = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=pair.certificate)
    made: list[Above] = []
    context = ServerTLS(pair.certificate, pair.key).context
    transport = TLSTransport(TLSAcceptor(context, Above(made)))
    ours, theirs = socket.socketpair()
    theirs.settimeout(TIMEOUT)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: transport, ours)
    transport.established.cancel()
    with await asyncio.to_thread(trust.wrap_socket, theirs, server_hostname=NAME) as client:
        client.sendall(b"request")
        await until(
            lambda: transport.get_extra_info("ssl_object").version() is not None,
            "the handshake is through",
        )
        transport.abort()
        await asyncio.to_thread(drain, client)
    assert made == []


async def test_reader_that_pauses(tmp_path: Path) -> None:
    """What is handed up after a pause is bounded; all the rest waits, and comes when it is over."""
    async with _accepted(tmp_path) as (above, client):
        sending = asyncio.ensure_future(asyncio.to_thread(client.sendall, DATA))
        for pauses in range(1, 6):
            await until(lambda n=pauses: above.pauses == n, "it paused")
            before = len(above.got)
            assert not above.transport.is_reading()
            assert len(above.got) == before <= pauses * len(above.get_buffer(-1))
            above.transport.resume_reading()
        above.is_greedy = True
        above.transport.resume_reading()
        await sending
        await until(lambda: len(above.got) >= len(DATA), "everything arrived")
    assert above.got == DATA


@pytest.mark.parametrize("resumed", [False, True], ids=["at once", "after a pause"])
async def test_failure_above(
    tmp_path: Path, may_log_errors: pytest.LogCaptureFixture, resumed: bool
) -> None:
    """It ends the connection, also where it was not TCP that handed the data up."""
    async with _accepted(tmp_path) as (above, client):
        if resumed:
            await asyncio.to_thread(client.sendall, DATA[:200_000])
            await until(lambda: above.pauses == 1, "it paused")
        above.failure = ZeroDivisionError()
        if resumed:
            above.transport.resume_reading()
        else:
            client.sendall(b"data")
        assert await asyncio.to_thread(drain, client) == b""
    assert len(may_log_errors.records) == 1


async def test_no_room_above(tmp_path: Path, may_log_errors: pytest.LogCaptureFixture) -> None:
    """A protocol that gives an empty buffer is cut: no data would ever fit."""
    async with _accepted(tmp_path) as (above, client):
        above.room = 0
        client.sendall(b"data")
        assert await asyncio.to_thread(drain, client) == b""
    (record,) = may_log_errors.records
    assert record.exc_info is not None
    assert "no room" in str(record.exc_info[1])


async def test_client_that_asks_for_keys_and_does_not_read(tmp_path: Path) -> None:
    """TLS answers each KeyUpdate; while the client reads nothing, not without end."""
    async with _accepted(tmp_path) as (above, client):
        above.is_greedy = True
        above.transport.write(DATA)
        waiting = above.transport.get_write_buffer_size()
        assert waiting > MIB
        count = 100_000
        flood = await asyncio.to_thread(key_updates, count, client, tmp_path / "keys")
        with socket.socket(fileno=client.fileno()) as raw:
            raw.settimeout(TIMEOUT)
            sending = asyncio.ensure_future(asyncio.to_thread(raw.sendall, flood))
            transport = above.transport
            assert isinstance(transport, TLSTransport)
            await until(lambda: sending.done() or not transport._tcp.is_reading(), "it waits")
            assert above.transport.get_write_buffer_size() < waiting + MIB
            # Once it reads, what it sends is received again, and answered.
            reading = asyncio.ensure_future(asyncio.to_thread(_read, client, len(DATA) + 4))
            await sending
            transport.write(b"last")
            assert await reading == DATA + b"last"
            raw.detach()
