"""Pull-through: one download for all, nothing wrong kept or sent whole, upstreams that fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mayfly.registry.api.context import AS_WRITTEN
from mayfly.registry.upstream import lookups
from mayfly.registry.upstream import mirror as module
from mayfly.registry.upstream.credentials import Credentials
from mayfly.registry.upstream.health import UpstreamHost
from mayfly.registry.upstream.mirror import Mirror
from mayfly.registry.upstream.names import UpstreamNames
from mayfly.registry.upstream.registries import Reach, Registries
from mayfly.registry.upstream.store import MirrorStore
from mayfly.storage import digest as digests
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import StorageFull
from mayfly.storage.manifest import OCI_MANIFEST, parse
from mayfly.storage.upkeep.verify import verify
from tests.support.fixtures import quick_sync as quick_sync
from tests.support.fixtures import root as root
from tests.support.images import descriptor, digest_of, files, image_body, index_body, read
from tests.support.on_socket import Served
from tests.support.process import PATIENCE, descriptors, until
from tests.support.pushing import push_blob, push_image, push_manifest, refused
from tests.support.registry import Client, open_to_everyone
from tests.support.registry import store as store
from tests.support.upstream import FakeUpstream, serving_upstream

HUB = "docker.io"
APP = "docker.io/org/app"
LAYER = bytes(range(256)) * 8192  # 2 MiB


@dataclass
class World:
    """A mirror of Docker Hub and of another registry, and a client of it."""

    client: Client
    hub: FakeUpstream
    quay: FakeUpstream
    mirror: Mirror
    store: DistributionStore

    async def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """GET ``/v2/`` and a path."""
        async with self.client.get(f"/v2/{path}", headers=headers) as answer:
            return answer.status, await answer.read()

    async def get_as(self, address: str, path: str) -> tuple[int, bytes]:
        """The same as a client of another address."""
        connector = aiohttp.TCPConnector(local_addr=(address, 0))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(self.client.make_url(f"/v2/{path}")) as answer,
        ):
            return answer.status, await answer.read()

    async def digest(self, path: str) -> str | None:
        """The digest that a HEAD tells; None if the answer is not 200."""
        async with self.client.head(f"/v2/{path}") as answer:
            return answer.headers["Docker-Content-Digest"] if answer.status == 200 else None

    def record(self, host: str = HUB) -> dict[str, object]:
        """The use of an upstream."""
        return next(dict(one) for one in self.mirror.records() if one["host"] == host)


Make = Callable[..., Awaitable[World]]


@pytest.fixture
async def make(
    store: DistributionStore,
    aiohttp_client: Callable[..., Awaitable[Client]],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Make]:
    """Makes the world, with a TTL and a default upstream."""
    monkeypatch.setattr("mayfly.registry.upstream.client._FIRST_WAIT", 0.05)
    async with contextlib.AsyncExitStack() as stack:

        async def made(ttl: float = 60.0, default: str | None = None) -> World:
            hub = await stack.enter_async_context(serving_upstream())
            quay = await stack.enter_async_context(serving_upstream())
            reach = Reach(
                {HUB: hub.url, "quay.io": quay.url},
                credentials={hub.url.removeprefix("http://"): Credentials("me", "SECRET")},
            )
            registries = await stack.enter_async_context(Registries(reach, module.CONNECTIONS))
            names = UpstreamNames([HUB, "quay.io"], default, AS_WRITTEN)
            hosts = [UpstreamHost(registries.at(one, module.ATTEMPTS)) for one in (HUB, "quay.io")]
            mirror = await stack.enter_async_context(Mirror(store, names, hosts, ttl))
            served = MirrorStore(store, mirror)
            client = await aiohttp_client(
                Served(open_to_everyone(served, names, mirror)), auto_decompress=False
            )
            return World(client, hub, quay, mirror, store)

        yield made


async def test_a_cold_pull_by_fifty_clients_is_one_download(make: Make) -> None:
    """All get the image; the upstream is asked for each part of it once."""
    world = await make()
    digest = world.hub.push("library/app", "1", LAYER)
    blob = digest_of(LAYER)

    async def pull() -> None:
        assert await world.digest("library/app/manifests/1?ns=docker.io") == digest
        status, body = await world.get(f"library/app/manifests/{digest}?ns=docker.io")
        assert (status, digest_of(body)) == (200, digest)
        for layer in json.loads(body)["layers"]:
            path = f"docker.io/library/app/blobs/{layer['digest']}"
            assert await world.get(path) == (200, LAYER)

    await asyncio.gather(*(pull() for _ in range(50)))
    assert world.hub.count("GET", "/manifests/1") == 1
    assert world.hub.count("GET", f"/manifests/{digest}") == 0
    assert world.hub.count("GET", blob) == 1
    assert world.hub.sent == len(LAYER)
    assert not world.quay.asked
    assert world.record()["downloads"] == 1
    # All of it is here now, and whole.
    world.hub.asked.clear()
    await pull()
    assert not world.hub.asked
    assert not verify(world.store).findings


async def test_a_blob_is_sent_while_it_arrives(make: Make) -> None:
    """A client has the first half before the upstream sends the second."""
    world = await make()
    world.hub.push("org/app", "1", LAYER)
    world.hub.gate = asyncio.Event()
    async with world.client.get(f"/v2/{APP}/blobs/{digest_of(LAYER)}") as answer:
        assert (answer.status, answer.content_length) == (200, len(LAYER))
        half = await answer.content.readexactly(len(LAYER) // 2)
        world.hub.gate.set()
        assert half + await answer.content.read() == LAYER


async def test_the_last_byte_waits_for_the_hash(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else has arrived at the client while the blob is being verified."""
    world = await make()
    world.hub.push("org/app", "1", LAYER)
    held = asyncio.Event()
    receive = Mirror._receive

    async def slow(self: Mirror, *args: object) -> None:
        await receive(self, *args)  # type: ignore[arg-type]
        await held.wait()

    monkeypatch.setattr(Mirror, "_receive", slow)
    async with world.client.get(f"/v2/{APP}/blobs/{digest_of(LAYER)}") as answer:
        body = await answer.content.readexactly(len(LAYER) - 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await answer.content.readexactly(1)
        held.set()
        assert body + await answer.content.readexactly(1) == LAYER


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("0-99", 0, 99),
        ("100-", 100, None),
        ("-50", -50, None),
        ("1500000-1600000", 1500000, 1600000),
    ],
)
async def test_ranges_of_a_blob_under_way(
    make: Make, asked: str, first: int, last: int | None
) -> None:
    """A part is sent once it has arrived; of the first half, while the second is withheld."""
    world = await make()
    world.hub.push("org/app", "1", LAYER)
    world.hub.gate = asyncio.Event()
    path = f"{APP}/blobs/{digest_of(LAYER)}"
    whole = asyncio.create_task(world.get(path))
    await until(lambda: world.hub.sent > 0)
    part = asyncio.create_task(world.get(path, {"Range": f"bytes={asked}"}))
    if asked == "0-99":
        assert await part == (206, LAYER[:100])
    await asyncio.sleep(0.1)
    world.hub.gate.set()
    end = None if last is None else last + 1
    assert await part == (206, LAYER[first:end])
    assert await whole == (200, LAYER)
    assert world.hub.count("GET", digest_of(LAYER)) == 1


async def _cut(world: World, path: str) -> int:
    """The bytes of a blob that came before the connection was cut."""
    async with world.client.get(f"/v2/{path}") as answer:
        assert answer.status == 200
        got = 0
        with pytest.raises(aiohttp.ClientPayloadError):
            while piece := await answer.content.readany():
                got += len(piece)
        return got


async def test_wrong_bytes_are_not_sent_whole_and_not_kept(make: Make, root: Path) -> None:
    """The connection is cut before the last byte; then it is an error, and not asked for again."""
    world = await make()
    digest = digest_of(LAYER)
    world.hub.blobs["org/app", digest] = LAYER[:-1] + b"!"
    assert await _cut(world, f"{APP}/blobs/{digest}") < len(LAYER)
    await until(lambda: not world.mirror._tasks)
    assert not files(root)
    async with world.client.get(f"/v2/{APP}/blobs/{digest}") as answer:
        (error,) = await refused(answer, 502, "UNAVAILABLE")
    assert HUB in error["message"]
    assert world.hub.count("GET", digest) == 1
    # The right bytes, once they are there and the failure is forgotten.
    world.hub.blobs["org/app", digest] = LAYER
    world.mirror._lookups._failures.pop(lookups.LookupKey("blob", APP, digest))
    assert await world.get(f"{APP}/blobs/{digest}") == (200, LAYER)


@pytest.mark.parametrize("change", [-1, 1])
async def test_another_length_than_announced(make: Make, change: int) -> None:
    """HEAD and GET tell different lengths: nothing is kept or sent whole."""
    world = await make()
    digest = digest_of(LAYER)
    body = LAYER[:change] if change < 0 else LAYER + b"!"
    world.hub.blobs["org/app", digest] = LAYER

    async def lie(request: web.Request) -> web.StreamResponse | None:
        return web.Response(body=body) if request.method == "GET" else None

    world.hub.first = lie
    status, _ = await world.get(f"{APP}/blobs/{digest}")
    assert status == 502
    assert not world.store.content(digests.parse(digest))


async def test_an_upstream_that_breaks_off_is_resumed(make: Make) -> None:
    """The rest is asked for by Range; the client notices nothing."""
    world = await make()
    world.hub.push("org/app", "1", LAYER)
    digest = digest_of(LAYER)

    async def break_off(request: web.Request) -> web.StreamResponse | None:
        if request.method != "GET" or "Range" in request.headers:
            return None
        response = web.StreamResponse()
        response.content_length = len(LAYER)
        await response.prepare(request)
        await response.write(LAYER[: len(LAYER) // 3])
        assert request.transport is not None
        request.transport.abort()
        return response

    world.hub.first = break_off
    assert await world.get(f"{APP}/blobs/{digest}") == (200, LAYER)
    assert world.hub.count("GET", digest) == 2


async def test_a_client_that_leaves_stops_nobody(make: Make) -> None:
    """The download continues for clients that stay, and to its end if none does."""
    world = await make()
    world.hub.push("org/app", "1", LAYER)
    world.hub.gate = asyncio.Event()
    path = f"{APP}/blobs/{digest_of(LAYER)}"
    async with world.client.get(f"/v2/{path}") as leaving:
        await leaving.content.readexactly(1000)
        staying = asyncio.create_task(world.get(path))
        await asyncio.sleep(0.05)
        leaving.close()
    world.hub.gate.set()
    assert await staying == (200, LAYER)
    other = LAYER[::-1]
    world.hub.push("org/app", "2", other)
    world.hub.gate = asyncio.Event()
    async with world.client.get(f"/v2/{APP}/blobs/{digest_of(other)}") as leaving:
        await leaving.content.readexactly(1000)
        leaving.close()
    world.hub.gate.set()
    await until(lambda: world.store.content(digests.of(other)) is not None)
    assert world.hub.count("GET", digest_of(other)) == 1


async def test_a_blob_of_two_repositories_is_fetched_once(make: Make) -> None:
    """While it is under way and afterwards; the upstream says for each name whether it has it."""
    world = await make()
    world.hub.push("org/app", "1", LAYER)
    world.hub.push("org/two", "1", LAYER)
    world.hub.push("org/three", "1", LAYER)
    world.hub.gate = asyncio.Event()
    digest = digest_of(LAYER)
    both = [
        asyncio.create_task(world.get(f"docker.io/org/{name}/blobs/{digest}"))
        for name in ("app", "two")
    ]
    await until(lambda: len(world.mirror._arriving) == 2)
    world.hub.gate.set()
    assert await asyncio.gather(*both) == [(200, LAYER)] * 2
    assert await world.get(f"docker.io/org/three/blobs/{digest}") == (200, LAYER)
    assert world.hub.count("GET", digest) == 1
    # Bytes that are here are no right to them.
    assert (await world.get(f"docker.io/org/other/blobs/{digest}"))[0] == 404
    assert (await world.get(f"quay.io/org/app/blobs/{digest}"))[0] == 404


async def test_tags_are_compared_after_the_ttl(make: Make) -> None:
    """Within it nobody is asked; then a HEAD, and a GET only where the tag moved."""
    world = await make(ttl=0.3)
    old = world.hub.push("org/app", "1", LAYER)
    path = f"{APP}/manifests/1"
    assert await world.digest(path) == old
    assert await world.digest(path) == old
    assert (world.hub.count("HEAD", "/1"), world.hub.count("GET", "/1")) == (0, 1)
    await asyncio.sleep(0.35)
    assert await world.digest(path) == old
    assert (world.hub.count("HEAD", "/1"), world.hub.count("GET", "/1")) == (1, 1)
    new = world.hub.push("org/app", "1", LAYER, config=b'{"a": 1}')
    await asyncio.sleep(0.35)
    assert await world.digest(path) == new
    assert world.hub.count("GET", f"/{new}") == 1
    # By the old digest it is still there.
    assert await world.digest(f"{APP}/manifests/{old}") == old


async def test_a_tag_that_moves_between_head_and_get(make: Make) -> None:
    """The tag is followed to a manifest that it had, also where the first is gone by then."""
    world = await make(ttl=0.0)
    world.hub.push("org/app", "1", LAYER)
    assert await world.digest(f"{APP}/manifests/1")
    gone = world.hub.push("org/app", "1", config=b'{"a": 1}')

    async def move(request: web.Request) -> web.StreamResponse | None:
        if request.method == "GET" and request.path.endswith(gone):
            del world.hub.manifests["org/app", gone]
            world.hub.push("org/app", "1", config=b'{"a": 2}')
        return None

    world.hub.first = move
    found = await world.digest(f"{APP}/manifests/1")
    assert found == digest_of(world.hub.manifests["org/app", "1"]) != gone


async def test_a_stale_tag_is_served_while_the_upstream_is_down(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says so once; what is not cached is 502."""
    world = await make(ttl=0.0)
    digest = world.hub.push("org/app", "1", LAYER)
    assert await world.digest(f"{APP}/manifests/1") == digest

    async def down(request: web.Request) -> web.StreamResponse | None:
        assert request.transport is not None
        request.transport.abort()
        return web.Response(status=500)

    world.hub.first = down
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            assert await world.digest(f"{APP}/manifests/1") == digest
        status, body = await world.get(f"{APP}/manifests/2")
        assert status == 502, body
        world.hub.first = None
        lines = [one for one in caplog.messages if "served as it is" in one]
        assert len(lines) == 1
    assert world.record()["stale"] == 5
    assert world.record()["reachable"] is False
    for host in world.mirror._hosts.values():
        host._rests_until = 0.0
    world.mirror._lookups._failures.pop(lookups.LookupKey("manifest", APP, "1"))
    assert await world.digest(f"{APP}/manifests/1") == digest
    assert world.record()["reachable"] is True


async def test_what_the_upstream_lacks_is_404_and_remembered(make: Make) -> None:
    """Also for a tag that was cached and is gone there."""
    world = await make(ttl=0.0)
    for _ in range(5):
        async with world.client.get(f"/v2/{APP}/manifests/none") as answer:
            await refused(answer, 404, "MANIFEST_UNKNOWN")
        async with world.client.get(f"/v2/{APP}/blobs/{digest_of(b'none')}") as answer:
            await refused(answer, 404, "BLOB_UNKNOWN")
    assert world.hub.count("GET", "/none") == 1
    assert world.hub.count("HEAD", digest_of(b"none")) == 1
    world.hub.push("org/app", "1", LAYER)
    assert await world.digest(f"{APP}/manifests/1")
    world.hub.manifests.clear()
    assert await world.digest(f"{APP}/manifests/1") is None


async def test_what_is_remembered_has_a_bound(make: Make) -> None:
    """A client that asks for thousands of names fills no table."""
    world = await make()
    for number in range(30):
        await world.get(f"{APP}/manifests/none{number}")
    failures = world.mirror._lookups._failures
    assert failures.size == 30 * 800
    for number in range(5000):
        key = lookups.LookupKey("manifest", APP, str(number))
        failures.put(key, lookups.Failure(True, False, 0.0))
    assert failures.size <= lookups._REMEMBERED_BYTES
    assert not world.mirror._lookups._running


async def test_a_rate_limit_is_honoured_and_not_passed_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retry-After holds for every request to that upstream; clients get 502, never 429."""
    # A client of that upstream waits longer than the test does.
    monkeypatch.setattr(lookups, "PATIENCE_SECONDS", 2 * PATIENCE)
    monkeypatch.setattr(lookups, "_STALE_SECONDS", 2 * PATIENCE)
    world = await make(ttl=0.0)
    digest = world.hub.push("org/app", "1", LAYER)
    assert await world.digest(f"{APP}/manifests/1") == digest
    world.hub.asked.clear()

    async def limited(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=429, headers={"Retry-After": str(int(3 * PATIENCE))})

    world.hub.first = limited
    first = asyncio.create_task(world.get(f"{APP}/manifests/2"))
    await until(lambda: world.hub.asked.total() == 1)
    await asyncio.sleep(0.1)
    # The tag is served as it is at once, and nothing else is asked.
    async with asyncio.timeout(PATIENCE):
        assert await world.digest(f"{APP}/manifests/1") == digest
        assert (await world.get(f"{APP}/manifests/3"))[0] == 502
    assert world.hub.asked.total() == 1
    first.cancel()


async def test_a_client_does_not_wait_for_ever(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that does not answer is 502 before the client gives up, for one lookup."""
    monkeypatch.setattr(lookups, "PATIENCE_SECONDS", 0.3)
    world = await make()
    ever = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse | None:
        await ever.wait()
        return None

    world.hub.first = hang
    found = await asyncio.gather(*(world.get(f"{APP}/manifests/1") for _ in range(10)))
    assert {status for status, _ in found} == {502}
    assert world.hub.asked.total() == 1
    ever.set()


async def test_credentials_stay_at_the_upstream(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """They are not sent where it redirects to, and not in a log or an answer."""
    world = await make()
    world.hub.push("org/app", "1", LAYER)
    world.quay.push("org/app", "1", LAYER)
    basic = Credentials("me", "SECRET").basic

    async def redirect(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != basic:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        if request.method == "GET" and "/blobs/" in request.path:
            to = f"{world.quay.url}{request.path}?X-Signature=SECRET"
            return web.Response(status=307, headers={"Location": to})
        return None

    world.hub.first = redirect
    with caplog.at_level(logging.DEBUG):
        assert await world.digest(f"{APP}/manifests/1")
        assert await world.get(f"{APP}/blobs/{digest_of(LAYER)}") == (200, LAYER)

        async def refuse(request: web.Request) -> web.StreamResponse | None:
            return web.Response(status=307, headers={"Location": "ftp://SECRET@h/?k=SECRET"})

        world.hub.first = refuse
        status, body = await world.get(f"{APP}/manifests/2")
    assert status == 502
    assert b"SECRET" not in body
    logged = "\n".join(one.getMessage() for one in caplog.records if one.name == "mayfly")
    assert "not followed" in logged
    assert "SECRET" not in logged
    assert basic is not None and basic not in logged
    assert world.quay.headers
    assert not any("Authorization" in headers for _, _, headers in world.quay.headers)


async def test_a_refused_login_is_404(make: Make) -> None:
    """Docker Hub answers so for names that do not exist; the client must not log in elsewhere."""
    world = await make()

    async def deny(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})

    world.quay.first = deny
    async with world.client.get("/v2/quay.io/org/app/manifests/1") as answer:
        await refused(answer, 404, "MANIFEST_UNKNOWN")
        assert "WWW-Authenticate" not in answer.headers


async def test_names_of_an_upstream_take_no_push(make: Make) -> None:
    """By its host and by ``ns``; other names do."""
    world = await make()
    digest = world.hub.push("org/app", "1", LAYER)
    assert await world.digest(f"{APP}/manifests/1") == digest
    for path in (f"{APP}/blobs/uploads/", "org/app/blobs/uploads/?ns=docker.io"):
        async with world.client.post(f"/v2/{path}") as answer:
            (error,) = await refused(answer, 405, "UNSUPPORTED")
        assert "mirror of another registry" in error["message"]
    async with world.client.delete(f"/v2/{APP}/manifests/1") as answer:
        await refused(answer, 405, "UNSUPPORTED")
    body = await push_image(world.client, "org/app", "1")
    assert await world.digest("org/app/manifests/1") == digest_of(body)
    assert await world.digest(f"{APP}/manifests/1") == digest


async def test_a_default_upstream(make: Make) -> None:
    """Names without host are its own, except tags that were pushed here."""
    world = await make(ttl=0.0, default=HUB)
    digest = world.hub.push("library/app", "1", LAYER)
    world.hub.push("library/app", "2", LAYER)
    for path in ("library/app", "docker.io/library/app", "docker.io/app"):
        assert await world.digest(f"{path}/manifests/1") == digest
    assert await world.digest("library/app/manifests/1?ns=docker.io") == digest
    # Of another upstream, or of none that is mirrored.
    assert await world.digest("library/app/manifests/1?ns=quay.io") is None
    assert await world.digest("library/app/manifests/1?ns=other.io") is None
    assert not world.quay.count("GET", "other.io/library/app/manifests/1")
    own = digest_of(await push_image(world.client, "library/app", "2", annotations={"a": "b"}))
    world.hub.asked.clear()
    assert await world.digest("library/app/manifests/2") == own
    assert not world.hub.asked
    # A push asks by HEAD which blobs are here; the upstream's are not.
    async with world.client.head(f"/v2/library/app/blobs/{digest_of(LAYER)}") as answer:
        assert answer.status == 404
    assert not world.hub.asked


async def test_head_of_a_blob_tells_its_size(make: Make) -> None:
    """Of an upstream's own name it is asked, and nothing is fetched."""
    world = await make()
    world.hub.push("org/app", "1", LAYER)
    for _ in range(3):
        async with world.client.head(f"/v2/{APP}/blobs/{digest_of(LAYER)}") as answer:
            assert (answer.status, answer.content_length) == (200, len(LAYER))
    assert (world.hub.count("HEAD", digest_of(LAYER)), world.hub.sent) == (1, 0)


async def test_marks_tell_cached_from_pushed(make: Make) -> None:
    """A push takes the mark away; pulls are recorded coarsely."""
    world = await make(default=HUB)
    digest = digests.parse(world.hub.push("org/app", "1", config=b"{}"))
    await world.digest("org/app/manifests/1")
    marks = world.store.cached
    assert [*marks.manifests("org/app")] == [digest]
    assert marks.last_checked("org/app", "1") is not None
    pulled = marks.last_pulled("org/app", digest)
    assert pulled is not None and abs(time.time() - pulled) < 60
    await push_blob(world.client, "org/app", b"{}")
    body = world.hub.manifests["org/app", "1"]
    await push_manifest(world.client, "org/app", "1", body)
    assert not [*marks.manifests("org/app")]
    assert marks.last_checked("org/app", "1") is None
    assert [*world.store.tags("org/app")] == ["1"]


async def test_an_index_whose_images_are_not_pulled_is_whole(make: Make) -> None:
    """`mayfly verify` finds no fault in what nobody asked for."""
    world = await make()
    child = world.hub.push("org/app", "child", LAYER)
    index = index_body([parse(world.hub.manifests["org/app", child])])
    world.hub.manifests["org/app", "1"] = index
    assert await world.digest(f"{APP}/manifests/1") == digest_of(index)
    assert not verify(world.store).findings
    assert await world.digest(f"{APP}/manifests/{child}") == child
    assert not verify(world.store).findings
    assert await world.get(f"{APP}/blobs/{digest_of(LAYER)}") == (200, LAYER)
    assert not verify(world.store).findings


async def test_a_full_disk(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the download and in the middle of it: an error or a cut, nothing wrong."""
    world = await make()
    world.hub.push("org/app", "1", LAYER)
    digest = digest_of(LAYER)

    def full(size: int) -> None:
        raise StorageFull("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(world.store, "check_room", full)
        assert (await world.get(f"{APP}/blobs/{digest}"))[0] == 502
    world.mirror._lookups._failures.pop(lookups.LookupKey("blob", APP, digest))
    world.hub.gate = asyncio.Event()
    cut = asyncio.create_task(_cut(world, f"{APP}/blobs/{digest}"))
    await until(lambda: world.hub.sent > 0)
    await asyncio.sleep(0.1)
    monkeypatch.setattr("mayfly.storage.directory.uploads.os.write", _no_space)
    world.hub.gate.set()
    assert await cut < len(LAYER)
    assert world.store.content(digests.parse(digest)) is None


def _no_space(descriptor: int, data: bytes) -> int:
    raise OSError(28, "No space left on device")


async def test_a_manifest_that_is_none_or_too_large(make: Make) -> None:
    """Neither is kept nor served."""
    world = await make()
    world.hub.manifests["org/app", "text"] = b"not a manifest"
    world.hub.manifests["org/app", "large"] = b" " * (4 * 2**20 + 1)
    for tag in ("text", "large"):
        assert (await world.get(f"{APP}/manifests/{tag}"))[0] == 502
    assert not world.store.has_repository(APP)


@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_a_manifest_that_is_another(make: Make, by: str) -> None:
    """Bytes without the digest that was asked for, or that the upstream announces with them."""
    world = await make()
    asked = world.hub.push("org/app", "1", LAYER)
    other = world.hub.manifests["org/app", world.hub.push("org/app", "2", config=b'{"a": 1}')]

    async def lie(request: web.Request) -> web.StreamResponse | None:
        if request.method != "GET" or "/manifests/" not in request.path:
            return None
        return web.Response(body=other, headers={"Docker-Content-Digest": asked})

    world.hub.first = lie
    reference = "1" if by == "tag" else asked
    assert (await world.get(f"{APP}/manifests/{reference}"))[0] == 502
    assert not world.store.has_repository(APP)
    assert world.record()["reachable"] is True


async def test_what_was_fetched_is_read_as_any_content(make: Make) -> None:
    """A store that is opened later has the image."""
    world = await make()
    digest = digests.parse(world.hub.push("org/app", "1", LAYER))
    await world.digest(f"{APP}/manifests/1")
    await world.get(f"{APP}/blobs/{digest_of(LAYER)}")
    assert world.store.tag(APP, "1") == digest
    assert read(world.store.blob(APP, digests.of(LAYER))) == LAYER


async def test_downloads_leave_lookups_their_places(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While as many blobs arrive as may, slowly, a tag is found at once; one more blob waits."""
    monkeypatch.setattr(module, "_DOWNLOADS", 3)
    monkeypatch.setattr(module, "CONNECTIONS", 5)
    monkeypatch.setattr(lookups, "PATIENCE_SECONDS", 1.0)
    world = await make()
    world.hub.gate = asyncio.Event()
    layers = [bytes([number]) * (2**20) for number in range(4)]
    digest = world.hub.push("org/app", "1", *layers)
    paths = [f"{APP}/blobs/{digest_of(layer)}" for layer in layers]
    slow = [asyncio.create_task(world.get(path)) for path in paths[:3]]
    await until(lambda: world.hub.sent >= 3 * 2**19)
    assert await world.digest(f"{APP}/manifests/1") == digest
    assert (await world.get(paths[3]))[0] == 502
    world.hub.gate.set()
    assert await asyncio.gather(*slow) == [(200, layer) for layer in layers[:3]]
    assert await world.get(paths[3]) == (200, layers[3])


async def test_a_slow_upstream_delays_no_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own downloads."""
    monkeypatch.setattr(module, "_DOWNLOADS", 1)
    world = await make()
    world.hub.push("org/app", "1", LAYER)
    world.hub.gate = asyncio.Event()
    world.quay.push("org/app", "1", LAYER[::-1])
    slow = asyncio.create_task(world.get(f"{APP}/blobs/{digest_of(LAYER)}"))
    await until(lambda: world.hub.sent > 0)
    path = f"quay.io/org/app/blobs/{digest_of(LAYER[::-1])}"
    assert await world.get(path) == (200, LAYER[::-1])
    world.hub.gate.set()
    assert await slow == (200, LAYER)


async def test_no_client_has_all_downloads(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that asks for everything leaves turns to others, also for what it waits for itself."""
    monkeypatch.setattr(module, "_DOWNLOADS", 4)
    monkeypatch.setattr(module, "_DOWNLOADS_OF_ONE", 2)
    world = await make()
    world.hub.gate = asyncio.Event()
    layers = [bytes([number]) * (2**20) for number in range(8)]
    world.hub.push("org/app", "1", *layers)
    paths = [f"{APP}/blobs/{digest_of(layer)}" for layer in layers]
    busy = [asyncio.create_task(world.get(path)) for path in paths]
    await until(lambda: len(world.mirror._arriving) == len(layers))
    await until(lambda: world.hub.sent >= 2 * 2**19)
    begun = [one for one in world.mirror._downloads.values() if one.has_turn]
    assert len(begun) == 2
    other = b"other" * 1000
    world.hub.push("org/other", "1", other)
    path = f"docker.io/org/other/blobs/{digest_of(other)}"
    assert await world.get_as("127.0.0.2", path) == (200, other)
    waiting = next(one for one in world.mirror._downloads.values() if not one.has_turn)
    joined = asyncio.create_task(world.get_as("127.0.0.3", f"{APP}/blobs/{waiting.digest}"))
    await until(lambda: waiting.has_turn)
    assert sum(one.has_turn for one in world.mirror._downloads.values()) == 3
    world.hub.gate.set()
    assert (await joined)[0] == 200
    assert await asyncio.gather(*busy) == [(200, layer) for layer in layers]
    assert not world.mirror._downloads and not world.mirror._arriving


async def test_no_client_has_all_lookups(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names for which the upstream hangs delay their own client alone; it may wait for few."""
    monkeypatch.setattr(lookups, "MAX_WAITING_OF_ONE", 20)
    world = await make()
    world.hub.push("org/app", "1", LAYER)
    ever = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse | None:
        if "hang" in request.path:
            await ever.wait()
        return None

    world.hub.first = hang
    paths = [f"{APP}/manifests/hang{number}" for number in range(30)]
    busy = [asyncio.create_task(world.get(path)) for path in paths]
    # Those beyond its share are refused at once.
    await until(lambda: sum(one.done() for one in busy) == 10)
    waiting = [one for one in busy if not one.done()]
    assert {(await one)[0] for one in busy if one.done()} == {502}
    assert (await world.get_as("127.0.0.2", f"{APP}/manifests/1"))[0] == 200
    ever.set()
    assert {(await one)[0] for one in waiting} == {404}


async def test_a_download_has_an_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that sends a few bytes a connection, and then breaks it, is given up."""
    monkeypatch.setattr("mayfly.registry.upstream.download._START_SECONDS", 1.5)
    monkeypatch.setattr("mayfly.registry.upstream.download._SLOWEST", 1e9)
    world = await make()
    world.hub.push("org/app", "1", LAYER)

    async def trickle(request: web.Request) -> web.StreamResponse | None:
        if request.method != "GET":
            return None
        start = request.http_range.start or 0
        response = web.StreamResponse(status=206 if start else 200)
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(LAYER) - 1}/{len(LAYER)}"
        response.content_length = len(LAYER) - start
        await response.prepare(request)
        await response.write(LAYER[start : start + 1000])
        assert request.transport is not None
        request.transport.close()
        return response

    world.hub.first = trickle
    assert await _cut(world, f"{APP}/blobs/{digest_of(LAYER)}") < len(LAYER)
    await until(lambda: not world.mirror._tasks)
    assert world.hub.count("GET", digest_of(LAYER)) > 1
    assert world.store.content(digests.of(LAYER)) is None


@pytest.mark.parametrize("fault", ["slow", "no answer", "full"])
async def test_a_fault_here_is_not_the_upstream_s(
    make: Make, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A disk that is slow, does not answer (as of NFS) or is full: the upstream is asked on."""
    monkeypatch.setattr(lookups, "_LOOKUP_SECONDS", 1.5)
    world = await make()
    store = world.mirror._upper
    keep = store.cache_manifest

    def failing(*words: Any) -> None:
        if fault == "full":
            raise StorageFull("no space left")
        if fault == "no answer":
            raise TimeoutError(110, "Connection timed out")
        time.sleep(2)
        keep(*words)

    monkeypatch.setattr(store, "cache_manifest", failing)
    for tag in "12":
        world.hub.push("org/app", tag, LAYER, config=tag.encode())
        status, _ = await world.get(f"{APP}/manifests/{tag}")
        assert status == (200 if fault == "slow" else 502)
    assert world.record()["reachable"] is True
    monkeypatch.setattr(store, "cache_manifest", keep)
    world.hub.push("org/app", "3", LAYER)
    assert (await world.get(f"{APP}/manifests/3"))[0] == 200


async def test_a_lookup_has_an_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that does not answer is given up, and counts as failing."""
    monkeypatch.setattr(lookups, "_LOOKUP_SECONDS", 0.3)
    world = await make()
    ever = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse | None:
        await ever.wait()
        return None

    world.hub.first = hang
    for tag in "12":
        assert (await world.get(f"{APP}/manifests/{tag}"))[0] == 502
    assert world.record()["reachable"] is False
    assert world.mirror._hosts[HUB].is_failing
    ever.set()


@pytest.mark.parametrize("status", [400, 405, 414])
async def test_names_that_an_upstream_refuses(make: Make, status: int) -> None:
    """Clients choose them: they do not make the upstream count as unreachable."""
    world = await make()
    world.hub.push("org/app", "1", LAYER)

    async def refuse(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=status) if "odd" in request.path else None

    world.hub.first = refuse
    for number in range(5):
        assert (await world.get(f"{APP}/manifests/odd{number}"))[0] == 502
    assert world.record()["reachable"] is True
    assert await world.digest(f"{APP}/manifests/1")


async def test_a_dead_upstream_is_left_alone(make: Make) -> None:
    """After some failures nothing is asked for a while, however much is wanted."""
    world = await make()

    async def down(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=500)

    world.hub.first = down
    found = await asyncio.gather(*(world.get(f"{APP}/manifests/{n}") for n in range(200)))
    assert {status for status, _ in found} == {502}
    asked = world.hub.asked.total()
    assert asked <= 2 * lookups.AT_A_TIME * module.ATTEMPTS
    for number in range(50):
        assert (await world.get(f"{APP}/manifests/more{number}"))[0] == 502
    assert world.hub.asked.total() == asked


async def test_clients_that_leave_a_stalled_upstream_hold_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither their handlers nor descriptors stay, whatever they waited for."""
    monkeypatch.setattr("mayfly.registry.upstream.lookups.POLL_SECONDS", 0.1)
    monkeypatch.setattr("mayfly.registry.upstream.download.POLL_SECONDS", 0.1)
    world = await make()
    world.hub.push("org/app", "1", LAYER)
    world.hub.gate = asyncio.Event()
    small = b"small" * 100
    world.hub.push("org/app", "2", small)
    ever = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse | None:
        if request.path.endswith("/manifests/none"):
            await ever.wait()
        return None

    world.hub.first = hang
    first = asyncio.create_task(world.get(f"{APP}/blobs/{digest_of(LAYER)}"))
    await until(lambda: world.hub.sent > 0)
    before, files_before = len(asyncio.all_tasks()), descriptors()
    paths = (
        f"{APP}/blobs/{digest_of(LAYER)}",
        f"{APP}/blobs/{digest_of(small)}",
        f"{APP}/manifests/none",
    )
    for path in paths:
        leaving = [asyncio.create_task(world.get(path)) for _ in range(20)]
        await asyncio.sleep(0.2)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
    # One lookup and one download stay, with what they need here and in the fake upstream.
    await until(lambda: len(asyncio.all_tasks()) <= before + 12)
    await until(lambda: descriptors() <= files_before + 12)
    ever.set()
    world.hub.gate.set()
    assert await first == (200, LAYER)


async def test_referrers_come_along(make: Make) -> None:
    """A signature that only the referrers API tells of; once for all, and again after the TTL."""
    world = await make(ttl=0.5)
    image = world.hub.push("org/app", "1", LAYER)
    subject = descriptor(world.hub.manifests["org/app", "1"], OCI_MANIFEST)
    signature = image_body(b"{}", [b"signature"], subject=subject, artifactType="test/signature")
    digest = digest_of(signature)
    world.hub.manifests["org/app", digest] = signature
    world.hub.blobs["org/app", digest_of(b"signature")] = b"signature"
    world.hub.referrers["org/app", image] = [descriptor(signature, OCI_MANIFEST)]
    path = f"{APP}/referrers/{image}"

    async def referrers() -> list[str]:
        status, body = await world.get(path)
        assert status == 200
        return [one["digest"] for one in json.loads(body)["manifests"]]

    assert await asyncio.gather(*(referrers() for _ in range(5))) == [[digest]] * 5
    assert world.hub.count("GET", f"/referrers/{image}") == 1
    assert await world.get(f"{APP}/manifests/{digest}") == (200, signature)
    assert await world.get(f"{APP}/blobs/{digest_of(b'signature')}") == (200, b"signature")
    await asyncio.sleep(0.6)

    async def down(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=500)

    world.hub.first = down
    assert await referrers() == [digest]
    assert world.hub.count("GET", f"/referrers/{image}") > 1
    # Of what nobody refers to, and of names without an upstream.
    world.hub.first = None
    assert await world.get(f"quay.io/org/app/referrers/{image}") == (
        200,
        (await world.get(f"own/app/referrers/{image}"))[1],
    )


def _sign(world: World, image: str, word: str) -> dict[str, object]:
    """A signature of an image that the upstream has by digest; its descriptor."""
    subject = descriptor(world.hub.manifests["org/app", image], OCI_MANIFEST)
    body = image_body(b"{}", subject=subject, annotations={"word": word})
    world.hub.manifests["org/app", digest_of(body)] = body
    return descriptor(body, OCI_MANIFEST)


async def _referrers(world: World, image: str) -> set[str]:
    status, body = await world.get(f"{APP}/referrers/{image}")
    assert status == 200
    return {one["digest"] for one in json.loads(body)["manifests"]}


@pytest.mark.parametrize("fault", ["gone", "wrong", "failing"])
async def test_one_bad_referrer_hides_no_other(
    make: Make, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Whatever its place in the list; one that fails for now is asked for again soon."""
    monkeypatch.setattr(lookups, "FAILED_SECONDS", 0.2)
    world = await make()
    image = world.hub.push("org/app", "1", LAYER)
    signed = [_sign(world, image, word) for word in "abc"]
    bad = str(signed[1]["digest"])
    body = world.hub.manifests.pop(("org/app", bad))
    if fault == "wrong":
        world.hub.manifests["org/app", bad] = b"{}"
    is_failing = fault == "failing"

    async def fail(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=500) if is_failing and request.path.endswith(bad) else None

    world.hub.first = fail
    world.hub.referrers["org/app", image] = signed
    good = {str(signed[0]["digest"]), str(signed[2]["digest"])}
    assert await _referrers(world, image) == good
    assert world.record()["reachable"] is True
    is_failing = False
    world.hub.manifests["org/app", bad] = body
    await asyncio.sleep(0.3)
    assert await _referrers(world, image) == (good | {bad} if fault == "failing" else good)


@pytest.mark.parametrize("status", [400, 404, 405])
async def test_referrers_of_an_upstream_without_the_api(make: Make, status: int) -> None:
    """They are listed in the index under the fallback tag, if there is one."""
    world = await make(ttl=0.0)
    image = world.hub.push("org/app", "1", LAYER)

    async def lacks(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=status) if "/referrers/" in request.path else None

    world.hub.first = lacks
    assert await _referrers(world, image) == set()
    signed = _sign(world, image, "a")
    tag = image.replace(":", "-")
    world.hub.manifests["org/app", tag] = index_body(manifests=[signed])
    world.mirror._lookups._failures = lookups.Lookups([], 0.0)._failures
    assert await _referrers(world, image) == {signed["digest"]}
    assert world.record()["reachable"] is True
    # The list itself is not kept: the referrers are listed here by their subject.
    assert not world.store.has_repository(APP) or tag not in world.store.tags(APP)
