"""The registry behind TLS in the test's own event loop, and clients that are no gentlemen."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mayfly.auth.policy import OPEN
from mayfly.registry.access.audit import Audit
from mayfly.registry.access.guard import Guard
from mayfly.registry.access.security import certificate_identity
from mayfly.registry.api.app import App, malformed_request
from mayfly.registry.http.connection import HTTPServer
from mayfly.registry.http.connections import Connections, Limits
from mayfly.registry.http.file_sender import FileSender
from mayfly.registry.http.send import ContentSender
from mayfly.registry.http.watchdog import Timeouts
from mayfly.storage.interface import Store
from tests.support.client import Answer, read
from tests.support.lifecycle_hooks import lifecycle_hooks
from tests.support.process import descriptors, until
from tests.support.settings import settings_with
from tests.support.wire import TIMEOUT, message

NAME = "localhost"


@dataclass(frozen=True)
class Secured:
    """A registry that speaks TLS.

    Attributes:
        trust: for clients.
        server: what answers.
        files: sends its files.
    """

    port: int
    trust: ssl.SSLContext
    server: HTTPServer
    files: FileSender

    def dial(self, receive_buffer: int | None = None) -> socket.socket:
        """A TCP connection, blocking; with a receive buffer of a number of bytes."""
        made = socket.socket()
        if receive_buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.settimeout(TIMEOUT)
        made.connect(("127.0.0.1", self.port))
        return made

    async def connect(
        self, trust: ssl.SSLContext | None = None, receive_buffer: int | None = None
    ) -> ssl.SSLSocket:
        """A TLS connection, blocking: to be used in threads."""
        trust = trust or self.trust
        plain = self.dial(receive_buffer)
        return await asyncio.to_thread(trust.wrap_socket, plain, server_hostname=NAME)

    async def begin(self, target: str, receive_buffer: int | None = None) -> ssl.SSLSocket:
        """A TLS connection on which a GET was sent and nothing of the answer read."""
        made = await self.connect(receive_buffer=receive_buffer)
        await asyncio.to_thread(made.sendall, message("GET", target, close=False))
        return made

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> tuple[int, bytes]:
        """The status and body of an answer on a connection of its own."""
        answer = await self._exchange(method, target, body, headers, trust)
        return answer.status, answer.body

    async def headers(
        self, method: str, target: str, body: bytes | None = None
    ) -> tuple[int, Mapping[str, str]]:
        """The status and headers of an answer on a connection of its own."""
        answer = await self._exchange(method, target, body)
        return answer.status, answer.headers

    async def _exchange(
        self,
        method: str,
        target: str,
        body: bytes | None,
        headers: Mapping[str, str] | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> Answer:
        client = http.client.HTTPSConnection(
            NAME, self.port, timeout=TIMEOUT, context=trust or self.trust
        )

        def exchange() -> Answer:
            client.request(method, target, body, dict(headers or {}))
            return read(client.getresponse())

        try:
            return await asyncio.to_thread(exchange)
        finally:
            client.close()

    async def push(self, repository: str, data: bytes) -> str:
        """Push a blob; where it is pulled from."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        target = f"/v2/{repository}/blobs/uploads/?digest={digest}"
        status, answer = await self.ask("POST", target, data)
        assert status == 201, answer
        return f"/v2/{repository}/blobs/{digest}"

    async def idle(self, before: int) -> None:
        """Wait until every transfer has ended and ``before`` descriptors are open, no more."""
        await until(lambda: descriptors() <= before, f"{descriptors()} descriptors, not {before}")
        assert (self.files.active, self.files.sealed.unsent) == (0, 0)


def drain(client: socket.socket) -> bytes:
    """All that comes until the end of the connection, or its reset."""
    got = bytearray()
    try:
        while piece := client.recv(65536):
            got += piece
    except ConnectionResetError:
        pass
    return bytes(got)


@asynccontextmanager
async def secured(
    store: Store,
    context: ssl.SSLContext,
    trust: ssl.SSLContext,
    handshake: float = TIMEOUT,
    files: FileSender | None = None,
) -> AsyncIterator[Secured]:
    """Serve a store, open to everyone; a handshake may take a number of seconds."""
    line = lifecycle_hooks()
    guard = Guard(lambda: OPEN, None, certificate_identity, Audit())
    files = files or FileSender()
    app = App(store, guard, line, ContentSender(files), settings_with())
    server = HTTPServer(app, refuse=malformed_request)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        timeouts = Timeouts(handshake, None, None)
        connections = Connections(server, [listening], context, Limits(1000, timeouts))
        connections.listeners.resume()
        yield Secured(listening.getsockname()[1], trust, server, files)
        await connections.listeners.close()
        await connections.close(0)


def read_answer(client: socket.socket, piece: int = 65536) -> tuple[int, bytes]:
    """The status and body of one answer, read in pieces of a number of bytes."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        got = client.recv(1)
        assert got, f"the connection ended after {bytes(head)!r}"
        head += got
    lines = head.decode().split("\r\n")
    (length,) = (int(line.split(":")[1]) for line in lines if line.startswith("Content-Length"))
    body = bytearray()
    while len(body) < length:
        got = client.recv(min(piece, length - len(body)))
        if not got:
            raise ConnectionError(f"cut after {len(body)} of {length} bytes")
        body += got
    return int(lines[0].split()[1]), bytes(body)
