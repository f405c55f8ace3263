"""Budgets of memory that all connections share."""

from __future__ import annotations

import asyncio
import socket

from mayfly.registry.http.connection import HTTPServer
from mayfly.registry.http.memory import MAX_RESPONSES, MemoryBudget
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from tests.support.process import until
from tests.support.wire import TIMEOUT, message


class Kept:
    """A connection, as the budget sees it."""

    def __init__(self, *, serving: bool = False) -> None:
        self.serving = serving
        self.is_cut = False

    def release(self) -> bool:
        self.is_cut = not self.serving
        return self.is_cut


def test_those_kept_for_longest_make_room() -> None:
    """The first that is not being served goes first, and no more than is needed."""
    budget = MemoryBudget(100, Kept.release)
    busy, old, young, new = Kept(serving=True), Kept(), Kept(), Kept()
    for one in (busy, old, young):
        assert budget.record(one, 30)
    assert budget.record(old, 35)  # that it grows does not make it younger
    assert budget.record(new, 30)
    assert [one.is_cut for one in (busy, old, young, new)] == [False, True, False, False]
    assert budget.used == 90


def test_no_room() -> None:
    """No connection that is being served is cut; a head that does not fit is refused."""
    budget = MemoryBudget(100, Kept.release)
    busy, new = Kept(serving=True), Kept()
    assert budget.record(busy, 90)
    assert not budget.record(new, 20)
    assert (busy.is_cut, budget.used) == (False, 90)
    assert budget.record(busy, 0)
    assert budget.record(new, 20)
    assert budget.record(new, 0)
    assert budget.used == 0


async def test_responses_that_nobody_reads() -> None:
    """The one that waits for longest makes room; the others arrive whole."""
    body = bytes(MAX_RESPONSES // 2)

    async def handle(http: HTTPRequest) -> Response:
        return Response(body=body)

    loop, server, clients = asyncio.get_running_loop(), HTTPServer(handle), []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with asyncio.timeout(TIMEOUT):
            for number in range(1, 4):
                client = socket.create_connection(listening.getsockname())
                clients.append(client)
                client.setblocking(False)
                await loop.connect_accepted_socket(server, listening.accept()[0])
                await loop.sock_sendall(client, message("GET", "/"))
                want = min(number, 2) * len(body)
                await until(lambda want=want: server.responses.used == want, "it waits")
            await until(lambda: server.open_count == 2, "the first is cut")
            sizes = [await _read(client) for client in clients]
        for client in clients:
            client.close()
    assert sizes[0] < len(body)
    assert min(sizes[1:]) > len(body)
    assert server.responses.used == 0


async def _read(client: socket.socket) -> int:
    """Read until the end of a connection; the number of bytes."""
    count, loop = 0, asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(client, 1 << 20):
            count += len(data)
    except ConnectionError:
        pass
    return count
