"""A client that is gone before a body is read or sent: no error of the server's."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from mayfly.registry.activity import Activity
from mayfly.registry.http.body import Body
from mayfly.registry.http.connection import HTTPServer
from mayfly.registry.http.errors import BodyIncomplete
from mayfly.registry.http.receipts import Receipts
from mayfly.registry.http.receive import Receiver
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from tests.support.process import until
from tests.support.wire import message


class _Upload:
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: list[bytes], at: int) -> None:
        assert at == len(self.data)
        self.data += b"".join(data)


def _request(received: bytes) -> Any:
    """A request whose connection was lost after some bytes of its body."""
    transport: Any = SimpleNamespace(is_closing=lambda: True)
    body = Body(transport, 100, False, lambda rest: None)
    body.buffer(received)
    body.fail()
    return SimpleNamespace(body=body)


@pytest.mark.parametrize("received", [b"", b"some"])
async def test_gone_before_the_body_is_read(received: bytes) -> None:
    """The body is incomplete; what arrived is kept, for the client to continue from."""
    upload: Any = _Upload()
    with pytest.raises(BodyIncomplete):
        await Receiver().receive(Activity(lambda: 0.0), _request(received), upload, 0)
    assert upload.data == received
    with pytest.raises(BodyIncomplete):
        await _request(received).body.read(100)


async def test_gone_before_content_is_sent() -> None:
    """Content for a connection that is closing is a lost connection, like any other."""
    transport: Any = SimpleNamespace(is_closing=lambda: True)
    with pytest.raises(ConnectionResetError):
        Receipts(transport).begin()


async def test_reset_before_it_is_served() -> None:
    """A client that resets at once is not served: nothing could tell where it came from."""
    asked = list[str | None]()

    async def handle(http: HTTPRequest) -> Response:
        asked.append(http.remote)
        return Response()

    server, loop = HTTPServer(handle), asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for is_reset in (True, False):
            client = socket.create_connection(listening.getsockname())
            client.sendall(message("GET", "/", close=True))
            if is_reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, *bytes(7)]))
                client.close()
            accepted, _ = listening.accept()
            await loop.connect_accepted_socket(server, accepted)
            await until(lambda: server.open_count == 0, "the connection has ended")
    client.close()
    assert asked == ["127.0.0.1"]
