"""The order in which accepted connections are set up."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from mayfly.registry.http.accept_queue import MAX_LAST, AcceptQueue, has_left, is_pipelining

ASK = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
UPLOAD = b"PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"

Connect = Callable[[bytes], tuple[socket.socket, socket.socket]]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes a client's socket that has sent some bytes, and the server's."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=16))

        def make(data: bytes = b"") -> tuple[socket.socket, socket.socket]:
            client = stack.enter_context(socket.create_connection(listening.getsockname()))
            server = stack.enter_context(listening.accept()[0])
            client.sendall(data)
            if data:
                server.recv(1, socket.MSG_PEEK)  # until it has arrived
            server.setblocking(False)
            return client, server

        yield make


def test_each_address_has_its_turn(connect: Connect) -> None:
    """A late client with an address of its own waits for one of each other address."""
    queue = AcceptQueue()
    many = [connect(b"")[1] for _ in range(5)]
    for one in many:
        queue.put("10.0.0.1", one)
    late = connect(b"")[1]
    queue.put("10.0.0.2", late)
    order = [queue.take() for _ in range(len(queue))]
    assert order == [many[0], late, *many[1:]]
    assert not queue


def test_client_that_left_is_dropped(connect: Connect) -> None:
    """A client that closed its end costs no set-up; one that waits stays."""
    queue = AcceptQueue()
    client, gone = connect(ASK)
    client.close()
    assert has_left(gone)
    _, waits = connect(ASK)
    queue.put("10.0.0.1", gone)
    queue.put("10.0.0.1", waits)
    queue.rank(8)
    assert len(queue) == 1
    assert queue.take() is waits
    assert gone.fileno() < 0


def test_client_that_asks_ahead_is_last(connect: Connect) -> None:
    """Requests behind the first one cost a client its place, and only the newest are kept."""
    queue = AcceptQueue()
    _, ahead = connect(ASK * 2)
    _, waits = connect(ASK)
    queue.put("10.0.0.1", ahead)
    queue.put("10.0.0.1", waits)
    queue.rank(8)
    assert [queue.take(), queue.take()] == [waits, ahead]


def test_last_are_bounded(connect: Connect) -> None:
    """The oldest of those that ask ahead is closed when there are too many."""
    queue = AcceptQueue()
    made = [connect(ASK * 2)[1] for _ in range(MAX_LAST + 1)]
    for one in made:
        queue.put("10.0.0.1", one)
    queue.rank(len(made))
    assert len(queue) == MAX_LAST
    assert made[0].fileno() < 0
    assert made[1].fileno() >= 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", False),
        (ASK, False),
        (ASK[:-2], False),
        (ASK + b"G", True),
        (UPLOAD + b"123456789", False),
        (b"\x16\x03\x01\x02\x00", False),
    ],
)
def test_asks_ahead(connect: Connect, data: bytes, expected: bool) -> None:
    """Only bytes behind a complete head of a request without a body are ahead of an answer."""
    _client, server = connect(data)
    assert is_pipelining(server) is expected
