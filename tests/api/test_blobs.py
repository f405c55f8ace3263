"""Blobs over a real socket: get, head, ranges, delete, mount, and the headers clients rely on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from aiohttp import ClientConnectionError, ClientPayloadError

from mayfly.storage import digest as digests
from mayfly.storage.directory.store import DistributionStore
from tests.support.images import digest_of
from tests.support.pushing import content, push_blob, refused
from tests.support.registry import Client

DATA = bytes(range(256)) * 400


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "small", "large"])
async def test_get_and_head(client: Client, data: bytes, algorithm: str) -> None:
    """The bytes, with digest, length and type; HEAD has the same headers and no body."""
    digest = await push_blob(client, "team/app", data, algorithm)
    answers = []
    for method in ("GET", "HEAD"):
        async with client.request(method, f"/v2/team/app/blobs/{digest}") as answer:
            assert answer.status == 200
            assert answer.headers["Docker-Content-Digest"] == digest
            assert answer.headers["Content-Length"] == str(len(data))
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert answer.headers["Accept-Ranges"] == "bytes"
            assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
            assert "Content-Encoding" not in answer.headers
            answers.append(await answer.read())
    assert answers == [data, b""]


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        (f"bytes={len(DATA) - 1}-", len(DATA) - 1, len(DATA) - 1),
        ("bytes=100-", 100, len(DATA) - 1),
        ("bytes=-7", len(DATA) - 7, len(DATA) - 1),
        (f"bytes=5-{10**15}", 5, len(DATA) - 1),
        (f"bytes=-{10**15}", 0, len(DATA) - 1),
    ],
)
async def test_range(client: Client, header: str, first: int, last: int) -> None:
    """A range is 206 with the bytes asked for and says where they lie."""
    digest = await push_blob(client, "team/app", DATA)
    async with client.get(f"/v2/team/app/blobs/{digest}", headers={"Range": header}) as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(DATA)}"
        assert answer.headers["Content-Length"] == str(last - first + 1)
        assert answer.headers["Docker-Content-Digest"] == digest
        assert await answer.read() == DATA[first : last + 1]


@pytest.mark.parametrize("header", ["bytes=0-1,5-6", "lines=1-2", "nonsense"])
async def test_range_that_is_ignored(client: Client, header: str) -> None:
    """Several ranges or another unit: the whole blob."""
    digest = await push_blob(client, "team/app", DATA)
    async with client.get(f"/v2/team/app/blobs/{digest}", headers={"Range": header}) as answer:
        assert answer.status == 200
        assert "Content-Range" not in answer.headers
        assert await answer.read() == DATA


@pytest.mark.parametrize("header", [f"bytes={len(DATA)}-", "bytes=9-8", "bytes=-0", "bytes=x-y"])
async def test_range_that_cannot_be_met(client: Client, header: str) -> None:
    """416, and the size to ask within."""
    digest = await push_blob(client, "team/app", DATA)
    async with client.get(f"/v2/team/app/blobs/{digest}", headers={"Range": header}) as answer:
        await refused(answer, 416, "RANGE_INVALID")
        assert answer.headers["Content-Range"] == f"bytes */{len(DATA)}"


async def test_resume_in_pieces(client: Client) -> None:
    """A blob fetched in ranges, one after the other, is whole."""
    digest = await push_blob(client, "team/app", DATA)
    found = b""
    while len(found) < len(DATA):
        header = {"Range": f"bytes={len(found)}-{len(found) + 29_999}"}
        async with client.get(f"/v2/team/app/blobs/{digest}", headers=header) as answer:
            found += await answer.read()
    assert found == DATA


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
async def test_unknown(client: Client, method: str) -> None:
    """A blob that is not linked in the repository is unknown, wherever else it is."""
    digest = await push_blob(client, "team/app", b"secret")
    for url in (f"/v2/team/other/blobs/{digest}", f"/v2/team/app/blobs/{digest_of(b'nothing')}"):
        async with client.request(method, url) as answer:
            assert answer.status == 404
            if method != "HEAD":
                (error,) = await refused(answer, 404, "BLOB_UNKNOWN")
                assert error["detail"]["digest"] in url


async def test_delete(client: Client, root: Path) -> None:
    """202, then 404 at once, by every method; another repository keeps the blob."""
    digest = await push_blob(client, "team/app", DATA)
    await push_blob(client, "team/copy", DATA)
    async with client.delete(f"/v2/team/app/blobs/{digest}") as answer:
        assert (answer.status, await answer.read()) == (202, b"")
    for method in ("HEAD", "GET", "DELETE"):
        async with client.request(method, f"/v2/team/app/blobs/{digest}") as answer:
            assert answer.status == 404
    async with client.get(f"/v2/team/copy/blobs/{digest}") as answer:
        assert await answer.read() == DATA
    assert not [name for name in content(root) if "team/app" in name]


async def test_mount(client: Client) -> None:
    """201 with a Location that can be fetched, and nothing was sent."""
    digest = await push_blob(client, "team/app", DATA)
    url = f"/v2/team/copy/blobs/uploads/?mount={digest}&from=team/app"
    async with client.post(url) as answer:
        assert answer.status == 201
        assert answer.headers["Docker-Content-Digest"] == digest
        location = answer.headers["Location"]
    async with client.get(location) as answer:
        assert await answer.read() == DATA


async def test_mount_without_a_source(client: Client) -> None:
    """Without ``from`` the blob is taken from any repository the caller may read."""
    digest = await push_blob(client, "team/app", DATA)
    async with client.post(f"/v2/team/copy/blobs/uploads/?mount={digest}") as answer:
        assert answer.status == 201
    async with client.head(f"/v2/team/copy/blobs/{digest}") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("source", ["&from=team/other", "&from=no/such", "", "&from="])
async def test_mount_of_what_is_not_there(client: Client, source: str) -> None:
    """202 and an upload session, never 201; the repository has no blob."""
    await push_blob(client, "team/other", b"something else")
    digest = digest_of(b"absent")
    async with client.post(f"/v2/team/app/blobs/uploads/?mount={digest}{source}") as answer:
        assert answer.status == 202
        location = answer.headers["Location"]
        assert answer.headers["Range"] == "0-0"
    async with client.head(f"/v2/team/app/blobs/{digest}") as answer:
        assert answer.status == 404
    async with client.put(f"{location}?digest={digest}", data=b"absent") as answer:
        assert answer.status == 201


async def test_mount_that_fails_takes_the_body(client: Client) -> None:
    """A mount with a digest and a body falls back to a push in one request."""
    digest = digest_of(DATA)
    url = f"/v2/team/app/blobs/uploads/?mount={digest}&from=team/other&digest={digest}"
    async with client.post(url, data=DATA) as answer:
        assert answer.status == 201
    async with client.get(f"/v2/team/app/blobs/{digest}") as answer:
        assert await answer.read() == DATA


@pytest.mark.parametrize(
    "query",
    [
        "mount=nonsense&from=a",
        "mount={}&from=../x",
        f"mount=md5:{'0' * 32}&from=team/base",
        "from=a",
    ],
)
async def test_bad_mount(client: Client, query: str) -> None:
    """A mount that cannot be understood is an upload, as the spec has it."""
    content = b"sent instead"
    await push_blob(client, "team/base", content)
    digest = digest_of(content)
    url = f"/v2/team/app/blobs/uploads/?{query.format(digest)}"
    async with client.post(url) as answer:
        assert answer.status == 202
        location = answer.headers["Location"]
    async with client.put(f"{location}?digest={digest}", data=content) as answer:
        assert answer.status == 201


async def test_mount_of_another_algorithm(client: Client) -> None:
    """A blob that is there by its SHA-256 is none by its SHA-512: it is uploaded, and then is."""
    await push_blob(client, "team/base", DATA)
    digest = f"sha512:{hashlib.sha512(DATA).hexdigest()}"
    url = f"/v2/team/app/blobs/uploads/?mount={digest}&from=team/base"
    async with client.post(url) as answer:
        assert answer.status == 202
        location = answer.headers["Location"]
    async with client.put(f"{location}?digest={digest}", data=DATA) as answer:
        assert answer.status == 201


async def test_data_that_ends_early_cuts_the_connection(
    client: Client, store: DistributionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file shorter than was announced is not answered as if it were whole."""
    digest = await push_blob(client, "team/app", DATA)
    extent = store.blob("team/app", digests.parse(digest))
    extent.path.write_bytes(DATA[:1000])
    monkeypatch.setattr(store, "blob", lambda *_: extent)
    with pytest.raises((ClientPayloadError, ClientConnectionError)):
        async with client.get(f"/v2/team/app/blobs/{digest}") as answer:
            await answer.read()


async def test_blob_deleted_before_it_is_opened(
    client: Client, store: DistributionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that goes away between look-up and open is unknown, not an internal error."""
    digest = await push_blob(client, "team/app", DATA)
    extent = store.blob("team/app", digests.parse(digest))
    monkeypatch.setattr(store, "blob", lambda *_: extent)
    extent.path.unlink()
    async with client.get(f"/v2/team/app/blobs/{digest}") as answer:
        await refused(answer, 404, "BLOB_UNKNOWN")
