"""Bodies over real connections, plain and TLS: of any size, unwanted, broken, many at once."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.client import Answer
from tests.support.process import PATIENCE, Mayfly, resident_bytes
from tests.support.wire import chunked, message, read_answer

BATCH = 1024 * 1024
MIB = 1024 * 1024


@pytest.fixture(scope="module", params=["plain", "tls"])
def server(request: pytest.FixtureRequest, workspace: Path) -> Iterator[Mayfly]:
    """A server without TLS, and one with it."""
    home = workspace / f"connections-{request.param}"
    tls = "auto" if request.param == "tls" else "off"
    with Mayfly(home / "root", home / "state", "--tls", tls, "--auth", "none") as made:
        yield made


@asynccontextmanager
async def _connected(
    server: Mayfly,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = server.host.rpartition(":")
    context = None
    if server.url.startswith("https"):
        context = ssl.create_default_context(cafile=str(server.state_dir / "ca.crt"))
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


def _push(data: bytes, is_chunked: bool) -> bytes:
    target = f"/v2/a/b/blobs/uploads/?digest=sha256:{hashlib.sha256(data).hexdigest()}"
    if not is_chunked:
        return message("POST", target, data, close=False)
    body = chunked(data[:5], data[5:70_000], data[70_000:])
    return message("POST", target, body, {"Transfer-Encoding": "chunked"}, close=False)


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_sizes_around_a_batch(server: Mayfly, is_chunked: bool) -> None:
    """Bodies a little larger than what is received at once, one after another, and a last GET."""
    sizes = [n * BATCH + more for n in (1, 2, 9) for more in (0, 1, 4095, 4096, 4097)]
    async with _connected(server) as (reader, writer):
        for size in sizes:
            writer.write(_push(b"x" * size, is_chunked))
            assert (await read_answer(reader)).status == 201, size
        writer.write(b"".join(_push(b"y" * (BATCH + n), is_chunked) for n in range(5)))
        writer.write(message("GET", "/livez"))
        assert [(await read_answer(reader)).status for _ in range(6)] == [201] * 5 + [200]
        assert await reader.read() == b""


async def _refused(server: Mayfly, raw: bytes, more: int) -> Answer:
    """The answer to a client that sends all it has before it looks for one."""
    async with _connected(server) as (reader, writer):
        writer.write(raw)
        for _ in range(more):
            writer.write(b"x" * MIB)
            await writer.drain()
        answer = await read_answer(reader)
        assert answer.headers.get("Connection", "close") == "close"
        if server.url.startswith("http:"):
            # TLS says no goodbye before its end: many clients would stop sending, and reset.
            assert await reader.read() == b""
        return answer


@pytest.mark.parametrize(("method", "target", "status"), [
    ("PUT", "/nowhere", 404), ("PUT", "/v2/_catalog", 405), ("PUT", "/v2/A/manifests/v1", 400),
    ("PUT", "/v2/a/manifests/v1", 413), ("PATCH", "/v2/a/blobs/uploads/none", 404),
])  # fmt: skip
async def test_unwanted_body(server: Mayfly, method: str, target: str, status: int) -> None:
    """A client whose large body is refused reads why, and not a reset."""
    for headers in ({"Content-Length": str(64 * MIB)}, {"Transfer-Encoding": "chunked"}):
        raw = message(method, target, b"", headers, close=False)
        if "Transfer-Encoding" in headers:
            raw += b"%x\r\n" % (64 * MIB)
        assert (await _refused(server, raw, 32)).status == status


@pytest.mark.parametrize("raw", [
    b"no HTTP at all\r\n\r\n", b"PUT /v2/ HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"PUT /v2/ HTTP/1.1\r\nContent-Length: 9999\r\n\r\n",
    b"PUT /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", b"G" * 70_000,
    message("POST", "/v2/a/blobs/uploads/?digest=sha256:" + "0" * 64, b"5\r\nhello\r\nnonsense\r\n",
            {"Transfer-Encoding": "chunked"}, close=False),
])  # fmt: skip
async def test_broken_request(server: Mayfly, raw: bytes) -> None:
    """So does a client that sends no HTTP, and continues sending."""
    answer = await _refused(server, raw, 32)
    assert answer.status == 400
    assert answer.codes


async def test_small_unwanted_body_keeps_the_connection(server: Mayfly) -> None:
    """What is refused when all of it has come costs no connection."""
    async with _connected(server) as (reader, writer):
        for body in (b"x", b"x" * 5000):
            for headers in ({}, {"Expect": "100-continue"}):
                writer.write(message("PUT", "/nowhere", body, headers, close=False))
                assert (await read_answer(reader)).status == 404
        writer.write(message("GET", "/livez"))
        assert (await read_answer(reader)).status == 200


async def test_announced_bodies_hold_no_memory(server: Mayfly) -> None:
    """200 clients that announce 1 GiB, send 256 KiB and are refused: little is held for each."""
    raw = message("PUT", "/nowhere", b"", {"Content-Length": str(2**30)}, close=False)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(PATIENCE):
        before, done = resident_bytes(server.pid), asyncio.Event()
        answered = asyncio.Semaphore(0)

        async def client() -> None:
            async with _connected(server) as (reader, writer):
                writer.write(raw + b"x" * 256 * 1024)
                assert (await read_answer(reader)).status == 404
                answered.release()
                await done.wait()

        for _ in range(200):
            tasks.create_task(client())
        for _ in range(200):
            await answered.acquire()
        grown = resident_bytes(server.pid) - before
        done.set()
    assert grown < 200 * 256 * 1024
