"""Attacks by the registry that a store is repaired from: too much, too slow, or elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from mayfly.registry.upstream import client
from mayfly.registry.upstream.blocking import BlockingRegistry
from mayfly.registry.upstream.errors import ContentWrong, LoginRefused, UpstreamError
from mayfly.storage import digest as digests
from mayfly.storage.directory.store import DistributionStore
from tests.hostile.harness import Hostile
from tests.support.beside import Request, answering
from tests.support.client import basic
from tests.support.images import put_image

LAYER = b"{}"
MIB = 1024 * 1024

Answer = Callable[["Scripted"], None]


class Scripted(Request):
    """A request that is answered as the test says.

    Attributes:
        sent: bytes that were poured.
        authorizations: path and credentials of each request.
    """

    sent = 0
    authorizations: ClassVar[list[tuple[str, str | None]]]

    def head(self, status: int, **headers: str) -> None:
        """A response's head."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def pour(self, size: int) -> None:
        """So many bytes, or as many as are taken."""
        try:
            for _ in range(size // 65536):
                self.wfile.write(bytes(65536))
                type(self).sent += 65536
        except OSError:
            pass
        self.close_connection = True


@contextmanager
def registry(answer: Answer) -> Iterator[tuple[str, type[Scripted]]]:
    """A registry that answers so; its URL, and the kind of its requests."""

    class Kind(Scripted):
        authorizations: ClassVar[list[tuple[str, str | None]]] = []

    def record(request: Scripted) -> None:
        Kind.authorizations.append((request.path, request.headers.get("Authorization")))
        answer(request)

    with answering(record, kind=Kind) as host:
        yield f"http://{host}", Kind


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A store with a config of two bytes that is damaged."""
    root = tmp_path / "root"
    store = DistributionStore(root)
    put_image(store, "team/app", "v1")
    path = store.blob("team/app", digests.of(LAYER)).path
    store.close()
    path.write_bytes(b"[]")
    return root


def endless(handler: Scripted) -> None:
    """2 GiB, announced as such."""
    if handler.command == "HEAD":
        return handler.head(200, Content_Length="2")
    handler.head(200, Content_Length=str(2048 * MIB))
    return handler.pour(2048 * MIB)


def unannounced(handler: Scripted) -> None:
    """2 GiB whose length is not told."""
    if handler.command == "HEAD":
        return handler.head(200)
    handler.head(200, Connection="close")
    return handler.pour(2048 * MIB)


def bomb(handler: Scripted) -> None:
    """A few bytes that expand to many, were they decoded."""
    if handler.command == "HEAD":
        return handler.head(200)
    body = b"\x1f\x8b" + bytes(2)
    handler.head(200, Content_Encoding="gzip", Content_Length=str(len(body)))
    handler.wfile.write(body)
    return None


def large_token(handler: Scripted) -> None:
    """A token of 2 GiB."""
    if handler.path.startswith("/token"):
        handler.head(200, Content_Length=str(2048 * MIB))
        return handler.pour(2048 * MIB)
    realm = f"http://{handler.headers['Host']}/token"
    return handler.head(401, WWW_Authenticate=f'Bearer realm="{realm}"', Content_Length="0")


def deep_token(handler: Scripted) -> None:
    """A token nested deep."""
    if not handler.path.startswith("/token"):
        return large_token(handler)
    body = b'{"token":' + b"[" * 100_000
    handler.head(200, Content_Length=str(len(body)))
    handler.wfile.write(body)
    return None


def circle(handler: Scripted) -> None:
    """A redirect to itself."""
    handler.head(307, Location=handler.path, Content_Length="0")


def to_a_file(handler: Scripted) -> None:
    """A redirect to no registry."""
    handler.head(307, Location="file:///etc/passwd", Content_Length="0")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (endless, "expected are 2: not taken"),
        (unannounced, "longer than the 2 bytes"),
        (bomb, "expected are 2: not taken"),
        (large_token, "the answer is longer than"),
        (deep_token, "gave no token"),
        (circle, "redirects more than 5 times"),
        (to_a_file, "not followed"),
    ],
)
def test_repair_from_a_hostile_registry(
    hostile: Hostile, damaged: Path, answer: Answer, said: str
) -> None:
    """Nothing larger than the blob is taken, and the store stays as it was."""
    with registry(answer) as (url, handler):
        done = hostile.command(
            f"repair from a registry: {answer.__doc__}", "verify", "--root", damaged,
            "--repair", url, before="2 GiB written for 4 bytes", growth=32,
        )  # fmt: skip
        # Sockets hold some megabytes on the way.
        assert handler.sent < 64 * MIB
    assert said in done.stderr
    assert done.returncode in (2, 4)
    assert sum(p.stat().st_size for p in damaged.rglob("*") if p.is_file()) < MIB


def test_credentials_stay_with_the_registry(damaged: Path) -> None:
    """A redirect to another host is followed without them; a token is asked for at home only."""

    def blob(handler: Scripted) -> None:
        handler.head(200, Content_Length=str(len(LAYER)))
        if handler.command == "GET":
            handler.wfile.write(LAYER)

    store = DistributionStore(damaged)
    digest = digests.of(LAYER)
    with registry(blob) as (other, there):

        def redirect(handler: Scripted) -> None:
            handler.head(307, Location=f"{other}/elsewhere", Content_Length="0")

        with registry(redirect) as (url, here):
            named = url.replace("http://", "http://user:password@")
            with BlockingRegistry(named) as source, store.copying("team/app", "sha256") as upload:
                assert source.fetch("team/app", digest, upload, len(LAYER))
                upload.commit(digest)
            # The registry itself gets them only once it asks.
            assert here.authorizations
            assert [value for _, value in there.authorizations] == [None] * 2

        def asking(handler: Scripted) -> None:
            if handler.headers.get("Authorization"):
                return redirect(handler)
            handler.head(401, WWW_Authenticate="Basic realm=x", Content_Length="0")
            return None

        with registry(asking) as (url, here):
            there.authorizations.clear()
            named = url.replace("http://", "http://user:p%40ssword@")
            with BlockingRegistry(named) as source, store.copying("team/app", "sha256") as upload:
                assert source.fetch("team/app", digest, upload, len(LAYER))
            assert {value for _, value in here.authorizations} == {
                None,
                basic("user", "p@ssword")[1],
            }
            assert [value for _, value in there.authorizations] == [None] * 2

        def elsewhere(handler: Scripted) -> None:
            challenge = f'Bearer realm="{other}/token",service="x"'
            handler.head(401, WWW_Authenticate=challenge, Content_Length="0")

        with registry(elsewhere) as (url, _):
            there.authorizations.clear()
            named = url.replace("http://", "http://user:password@")
            refused = pytest.raises(LoginRefused, match="come from elsewhere")
            with BlockingRegistry(named) as source, refused:
                source.has("team/app", digest)
            assert there.authorizations == []
    store.close()


def test_slow_transfer_ends(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that sends a byte now and then is given up."""
    monkeypatch.setattr(client, "_START_SECONDS", 0.5)
    monkeypatch.setattr(client, "_SLOWEST", 1e9)
    waiting = threading.Event()

    def trickle(handler: Scripted) -> None:
        handler.head(200, Content_Length="1000")
        if handler.command == "GET":
            for _ in range(1000):
                handler.wfile.write(b"x")
                if waiting.wait(0.1):
                    return

    store = DistributionStore(damaged)
    try:
        refused = pytest.raises(UpstreamError, match="arrives too slowly")
        with registry(trickle) as (url, _), BlockingRegistry(url) as source:
            with store.copying("team/app", "sha256") as upload, refused:
                source.fetch("team/app", digests.of(LAYER), upload, 1000)
            waiting.set()
    finally:
        store.close()


def test_manifest_of_a_registry(damaged: Path) -> None:
    """A manifest is fetched by its own endpoint, and is at most as large as one can be."""
    body = json.dumps({"schemaVersion": 2}).encode()
    large = False

    def manifest(handler: Scripted) -> None:
        if "/blobs/" in handler.path:
            return handler.head(404, Content_Length="0")
        size = 5 * MIB if large else len(body)
        handler.head(200, Content_Length=str(size))
        if handler.command == "GET":
            handler.wfile.write(body)
        return None

    store = DistributionStore(damaged)
    try:
        with registry(manifest) as (url, _), BlockingRegistry(url) as source:
            with store.copying("team/app", "sha256") as upload:
                assert source.fetch("team/app", digests.of(body), upload)
                upload.commit(digests.of(body))
            large = True
            refused = pytest.raises(ContentWrong, match="longer than")
            with store.copying("team/app", "sha256") as upload, refused:
                source.fetch("team/app", digests.of(b"other"), upload)
    finally:
        store.close()
