"""Content that is not a file of this host, as an object store would have it, is served like any."""

from __future__ import annotations

import tempfile
from typing import Self

import pytest

from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.interface import Proof, Sink
from tests.support.images import push, put_image
from tests.support.registry import Client

REPO = "team/app"
BLOB = bytes(range(256)) * 1000


class Remote:
    """See `storage.interface.Content`: bytes that are fetched in ranges when they are sent."""

    proof: Proof | None = None

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fetched: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        return len(self.data)

    def open(self) -> OpenRemote:
        return OpenRemote(self)


class OpenRemote:
    """See `storage.interface.OpenContent`."""

    def __init__(self, content: Remote) -> None:
        self._content = content

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def proof(self) -> Proof | None:
        return None

    def read(self, offset: int, count: int) -> bytes:
        self._content.fetched.append((offset, count))
        return self._content.data[offset : offset + count]

    async def send(self, sink: Sink, offset: int, count: int) -> None:
        with tempfile.TemporaryFile() as fetched:
            fetched.write(self.read(offset, count))
            fetched.flush()
            await sink.send_file(fetched, 0, count)


async def test_blob(
    store: DistributionStore, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GET fetches the bytes of the range asked for and no others; HEAD fetches none."""
    digest = push(store, REPO, BLOB)
    content = Remote(BLOB)
    monkeypatch.setattr(store, "blob", lambda repository, digest: content)
    path = f"/v2/{REPO}/blobs/{digest}"
    async with client.get(path) as answer:
        assert await answer.read() == BLOB
    async with client.get(path, headers={"Range": "bytes=1000-1999"}) as answer:
        assert (answer.status, await answer.read()) == (206, BLOB[1000:2000])
    assert content.fetched == [(0, len(BLOB)), (1000, 1000)]
    monkeypatch.setattr(store, "touch", lambda repository, digest: content)
    async with client.head(path) as answer:
        assert answer.headers["Content-Length"] == str(len(BLOB))
    assert len(content.fetched) == 2


async def test_manifest(
    store: DistributionStore, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest is read, verified and sent."""
    manifest, digest = put_image(store, REPO, "1")
    content = Remote(manifest.body)
    monkeypatch.setattr(store, "manifest", lambda repository, digest: content)
    monkeypatch.setattr(store, "compare", lambda repository, digest, body: None)
    async with client.get(f"/v2/{REPO}/manifests/{digest}") as answer:
        assert await answer.read() == manifest.body
    assert content.fetched == [(0, content.size)]
