"""Requests as they go over the wire: exact bytes out, and the answer as the server wrote it.

A client library would tidy a path, a header or a Host before the server could refuse it.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.client import TIMEOUT, Answer, Header, read


@dataclass(frozen=True)
class Server:
    """Where to send requests; ``ca`` of a server that speaks TLS."""

    host: str
    ca: str | None = None

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"{'http' if self.ca is None else 'https'}://{self.host}"

    def context(self, client: Sequence[str] = ()) -> ssl.SSLContext | None:
        """TLS that trusts the server's CA alone; ``client`` is a certificate and its key."""
        if self.ca is None:
            return None
        made = ssl.create_default_context(cafile=self.ca)
        if client:
            made.load_cert_chain(*client)
        return made

    async def connect(
        self, *, source: str | None = None, client: Sequence[str] = ()
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection, from another loopback address if ``source`` is given."""
        address, _, port = self.host.rpartition(":")
        local = None if source is None else (source, 0)
        return await asyncio.open_connection(
            address, int(port), ssl=self.context(client), local_addr=local
        )

    async def ask(
        self,
        method: str,
        target: str,
        headers: Iterable[Header] = (),
        body: bytes = b"",
        *,
        source: str | None = None,
        client: Sequence[str] = (),
    ) -> Answer:
        """Send one request on a connection of its own."""
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await self.connect(source=source, client=client)
            try:
                writer.write(self.render(method, target, headers, body))
                await writer.drain()
                return parse(await reader.read(), method)
            finally:
                writer.close()

    def render(self, method: str, target: str, headers: Iterable[Header], body: bytes) -> bytes:
        """A request's bytes. A Host among the headers takes the place of the true one."""
        sent = list(headers)
        if not any(name.lower() == "host" for name, _ in sent):
            sent.insert(0, ("Host", self.host))
        sent.append(("Connection", "close"))
        if body:
            sent.append(("Content-Length", str(len(body))))
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent)]
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def ask(server: Server, method: str, target: str, *args: Any, **kwargs: Any) -> Answer:
    """`Server.ask` for a test without an event loop."""
    return asyncio.run(server.ask(method, target, *args, **kwargs))


def parse(data: bytes, method: str = "GET") -> Answer:
    """Read an answer."""
    assert data, "the server closed the connection without an answer"
    response = http.client.HTTPResponse(_Received(data), method=method)  # type: ignore[arg-type]
    response.begin()
    return read(response)


class _Received:
    """Bytes, in the clothes of the socket that `http.client` wants."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)
