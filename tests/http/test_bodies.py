"""Bodies as they come off a bad network: cut, stalled, doubled, encoded, asked for.

A session survives everything that happens to a connection: what arrived counts, and the client
continues where GET says it stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.client import Answer
from tests.support.images import digest_of, image_body
from tests.support.process import until
from tests.support.pushing import CONFIG, begin, content, push_blob, refused
from tests.support.registry import Client
from tests.support.wire import Wire, chunked, message, read_answer

REPO = "team/app"
DATA = bytes(range(256)) * 8192  # 2 MiB: more than the server gathers before it writes


async def _offset(client: Client, location: str) -> int:
    async with client.get(location) as answer:
        assert answer.status == 204
        last = int(answer.headers["Range"].partition("-")[2])
    return last + 1 if last else 0


async def _begin_patch(
    client: Client, wire: Wire, location: str, length: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Announce a PATCH of a number of bytes, send `DATA` of it, and wait until some has arrived."""
    reader, writer = await wire.connect()
    writer.write(message("PATCH", location, b"", {"Content-Length": str(length)}))
    writer.write(DATA)

    async def has_some() -> bool:
        return await _offset(client, location) > 0

    await until(has_some)
    return reader, writer


def _is_at(client: Client, location: str, offset: int) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        return await _offset(client, location) == offset

    return probe


async def _go_on(client: Client, location: str, data: bytes) -> None:
    """Do what a client does after a cut: ask, continue from there, close."""
    offset = await _offset(client, location)
    headers = {"Content-Range": f"{offset}-{len(data) - 1}"}
    async with client.patch(location, data=data[offset:], headers=headers) as answer:
        assert answer.status == 202, await answer.text()
    async with client.put(f"{location}?digest={digest_of(data)}") as answer:
        assert answer.status == 201, await answer.text()
    async with client.get(f"/v2/{REPO}/blobs/{digest_of(data)}") as answer:
        assert await answer.read() == data


@pytest.mark.parametrize("arrived", [2, 70_000, 300_000])
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("streamed", [False, True], ids=["length", "chunked"])
async def test_cut_body(
    client: Client, wire: Wire, method: str, arrived: int, streamed: bool
) -> None:
    """What arrived before the cut counts, to the byte; the upload continues from there."""
    data = DATA[:400_000]
    location = await begin(client, REPO)
    target = f"{location}?digest={digest_of(data)}"
    if streamed:
        headers = {"Transfer-Encoding": "chunked"}
        body = chunked(data[:arrived]).removesuffix(b"0\r\n\r\n")
    else:
        headers = {"Content-Length": str(len(data))}
        body = data[:arrived]
    _, writer = await wire.connect()
    writer.write(message(method, target, body, headers))
    writer.close()
    await writer.wait_closed()
    await until(_is_at(client, location, arrived))
    await _go_on(client, location, data)


async def test_reset_connection(client: Client, wire: Wire) -> None:
    """A reset in the middle of a body is no worse than an end."""
    location = await begin(client, REPO)
    head = message("PATCH", location, b"", {"Content-Length": str(len(DATA))})
    await wire.begin_and_vanish(head + DATA[: len(DATA) // 2])
    await until(_stands_still(client, location))
    await _go_on(client, location, DATA)


def _stands_still(client: Client, location: str) -> Callable[[], Awaitable[bool]]:
    """Whether a session has bytes and no request is at work on it any more."""
    seen: list[int] = []

    async def probe() -> bool:
        seen.append(await _offset(client, location))
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    return probe


async def test_cut_monolithic_post_leaves_nothing(client: Client, wire: Wire, root: Path) -> None:
    """The client never learned of a session, so none may be left."""
    before = content(root)
    target = f"/v2/{REPO}/blobs/uploads/?digest={digest_of(DATA)}"
    head = message("POST", target, b"", {"Content-Length": str(len(DATA))})
    await wire.begin_and_vanish(head + DATA[:1_000_000])

    async def nothing() -> bool:
        with contextlib.suppress(FileNotFoundError):  # removed while it is looked at
            return content(root) == before
        return False

    await until(nothing)
    await push_blob(client, REPO, DATA)


async def test_cut_manifest_leaves_nothing(client: Client, wire: Wire, root: Path) -> None:
    """Half a manifest is none."""
    await push_blob(client, REPO, CONFIG)
    before = content(root)
    head = message("PUT", f"/v2/{REPO}/manifests/v1", b"", {"Content-Length": "1000"})
    await wire.begin_and_vanish(head + image_body()[:50])
    async with client.get(f"/v2/{REPO}/manifests/v1") as answer:
        await refused(answer, 404, "MANIFEST_UNKNOWN")
    assert content(root) == before


async def test_broken_chunk(client: Client, wire: Wire) -> None:
    """A chunk whose length is nonsense ends the request; the session continues."""
    location = await begin(client, REPO)
    body = b"5\r\nfirst\r\nzz\r\nxxxx\r\n"
    answer = await wire.ask("PATCH", location, body, {"Transfer-Encoding": "chunked"})
    assert answer.status == 400
    assert answer.codes
    await _go_on(client, location, b"first and last")


@pytest.mark.parametrize("method", ["PATCH", "PUT", "POST"])
async def test_expect_continue(client: Client, wire: Wire, method: str) -> None:
    """A client that waits to be asked is asked, once, and then answered."""
    target = f"/v2/{REPO}/blobs/uploads/"
    if method != "POST":
        target = await begin(client, REPO)
    target += f"?digest={digest_of(b'body')}"
    reader, writer = await wire.connect()
    headers = {"Expect": "100-continue", "Content-Length": "4"}
    writer.write(message(method, target, b"", headers, close=False))
    asked = await read_answer(reader)
    assert (asked.status, len(asked.headers)) == (100, 0)
    writer.write(b"body")
    final = await read_answer(reader)
    assert final.status == (202 if method == "PATCH" else 201)
    writer.write(message("GET", "/livez"))
    assert (await read_answer(reader)).status == 200
    writer.close()


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (f"/v2/{REPO}/blobs/uploads/?digest=nonsense", 400),
        (f"/v2/{REPO}/blobs/uploads/../x", 404),
        ("/v2/Bad/blobs/uploads/", 400),
        ("/nowhere", 404),
    ],
)
async def test_expect_continue_of_what_is_refused(wire: Wire, target: str, status: int) -> None:
    """A request that is refused by its head is not asked for its body."""
    reader, writer = await wire.connect()
    headers = {"Expect": "100-continue", "Content-Length": str(10**12)}
    writer.write(message("POST", target, b"", headers))
    assert (await read_answer(reader)).status == status
    writer.close()


async def test_manifest_too_large_is_refused_by_its_head(client: Client, wire: Wire) -> None:
    """5 MiB announced: 413 before a byte of it is sent."""
    await push_blob(client, REPO, CONFIG)
    reader, writer = await wire.connect()
    headers = {"Content-Length": str(5 * 1024 * 1024), "Expect": "100-continue"}
    writer.write(message("PUT", f"/v2/{REPO}/manifests/v1", b"", headers))
    answer = await read_answer(reader)
    assert (answer.status, answer.codes) == (413, ["MANIFEST_INVALID"])
    writer.close()


async def test_content_encoding_is_left_alone(client: Client, wire: Wire) -> None:
    """A body that says it is gzip is stored as it came, and never sent encoded."""
    packed = gzip.compress(b"layer" * 100, mtime=0)
    digest = digest_of(packed)
    target = f"/v2/{REPO}/blobs/uploads/?digest={digest}"
    answer = await wire.ask("POST", target, packed, {"Content-Encoding": "gzip"})
    assert answer.status == 201
    found = await wire.ask("GET", f"/v2/{REPO}/blobs/{digest}", None, {"Accept-Encoding": "gzip"})
    assert found.body == packed
    assert "Content-Encoding" not in found.headers
    location = await begin(client, REPO)
    for body in (packed, packed[:10], b"not gzip at all"):
        patched = await wire.ask("PATCH", location, body, {"Content-Encoding": "gzip"})
        assert patched.status == 202
    assert await _offset(client, location) == len(packed) + 10 + 15


async def test_two_patches_at_once(client: Client, wire: Wire) -> None:
    """Of two that begin at one offset one wins; the other is told where the session stands."""
    location = await begin(client, REPO)
    rivals = [bytes([n]) * len(DATA) for n in (1, 2)]
    head = {"Content-Range": f"0-{len(DATA) - 1}"}
    answers = await asyncio.gather(*(wire.ask("PATCH", location, r, head) for r in rivals))
    assert sorted(a.status for a in answers) == [202, 416]
    winner = rivals[[a.status for a in answers].index(202)]
    (loser,) = (a for a in answers if a.status == 416)
    assert loser.codes == ["RANGE_INVALID"]
    async with client.put(f"{location}?digest={digest_of(winner)}") as answer:
        assert answer.status == 201, await answer.text()


async def test_stalled_patch_does_not_hold_the_session(client: Client, wire: Wire) -> None:
    """A connection that hangs in the middle of a body does not keep others from continuing."""
    location = await begin(client, REPO)
    reader, writer = await _begin_patch(client, wire, location, 2 * len(DATA))
    await until(_stands_still(client, location))
    await _go_on(client, location, DATA)
    writer.write(DATA)
    late = await read_answer(reader)
    assert late.status in (404, 416)
    assert late.codes in (["BLOB_UPLOAD_UNKNOWN"], ["RANGE_INVALID"])
    writer.close()


async def test_delete_during_patch(client: Client, wire: Wire, root: Path) -> None:
    """A session deleted under a running PATCH ends that PATCH with 404 and leaves nothing."""
    before = content(root)
    location = await begin(client, REPO)
    reader, writer = await _begin_patch(client, wire, location, 2 * len(DATA))
    async with client.delete(location) as answer:
        assert answer.status == 204
    writer.write(DATA)
    ended: Answer = await read_answer(reader)
    assert (ended.status, ended.codes) == (404, ["BLOB_UPLOAD_UNKNOWN"])
    writer.close()
    assert content(root) == before


async def test_commit_during_patch(client: Client, wire: Wire) -> None:
    """A PUT that closes a session under a running PATCH publishes what it verified, or nothing."""
    location = await begin(client, REPO)
    _, writer = await _begin_patch(client, wire, location, 10 * len(DATA))
    await until(_stands_still(client, location))
    offset = await _offset(client, location)
    async with client.put(f"{location}?digest={digest_of(DATA[:offset])}") as answer:
        assert answer.status == 201
    writer.write(DATA)
    async with client.get(f"/v2/{REPO}/blobs/{digest_of(DATA[:offset])}") as answer:
        assert await answer.read() == DATA[:offset]
    writer.transport.abort()
