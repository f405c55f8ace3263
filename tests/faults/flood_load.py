"""Many clients in one event loop, over raw sockets, and what a server pays for them."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from multidict import CIMultiDict

from tests.support.client import Answer
from tests.support.process import PATIENCE, Mayfly, descriptors, peak_bytes, resident_bytes

LONG = "MAYFLY_SOAK_SECONDS" in os.environ
"""Whether this is `make soak`: the whole flood, not a sample of it."""

MIB = 1024 * 1024
T = TypeVar("T")


def many_files() -> None:
    """Let this process have as many sockets as a flood needs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def connected(host: str) -> socket.socket:
    """A connection as a bare socket, with a small buffer, for clients that crawl."""
    name, _, port = host.partition(":")
    made = socket.socket()
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    await asyncio.get_running_loop().sock_connect(made, (name, int(port)))
    return made


class Crawler:
    """A client that crawls, over TLS or not: it receives no more than it asks for."""

    def __init__(self, host: str, trust: ssl.SSLContext | None = None) -> None:
        self._host = host
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        if trust is not None:
            name = host.partition(":")[0]
            self._tls = trust.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    async def __aenter__(self) -> Crawler:
        self._loop = asyncio.get_running_loop()
        self._line = await connected(self._host)
        if self._tls is not None:
            await self._until_read(self._tls.do_handshake)
            await self._flush()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._line.close()

    async def send(self, data: bytes) -> None:
        """Send all of it; waits where the server does not receive it."""
        if self._tls is None:
            await self._loop.sock_sendall(self._line, data)
        else:
            self._tls.write(data)
            await self._flush()

    async def receive(self, most: int = 65536) -> bytes:
        """What comes next, or nothing at the end of the connection; a reset is an end, too."""
        try:
            if self._tls is None:
                return await self._loop.sock_recv(self._line, most)
            return await self._until_read(partial(self._tls.read, most))
        except (ConnectionResetError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    async def ended(self) -> None:
        """Wait until the server ends the connection, whatever it says before."""
        while await self.receive():
            pass

    async def _until_read(self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await self._loop.sock_recv(self._line, 4096):
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()

    async def _flush(self) -> None:
        await self._loop.sock_sendall(self._line, self._outgoing.read())


def request(method: str, target: str, headers: Mapping[str, str] | None = None) -> bytes:
    """The head of a request."""
    found = {"Host": "registry.test", **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in found.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode()


class Line:
    """One connection that is kept open over several requests."""

    def __init__(
        self, host: str, source: str | None = None, trust: ssl.SSLContext | None = None
    ) -> None:
        self._host, _, port = host.partition(":")
        self._port = int(port)
        self._source = source
        self._trust = trust

    async def __aenter__(self) -> Line:
        local = (self._source, 0) if self._source else None
        self.reader, self.writer = await asyncio.open_connection(
            self._host, self._port, local_addr=local, ssl=self._trust
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.writer.transport.abort()

    def begin(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        """Send a request; with a body its length, unless ``headers`` say otherwise."""
        length = {"Content-Length": str(len(body))} if body else {}
        self.writer.write(request(method, target, {**length, **(headers or {})}) + body)

    async def answer(self, method: str = "GET") -> Answer:
        """The whole response to the last request."""
        status, headers = await self.head()
        size = 0 if method == "HEAD" or status == 204 else int(headers.get("content-length", 0))
        return Answer(status, headers, await self.reader.readexactly(size))

    async def head(self) -> tuple[int, CIMultiDict[str]]:
        """A response's status and headers."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.partition(": ") for line in lines[1:] if line)
        headers = CIMultiDict((name, value) for name, _, value in pairs)
        return int(lines[0].split()[1]), headers

    async def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """One request and its response."""
        async with asyncio.timeout(PATIENCE):
            self.begin(method, target, headers, body)
            return await self.answer(method)


@dataclass(frozen=True)
class Times:
    """How long requests took, in seconds."""

    values: tuple[float, ...]

    def quantile(self, part: float) -> float:
        """The value that so many of them do not pass."""
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    def __str__(self) -> str:
        half, most = self.quantile(0.5) * 1000, self.quantile(0.99) * 1000
        return f"n={len(self.values)} p50={half:.1f}ms p99={most:.1f}ms"


async def timed(work: Callable[[], Awaitable[object]], times: int, at_once: int) -> Times:
    """Do something a number of times by each of several clients at once."""
    found: list[float] = []

    async def client() -> None:
        for _ in range(times):
            begun = time.perf_counter()
            await work()
            found.append(time.perf_counter() - begun)

    await asyncio.gather(*(client() for _ in range(at_once)))
    return Times(tuple(found))


class Costs:
    """What a server process takes: memory, descriptors, processor time."""

    def __init__(self, server: Mayfly) -> None:
        self._pid = server.pid
        self._port = int(server.host.rpartition(":")[2])
        self.before = self.resident

    @property
    def resident(self) -> int:
        """Bytes of memory now."""
        return resident_bytes(self._pid)

    @property
    def peak(self) -> int:
        """Most bytes of memory so far."""
        return peak_bytes(self._pid)

    @property
    def growth(self) -> int:
        """Bytes by which the peak is over what the server took at first."""
        return self.peak - self.before

    @property
    def descriptors(self) -> int:
        """Open ones."""
        return descriptors(self._pid)

    @property
    def processor(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def queued(self) -> int:
        """Bytes that wait in the kernel for its clients to take them."""
        return sum(int(row[4].partition(":")[0], 16) for row in self._connections())

    @property
    def established(self) -> int:
        """Connections that neither side has ended."""
        return sum(row[3] == "01" for row in self._connections())

    def _connections(self) -> list[list[str]]:
        """The rows of proc(5)'s net/tcp about the server's end of each connection."""
        port = f":{self._port:04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return [row for row in rows if row[1].endswith(port)]


def tell(text: str) -> None:
    """A figure for people who run the long form (pytest -s shows it)."""
    print(f"\n{text}", flush=True)
