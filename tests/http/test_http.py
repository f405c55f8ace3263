"""HTTP itself: garbage, unusual but valid requests, pipelining, connections that end anyhow."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.images import digest_of
from tests.support.pushing import content, push_blob, push_image
from tests.support.registry import Client
from tests.support.wire import TIMEOUT, Wire, chunked, message, read_answer

REPO = "team/app"
DATA = bytes(range(256)) * 40_000  # 10 MiB: more than sockets buffer

H = b"Host: x\r\n"
GARBAGE = {
    "noise": b"\x00\x01\x02\xff\xfe\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + b"a" * 200,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version 9.9": b"GET /v2/ HTTP/9.9\r\n" + H + b"\r\n",
    "no method": b"/v2/ HTTP/1.1\r\n" + H + b"\r\n",
    "bad method": b"GE T /v2/ HTTP/1.1\r\n" + H + b"\r\n",
    "space in path": b"GET /v2/ x HTTP/1.1\r\n" + H + b"\r\n",
    "raw bytes in path": b"GET /v2/\xff\xfe/tags/list HTTP/1.1\r\n" + H + b"\r\n",
    "raw bytes in query": b"GET /v2/_catalog?last=\xff HTTP/1.1\r\n" + H + b"\r\n",
    "NUL in path": b"GET /v2/\0 HTTP/1.1\r\n" + H + b"\r\n",
    "no host": b"GET /v2/ HTTP/1.1\r\n\r\n",
    "header without colon": b"GET /v2/ HTTP/1.1\r\nHost x\r\n\r\n",
    "header with NUL": b"GET /v2/ HTTP/1.1\r\n" + H + b"A: \0\r\n\r\n",
    "space before colon": b"GET /v2/ HTTP/1.1\r\n" + H + b"A : b\r\n\r\n",
    "long line": b"GET /v2/" + b"a" * 66_000 + b" HTTP/1.1\r\n" + H + b"\r\n",
    "long header": b"GET /v2/ HTTP/1.1\r\n" + H + b"A: " + b"a" * 66_000 + b"\r\n\r\n",
    "long head": b"GET /v2/ HTTP/1.1\r\n" + H + (b"A: " + b"a" * 30_000 + b"\r\n") * 3 + b"\r\n",
    "version 0.9": b"GET /v2/ HTTP/0.9\r\n" + H + b"\r\n",
    "version 2.0": b"GET /v2/ HTTP/2.0\r\n" + H + b"\r\n",
    "no version": b"GET /v2/\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /v2/a/blobs/uploads/ HTTP/1.0\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "many headers": b"GET /v2/ HTTP/1.1\r\n" + H + b"A: b\r\n" * 1000 + b"\r\n",
    "negative length": b"PUT /v2/a/manifests/x HTTP/1.1\r\n" + H + b"Content-Length: -4\r\n\r\n",
    "length that is none": b"PUT /v2/a/manifests/x HTTP/1.1\r\n" + H + b"Content-Length: x\r\n\r\n",
    "two lengths": b"PUT /v2/a/manifests/x HTTP/1.1\r\n"
    + H
    + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "length and chunked": b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\n"
    + H
    + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding not chunked": b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\n"
    + H
    + b"Transfer-Encoding: gzip\r\n\r\nx",
}

STATUS = {"long line": 431, "long header": 431, "long head": 431} | dict.fromkeys(
    ("version 0.9", "version 2.0"), 505
)
"""Statuses of the requests whose answer is not 400."""


@pytest.mark.parametrize("case", GARBAGE)
async def test_garbage(wire: Wire, root: Path, case: str) -> None:
    """What is not HTTP/1.1 or 1.0 is refused with an OCI error; the server stays well."""
    before = content(root)
    reader, writer = await wire.connect()
    writer.write(GARBAGE[case])
    answer = await read_answer(reader)
    assert answer.status == STATUS.get(case, 400)
    assert answer.codes == ["UNSUPPORTED"]
    async with asyncio.timeout(TIMEOUT):
        assert await reader.read() == b""
    writer.close()
    assert content(root) == before
    assert (await wire.ask("GET", "/livez")).status == 200


async def test_long_heads(wire: Wire) -> None:
    """A head may have 80 KiB, and a line of it 64 KiB, in one piece or in many."""
    line = b"A: " + b"a" * (64 * 1024 - 4)
    short = b"\r\nB: " + b"b" * 15_000
    raw = b"GET /livez HTTP/1.1\r\n" + H + line + short + b"\r\nConnection: close\r\n\r\n"
    assert (await wire.send(raw)).status == 200
    reader, writer = await wire.connect()
    for at in range(0, len(raw), 1000):
        writer.write(raw[at : at + 1000])
        await writer.drain()
        await asyncio.sleep(0)
    assert (await read_answer(reader)).status == 200
    writer.close()


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://registry.test/v2/", 200),
        ("http://registry.test:5000/v2/_catalog?n=0", 200),
        ("HTTPS://elsewhere.test/livez", 200),
        ("http://registry.test/nowhere", 404),
        ("http://registry.test/v2/../etc", 404),
        ("http://registry.test", 404),
        ("ftp://registry.test/v2/", 404),
        ("*", 404),
    ],
)
async def test_absolute_form(wire: Wire, target: str, status: int) -> None:
    """A request target may be a whole URL (RFC 9112 section 3.2.2: servers must accept it)."""
    method = "OPTIONS" if target == "*" else "GET"
    assert (await wire.ask(method, target)).status == status


async def test_http_1_0(client: Client, wire: Wire) -> None:
    """An old client is answered in its version and the connection closed."""
    digest = await push_blob(client, REPO, DATA)
    reader, writer = await wire.connect()
    writer.write(f"GET /v2/{REPO}/blobs/{digest} HTTP/1.0\r\n\r\n".encode())
    async with asyncio.timeout(TIMEOUT):
        everything = await reader.read()
    writer.close()
    assert everything.startswith(b"HTTP/1.0 200 ")
    assert everything.endswith(DATA)


async def test_pipelining(client: Client, wire: Wire) -> None:
    """Requests sent at once are answered in order, blobs by sendfile among them."""
    body = await push_image(client, REPO, "v1")
    digest = await push_blob(client, REPO, DATA[:3_000_000])
    small = b"pipelined upload"
    sent = [
        message("GET", "/livez", close=False),
        message("GET", f"/v2/{REPO}/blobs/{digest}", close=False),
        message("HEAD", f"/v2/{REPO}/blobs/{digest}", close=False),
        message("GET", f"/v2/{REPO}/manifests/v1", close=False),
        message("POST", f"/v2/{REPO}/blobs/uploads/?digest={digest_of(small)}", small, close=False),
        message("GET", f"/v2/{REPO}/blobs/{digest_of(small)}", close=False),
        message("GET", "/nowhere", close=False),
        message("GET", f"/v2/{REPO}/blobs/{digest}"),
    ]
    reader, writer = await wire.connect()
    writer.write(b"".join(sent))
    answers = [await read_answer(reader, head=n == 2) for n in range(len(sent))]
    writer.close()
    assert [a.status for a in answers] == [200, 200, 200, 200, 201, 200, 404, 200]
    assert answers[1].body == answers[7].body == DATA[:3_000_000]
    assert answers[3].body == body
    assert answers[5].body == small


async def test_body_that_nobody_wants(client: Client, wire: Wire) -> None:
    """A body on a request without use for one is skipped, and is never taken for a request."""
    hidden = message("DELETE", f"/v2/{REPO}/manifests/v1")
    await push_image(client, REPO, "v1")
    for body, headers in ((hidden, {}), (chunked(hidden), {"Transfer-Encoding": "chunked"})):
        reader, writer = await wire.connect()
        for method, target, status in (
            ("GET", f"/v2/{REPO}/tags/list", 200),
            ("DELETE", f"/v2/{REPO}/blobs/{digest_of(b'none')}", 404),
            ("POST", "/nowhere", 404),
            ("GET", f"/v2/{REPO}/manifests/v1", 200),
        ):
            writer.write(message(method, target, body, headers, close=False))
            assert (await read_answer(reader)).status == status
        writer.close()


async def test_keep_alive_after_refusals(wire: Wire) -> None:
    """A refusal does not cost the connection."""
    reader, writer = await wire.connect()
    for target, status in (("/v2/A/tags/list", 400), ("/nowhere", 404), ("/v2/", 200)) * 3:
        writer.write(message("GET", target, close=False))
        assert (await read_answer(reader)).status == status
    writer.close()


@pytest.mark.parametrize("read", [0, 1, 100_000])
async def test_client_that_leaves_during_a_blob(client: Client, wire: Wire, read: int) -> None:
    """A client that goes away in the middle of a blob disturbs nobody; the log stays clean."""
    digest = await push_blob(client, REPO, DATA)
    for _ in range(10):
        reader, writer = await wire.connect()
        writer.write(message("GET", f"/v2/{REPO}/blobs/{digest}", close=False))
        await writer.drain()
        if read:
            await reader.readexactly(read)
        writer.transport.abort()
    async with client.get(f"/v2/{REPO}/blobs/{digest}") as answer:
        assert await answer.read() == DATA


async def test_client_that_leaves_before_the_answer(client: Client, wire: Wire) -> None:
    """Clients that send a request and vanish, by close and by reset, leave a clean log."""
    digest = await push_blob(client, REPO, DATA)
    await push_image(client, REPO, "v1")
    targets = [
        f"blobs/{digest}",
        "manifests/v1",
        "tags/list",
        "blobs/uploads/x",
        f"blobs/{digest}0",
    ]
    for target in targets * 5:
        data = message("GET", f"/v2/{REPO}/{target}", close=False)
        await wire.begin_and_vanish(data * 3)
        _, writer = await wire.connect()
        writer.write(data * 3)
        writer.close()
        await writer.wait_closed()
    assert (await wire.ask("GET", f"/v2/{REPO}/blobs/{digest}")).body == DATA


async def test_slow_reader(client: Client, wire: Wire) -> None:
    """A client that stops reading holds nobody up, and gets the rest when it continues."""
    digest = await push_blob(client, REPO, DATA)
    reader, writer = await wire.connect()
    writer.write(message("GET", f"/v2/{REPO}/blobs/{digest}"))
    first = await reader.readexactly(1000)
    for _ in range(3):
        assert (await wire.ask("GET", f"/v2/{REPO}/blobs/{digest}")).body == DATA
    async with asyncio.timeout(TIMEOUT):
        rest = await reader.read()
    writer.close()
    assert (first + rest).endswith(DATA)


async def test_many_clients(client: Client, wire: Wire) -> None:
    """Fifty clients at once: all get every byte."""
    digest = await push_blob(client, REPO, DATA[:1_000_000])
    target = f"/v2/{REPO}/blobs/{digest}"
    answers = await asyncio.gather(*(wire.ask("GET", target) for _ in range(50)))
    assert all(a.status == 200 and a.body == DATA[:1_000_000] for a in answers)


async def test_upgrade_is_declined(wire: Wire) -> None:
    """An offer to speak another protocol is passed over, and the connection stays good."""
    reader, writer = await wire.connect()
    for offer in ("h2c", "websocket"):
        headers = {"Connection": "Upgrade", "Upgrade": offer, "HTTP2-Settings": "AAMAAABk"}
        writer.write(message("GET", "/v2/", None, headers, close=False))
        assert (await read_answer(reader)).status == 200
    writer.close()
