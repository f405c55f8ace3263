"""HTTP as bytes on a socket, for requests that no client library would send."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from multidict import CIMultiDict

from tests.support.client import Answer

TIMEOUT = 60
"""Seconds after which a test gives up; a guard, since machines may be busy, and no measure."""


def message(
    method: str,
    target: str | bytes,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    close: bool = True,
) -> bytes:
    """A request; with a body it has a Content-Length unless ``headers`` say otherwise."""
    line = target if isinstance(target, bytes) else target.encode()
    found: CIMultiDict[str] = CIMultiDict({"Host": "registry.test", **(headers or {})})
    if close:
        found["Connection"] = "close"
    if body is not None and "Transfer-Encoding" not in found:
        found.setdefault("Content-Length", str(len(body)))
    head = b"".join(f"{k}: {v}\r\n".encode() for k, v in found.items())
    return method.encode() + b" " + line + b" HTTP/1.1\r\n" + head + b"\r\n" + (body or b"")


def chunked(*pieces: bytes) -> bytes:
    """A body in chunked coding."""
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces if p) + b"0\r\n\r\n"


async def read_answer(reader: asyncio.StreamReader, *, head: bool = False) -> Answer:
    """One response off a connection."""
    async with asyncio.timeout(TIMEOUT):
        line = await reader.readline()
        assert line.startswith(b"HTTP/1."), line
        headers: CIMultiDict[str] = CIMultiDict()
        while (field := (await reader.readline()).rstrip(b"\r\n")) != b"":
            name, _, value = field.decode().partition(": ")
            headers.add(name, value)
        status = int(line.split()[1])
        empty = head or status in (204, 304) or status < 200
        body = b"" if empty else await reader.readexactly(int(headers["Content-Length"]))
    return Answer(status, headers, body)


class Wire:
    """Connections to one server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection; it ends with the test, if not before."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.append(writer)
        return reader, writer

    def hang_up(self) -> None:
        """Break every connection that is still open."""
        for writer in self._writers:
            writer.transport.abort()

    async def send(self, data: bytes, *, head: bool = False) -> Answer:
        """Send bytes on a connection of their own; the first response to them."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            return await read_answer(reader, head=head)
        finally:
            writer.close()

    async def ask(
        self,
        method: str,
        target: str | bytes,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request; the response to it."""
        return await self.send(message(method, target, body, headers), head=method == "HEAD")

    async def begin_and_vanish(self, data: bytes) -> None:
        """Send bytes, then break the connection without waiting for anything."""
        _, writer = await self.connect()
        writer.write(data)
        await writer.drain()
        writer.transport.abort()
