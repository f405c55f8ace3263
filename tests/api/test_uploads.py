"""Uploads over a real socket: sessions, chunks, streams, monolithic pushes, and every refusal."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest

from tests.storage.contract_uploads import NO_UPLOAD
from tests.support.images import digest_of
from tests.support.pushing import begin, content, push_blob, refused
from tests.support.registry import Client

REPO = "team/app"
DATA = bytes(range(256)) * 4096 + b"an odd end"


async def _is_there(client: Client, data: bytes, algorithm: str = "sha256") -> bool:
    async with client.get(f"/v2/{REPO}/blobs/{digest_of(data, algorithm)}") as answer:
        return answer.status == 200 and await answer.read() == data


async def test_begin(client: Client) -> None:
    """202 with a Location, an id, and the range of nothing."""
    async with client.post(f"/v2/{REPO}/blobs/uploads/") as answer:
        assert (answer.status, await answer.read()) == (202, b"")
        identity = answer.headers["Docker-Upload-UUID"]
        assert str(UUID(identity)) == identity
        assert answer.headers["Location"] == f"/v2/{REPO}/blobs/uploads/{identity}"
        assert answer.headers["Range"] == "0-0"
        assert answer.headers["Content-Length"] == "0"


@pytest.mark.parametrize("free", [True, False])
async def test_log_tells_a_full_disk_from_a_large_body(
    free: bool,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    may_log_errors: pytest.LogCaptureFixture,
) -> None:
    """A length that fits nowhere is refused before its first byte, and fills no disk."""
    location = await begin(client, REPO)
    if not free:
        full = SimpleNamespace(f_bavail=1, f_frsize=1, f_blocks=500)
        monkeypatch.setattr(os, "statvfs", lambda _: full)
    absurd = {"Content-Length": str(2**62)}
    async with client.patch(location, data=BytesIO(b""), headers=absurd) as answer:
        assert answer.status == 413
        assert "more do not fit" in await answer.text()
    (event,) = [getattr(record, "event", "") for record in may_log_errors.records]
    assert event == ("does_not_fit" if free else "disk_full")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "small", "large"])
async def test_post_then_put(client: Client, data: bytes, algorithm: str) -> None:
    """The whole blob in the closing PUT."""
    location = await begin(client, REPO, f"?digest-algorithm={algorithm}")
    digest = digest_of(data, algorithm)
    async with client.put(f"{location}?digest={digest}", data=BytesIO(data)) as answer:
        assert answer.status == 201
        assert answer.headers["Location"] == f"/v2/{REPO}/blobs/{digest}"
        assert answer.headers["Docker-Content-Digest"] == digest
    assert await _is_there(client, data, algorithm)


async def test_monolithic_post(client: Client) -> None:
    """POST with a digest is a push in one request; its Location can be fetched."""
    url = f"/v2/{REPO}/blobs/uploads/?digest={digest_of(DATA)}"
    async with client.post(url, data=BytesIO(DATA)) as answer:
        assert answer.status == 201
        location = answer.headers["Location"]
    async with client.get(location) as answer:
        assert await answer.read() == DATA


async def test_chunks(client: Client) -> None:
    """Chunks with Content-Range, each answered with where the session stands, the last by PUT."""
    location = await begin(client, REPO)
    for start in range(0, 900_000, 300_000):
        piece = DATA[start : start + 300_000]
        headers = {"Content-Range": f"{start}-{start + len(piece) - 1}"}
        async with client.patch(location, data=BytesIO(piece), headers=headers) as answer:
            assert (answer.status, await answer.read()) == (202, b"")
            assert answer.headers["Range"] == f"0-{start + len(piece) - 1}"
            location = answer.headers["Location"]
        async with client.get(location) as answer:
            assert (answer.status, await answer.read()) == (204, b"")
            assert answer.headers["Range"] == f"0-{start + len(piece) - 1}"
            assert answer.headers["Location"] == location
    headers = {"Content-Range": f"900000-{len(DATA) - 1}"}
    url = f"{location}?digest={digest_of(DATA)}"
    async with client.put(url, data=BytesIO(DATA[900_000:]), headers=headers) as answer:
        assert answer.status == 201, await answer.text()
    assert await _is_there(client, DATA)


async def test_stream(client: Client) -> None:
    """A stream of unknown length without Content-Range, as docker pushes, then an empty PUT."""
    location = await begin(client, REPO)

    async def pieces() -> object:
        for start in range(0, len(DATA), 70_001):
            yield DATA[start : start + 70_001]

    async with client.patch(location, data=pieces()) as answer:
        assert answer.status == 202
        assert answer.headers["Range"] == f"0-{len(DATA) - 1}"
    async with client.put(f"{location}?digest={digest_of(DATA)}") as answer:
        assert answer.status == 201
    assert await _is_there(client, DATA)


@pytest.mark.parametrize(
    "written",
    ["{}-{}", "bytes {}-{}", "bytes={}-{}", "bytes {}-{}/*", "bytes {}-{}/1000", " {}-{} "],
)
async def test_content_range_as_clients_write_it(client: Client, written: str) -> None:
    """The spec's form, RFC 9110's, and what lies between."""
    location = await begin(client, REPO)
    headers = {"Content-Range": written.format(0, 4)}
    async with client.patch(location, data=b"first", headers=headers) as answer:
        assert answer.status == 202, await answer.text()


@pytest.mark.parametrize(("begun", "closed"), [("sha256", "sha512"), ("sha512", "sha256")])
async def test_digest_of_another_algorithm(client: Client, begun: str, closed: str) -> None:
    """A session begun with one algorithm and closed with another is still verified."""
    for data, status in ((DATA, 201), (b"tampered", 400)):
        location = await begin(client, REPO, f"?digest-algorithm={begun}")
        async with client.patch(location, data=BytesIO(data)) as answer:
            assert answer.status == 202
        async with client.put(f"{location}?digest={digest_of(DATA, closed)}") as answer:
            assert answer.status == status


async def test_cancel(client: Client, root: Path) -> None:
    """204; the session is gone by every method, and nothing of it stays."""
    before = content(root)
    location = await begin(client, REPO)
    async with client.patch(location, data=BytesIO(DATA)) as answer:
        assert answer.status == 202
    async with client.delete(location) as answer:
        assert (answer.status, await answer.read()) == (204, b"")
    assert content(root) == before
    for method in ("GET", "PATCH", "DELETE"):
        async with client.request(method, location) as answer:
            await refused(answer, 404, "BLOB_UPLOAD_UNKNOWN")
    async with client.put(f"{location}?digest={digest_of(b'')}") as answer:
        await refused(answer, 404, "BLOB_UPLOAD_UNKNOWN")


async def test_finished_session_is_gone(client: Client) -> None:
    """After 201 the session is unknown, and the blob stays."""
    location = await begin(client, REPO)
    async with client.put(f"{location}?digest={digest_of(b'x')}", data=b"x") as answer:
        assert answer.status == 201
    async with client.put(f"{location}?digest={digest_of(b'x')}", data=b"x") as answer:
        await refused(answer, 404, "BLOB_UPLOAD_UNKNOWN")
    assert await _is_there(client, b"x")


@pytest.mark.parametrize(
    "way", ["monolithic post", "put with body", "patch then put", "other algorithm"]
)
async def test_wrong_digest(client: Client, root: Path, way: str) -> None:
    """400 on every path, both digests in the detail, no file left behind."""
    before = content(root)
    algorithm = "sha512" if way == "other algorithm" else "sha256"
    wrong, right = digest_of(b"other", algorithm), digest_of(DATA, algorithm)
    if way == "monolithic post":
        url = f"/v2/{REPO}/blobs/uploads/?digest={wrong}"
        async with client.post(url, data=BytesIO(DATA)) as answer:
            (error,) = await refused(answer, 400, "DIGEST_INVALID")
    else:
        location = await begin(client, REPO)
        body = DATA
        if way != "put with body":
            async with client.patch(location, data=BytesIO(DATA)) as answer:
                assert answer.status == 202
            body = b""
        async with client.put(f"{location}?digest={wrong}", data=BytesIO(body)) as answer:
            (error,) = await refused(answer, 400, "DIGEST_INVALID")
    assert error["detail"] == {"expected": wrong, "actual": right}
    assert content(root) == before


@pytest.mark.parametrize(
    "query", ["", "?digest=", "?digest=nonsense", "?digest=sha256:abc", "?Digest=x"]
)
async def test_put_without_a_usable_digest(client: Client, query: str) -> None:
    """A PUT whose digest is missing or unreadable is refused and the session continues."""
    location = await begin(client, REPO)
    async with client.patch(location, data=b"kept") as answer:
        assert answer.status == 202
    async with client.put(f"{location}{query}", data=b"more") as answer:
        await refused(answer, 400, "DIGEST_INVALID")
    async with client.get(location) as answer:
        assert answer.headers["Range"] == "0-3"
    async with client.put(f"{location}?digest={digest_of(b'kept')}") as answer:
        assert answer.status == 201


@pytest.mark.parametrize(
    "query", ["digest=nonsense", "digest=md5:" + "0" * 32, "digest-algorithm=sha1"]
)
async def test_post_that_cannot_be_understood(client: Client, root: Path, query: str) -> None:
    """A bad digest or algorithm opens no session."""
    before = content(root)
    async with client.post(f"/v2/{REPO}/blobs/uploads/?{query}", data=b"x") as answer:
        await refused(answer, 400, "DIGEST_INVALID")
    assert content(root) == before


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("start", [0, 3, 5, 10**18])
async def test_wrong_offset(client: Client, method: str, start: int) -> None:
    """416 with the right offset; the session survives and takes the right chunk."""
    location = await begin(client, REPO)
    async with client.patch(location, data=b"four") as answer:
        assert answer.status == 202
    headers = {"Content-Range": f"{start}-{start + 3}"}
    url = f"{location}?digest={digest_of(b'fourmore')}"
    async with client.request(method, url, data=b"more", headers=headers) as answer:
        await refused(answer, 416, "RANGE_INVALID")
        assert answer.headers["Range"] == "0-3"
    async with client.get(location) as answer:
        assert answer.headers["Range"] == "0-3"
    headers = {"Content-Range": "4-7"}
    async with client.put(url, data=b"more", headers=headers) as answer:
        assert answer.status == 201, await answer.text()


@pytest.mark.parametrize(
    ("header", "body", "code"),
    [
        ("nonsense", b"four", "UNSUPPORTED"),
        ("0", b"four", "UNSUPPORTED"),
        ("-4", b"four", "UNSUPPORTED"),
        ("0-", b"four", "UNSUPPORTED"),
        ("0-3, 4-7", b"four", "UNSUPPORTED"),
        ("\u0660-\u0663", b"four", "UNSUPPORTED"),
        ("0-" + "9" * 99, b"four", "UNSUPPORTED"),
        ("0-9", b"four", "SIZE_INVALID"),
        ("0-2", b"four", "SIZE_INVALID"),
        ("0-0", b"", "SIZE_INVALID"),
    ],
)
async def test_bad_content_range(client: Client, header: str, body: bytes, code: str) -> None:
    """A Content-Range that cannot be read, or is not the body's, takes no byte."""
    location = await begin(client, REPO)
    headers = {"Content-Range": header}
    async with client.patch(location, data=body, headers=headers) as answer:
        await refused(answer, 400, code)
    async with client.get(location) as answer:
        assert answer.headers["Range"] == "0-0"


@pytest.mark.parametrize("announced", ["0-9", "0-2", "3-0"])
async def test_content_range_of_a_stream_that_lies(client: Client, announced: str) -> None:
    """A chunked body of another length than its Content-Range is refused like any other."""
    location = await begin(client, REPO)

    async def four() -> object:
        yield b"four"

    headers = {"Content-Range": announced}
    async with client.patch(location, data=four(), headers=headers) as answer:
        assert answer.status in (400, 416), await answer.text()
    async with client.put(f"{location}?digest={digest_of(b'')}") as answer:
        assert answer.status in (201, 400)


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "identity", [str(NO_UPLOAD), "x", "..", "a" * 300, "%2e%2e", "%00", "data"]
)
async def test_unknown_upload(client: Client, root: Path, method: str, identity: str) -> None:
    """A session that never was: 404, and nothing is made."""
    await push_blob(client, REPO, b"there")
    before = content(root)
    url = f"/v2/{REPO}/blobs/uploads/{identity}?digest={digest_of(b'x')}"
    async with client.request(method, url, data=b"x") as answer:
        assert answer.status in (400, 404)
    assert content(root) == before


async def test_session_of_another_repository(client: Client) -> None:
    """An id is good in its repository only."""
    identity = (await begin(client, REPO)).rpartition("/")[2]
    async with client.get(f"/v2/team/other/blobs/uploads/{identity}") as answer:
        await refused(answer, 404, "BLOB_UPLOAD_UNKNOWN")


async def test_many_uploads_at_once(client: Client) -> None:
    """Interleaved chunks of many sessions do not mix."""
    blobs = [bytes([n]) * 200_000 for n in range(8)]
    locations = [await begin(client, REPO) for _ in blobs]
    for part in range(2):
        for blob, location in zip(blobs, locations, strict=True):
            half = blob[part * 100_000 :][:100_000]
            async with client.patch(location, data=BytesIO(half)) as answer:
                assert answer.status == 202
    for blob, location in zip(blobs, locations, strict=True):
        async with client.put(f"{location}?digest={digest_of(blob)}") as answer:
            assert answer.status == 201
        assert await _is_there(client, blob)
