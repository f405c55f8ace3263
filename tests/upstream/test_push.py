"""Pushing to registries that forget, refuse, lie, redirect, or never answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mayfly.registry.upstream import client, push, streams
from mayfly.registry.upstream.client import Registry
from mayfly.registry.upstream.credentials import Credentials
from mayfly.registry.upstream.errors import ContentWrong, LoginRefused, NotThere, UpstreamError
from mayfly.registry.upstream.push import PushRegistry
from mayfly.registry.upstream.streams import BlobStream
from mayfly.registry.upstream.targets import RegistryTarget
from mayfly.storage.digest import Digest, of
from mayfly.storage.manifest import parse
from tests.support.images import image_body, subject_of
from tests.upstream.answering import answering

BLOB = bytes(range(256)) * 4000
DIGEST = of(BLOB)
PIECE = 64 * 1024
START = "/v2/a/b/blobs/uploads/"

Disturb = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class Target:
    """A registry with sessions, which a test may disturb."""

    registry: PushRegistry
    server: TestServer
    waits: list[float]
    requests: list[web.Request] = field(default_factory=list)
    sessions: dict[str, bytearray] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    disturb: Disturb | None = None
    takes: int = 2**62
    """Bytes of a body that are taken; then the connection is cut."""
    forgets: bool = False
    """Whether a session is gone after that."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        answer = await self.disturb(request) if self.disturb else None
        return answer or await self._answer(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        session = request.query.get("s")
        if request.method == "POST":
            name = str(len(self.sessions))
            self.sessions[name] = bytearray()
            return web.Response(status=202, headers={"Location": f"{START}x?s={name}"})
        if session is not None and session not in self.sessions:
            return web.Response(status=404)
        if session is not None and request.method == "GET":
            end = len(self.sessions[session]) - 1
            return web.Response(status=204, headers={"Range": f"0-{max(0, end)}"})
        if session is not None:
            return await self._take(request, session)
        reference = request.path.rpartition("/")[2]
        if request.method == "PUT":
            self.manifests[reference] = await request.read()
            return web.Response(status=201)
        found = self.manifests if "/manifests/" in request.path else self.blobs
        if reference not in found:
            return web.Response(status=404)
        return web.Response(
            body=found[reference], content_type="application/vnd.oci.image.index.v1+json"
        )

    async def _take(self, request: web.Request, session: str) -> web.Response:
        kept = self.sessions[session]
        part = request.headers.get("Content-Range")
        assert int(part.partition("-")[0]) == len(kept) if part else not kept
        async for piece in request.content.iter_any():
            kept += piece[: self.takes]
            self.takes -= len(piece)
            if self.takes <= 0:
                self.takes = 2**62
                if self.forgets:
                    del self.sessions[session]
                assert request.transport is not None
                request.transport.abort()
        if request.method == "PATCH":
            return web.Response(status=202, headers={"Location": f"{START}y?s={session}"})
        digest = request.query["digest"]
        if str(of(bytes(kept))) != digest:
            return web.json_response({"errors": [{"code": "DIGEST_INVALID"}]}, status=400)
        self.blobs[digest] = bytes(kept)
        return web.Response(status=201)

    @property
    def asked(self) -> list[str]:
        """The methods of all requests."""
        return [request.method for request in self.requests]


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    """A registry that does what it should, until the test says otherwise."""
    made: list[Target] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        return await made[0].handle(request)

    async with answering(PushRegistry, handle) as found:
        made.append(Target(*found))
        yield made[0]


class Source:
    """Bytes in pieces, from any place on; `starts` has each place that was asked for."""

    def __init__(self, data: bytes, digest: Digest = DIGEST, size: int = len(BLOB)) -> None:
        self.data = data
        self.starts: list[int] = []
        self.stream = BlobStream(digest, size, "source", self.open)

    async def open(self, start: int) -> AsyncGenerator[bytes, None]:
        self.starts.append(start)
        for at in range(start, len(self.data), PIECE):
            yield self.data[at : at + PIECE]


async def _push(target: Target, source: Source) -> list[int]:
    """Push a blob; the progress that was told."""
    told: list[int] = []
    await target.registry.push_blob("a/b", source.stream, told.append)
    return told


async def test_a_blob_is_sent_in_one_request(target: Target) -> None:
    """A session, and one PUT; the progress adds up."""
    told = await _push(target, Source(BLOB))
    assert target.blobs == {str(DIGEST): BLOB}
    assert target.asked == ["POST", "PUT"]
    assert sum(told) == len(BLOB)


async def test_an_empty_blob(target: Target) -> None:
    """No bytes are content, too."""
    await _push(target, Source(b"", of(b""), 0))
    assert target.blobs == {str(of(b"")): b""}


async def test_a_broken_upload_goes_on(target: Target) -> None:
    """From the byte that the registry says; the source is read from a mark before it."""
    target.takes = 300_000
    source = Source(BLOB)
    told = await _push(target, source)
    assert target.blobs == {str(DIGEST): BLOB}
    assert target.asked == ["POST", "PUT", "GET", "PUT"]
    assert sum(told) == len(BLOB)
    assert len(target.waits) == 1


async def test_marks_save_reading_twice(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large blob is not read from its start again."""
    monkeypatch.setattr(streams, "_MARK_EVERY", 2 * PIECE)
    target.takes = 600_000
    source = Source(BLOB)
    await _push(target, source)
    first, second = source.starts
    assert (first, second % PIECE) == (0, 0)
    assert 600_000 - 3 * PIECE < second <= 600_000
    assert target.blobs == {str(DIGEST): BLOB}


async def test_a_session_that_is_gone_is_begun_anew(target: Target) -> None:
    """distribution forgets a session whose request broke."""
    target.takes, target.forgets = 300_000, True
    told = await _push(target, Source(BLOB))
    assert target.blobs == {str(DIGEST): BLOB}
    assert target.asked.count("POST") == 2
    assert sum(told) == len(BLOB)


async def test_a_lost_answer_is_no_second_transfer(target: Target) -> None:
    """The blob is there, although nobody was told."""

    async def lose(request: web.Request) -> web.StreamResponse | None:
        if request.method == "PUT":
            target.blobs[str(DIGEST)] = await request.read()
            target.sessions.clear()
            assert request.transport is not None
            request.transport.abort()
        return None

    target.disturb = lose
    await _push(target, Source(BLOB))
    assert target.asked.count("PUT") == 1


async def test_a_large_request_is_split(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """413, as of a proxy: in pieces from then on."""
    monkeypatch.setattr(push, "PIECE_SIZE", 300_000)

    async def refuse(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=413) if (request.content_length or 0) > 300_000 else None

    target.disturb = refuse
    await _push(target, Source(BLOB))
    assert target.blobs == {str(DIGEST): BLOB}
    assert target.asked.count("PATCH") == len(BLOB) // 300_000


async def test_wrong_content_never_arrives_whole(target: Target) -> None:
    """A source that lies: the last bytes are not sent, and nothing is stored."""
    lie = BLOB[:-1] + b"!"
    with pytest.raises(ContentWrong, match="other content than its digest says"):
        await _push(target, Source(lie))
    assert target.blobs == {}
    assert all(len(kept) < len(BLOB) for kept in target.sessions.values())


@pytest.mark.parametrize("data", [BLOB[:-1], BLOB + b"!", b""])
async def test_another_length_is_refused(target: Target, data: bytes) -> None:
    """Too short, too long, or nothing."""
    with pytest.raises(ContentWrong):
        await _push(target, Source(data))
    assert target.blobs == {}


async def test_the_source_s_error_is_told(target: Target) -> None:
    """Not as a broken connection to the target, and without another try."""

    class Gone(Source):
        async def open(self, start: int) -> AsyncGenerator[bytes, None]:
            yield BLOB[:PIECE]
            raise NotThere("the source lost it")

    with pytest.raises(NotThere, match="the source lost it"):
        await _push(target, Gone(BLOB))
    assert target.asked.count("PUT") <= 1


async def test_a_registry_that_never_takes_it_ends(target: Target) -> None:
    """Five tries, with growing pauses or those it asks for; then an error with its words."""

    async def busy(request: web.Request) -> web.StreamResponse | None:
        if request.method != "PUT":
            return None
        await request.read()
        told = {"errors": [{"code": "UNAVAILABLE", "message": "later\x1b[2J"}]}
        first = target.asked.count("PUT") == 1
        return web.json_response(told, status=503, headers={"Retry-After": "7"} if first else {})

    target.disturb = busy
    with pytest.raises(UpstreamError, match=r"answered 503 \(UNAVAILABLE: later"):
        await _push(target, Source(BLOB))
    assert target.asked.count("PUT") == 5
    assert target.waits[0] == 7
    assert target.waits[1:] == sorted(target.waits[1:])


async def test_a_registry_that_stalls_is_given_up(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that takes no byte, or never answers, does not hold the command for ever."""
    monkeypatch.setattr(push, "_COMMIT_SECONDS", 0.2)

    async def silent(request: web.Request) -> web.StreamResponse | None:
        if request.method == "PUT":
            await request.read()
            with pytest.raises(ConnectionResetError):
                while True:
                    await asyncio.sleep(0.05)
                    if request.transport is None or request.transport.is_closing():
                        raise ConnectionResetError
        return None

    target.disturb = silent
    with pytest.raises(UpstreamError, match="no answer in time"):
        await _push(target, Source(BLOB))


async def test_a_slow_commit_is_waited_for(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry may copy a blob once more before it answers, and takes longer than for others."""
    monkeypatch.setattr(client, "_TIMEOUT", aiohttp.ClientTimeout(sock_read=1))
    monkeypatch.setattr(Registry._followed, "__defaults__", (b"", client._TIMEOUT))

    async def commit(request: web.Request) -> web.StreamResponse | None:
        if request.method == "PUT":
            answer = await target._answer(request)
            await asyncio.sleep(2)
            return answer
        return None

    target.disturb = commit
    await _push(target, Source(BLOB))
    assert target.asked == ["POST", "PUT"]
    assert target.blobs == {str(DIGEST): BLOB}


@pytest.mark.parametrize("answer", ["session", "redirect"])
async def test_credentials_stay_with_the_registry(target: Target, answer: str) -> None:
    """A session on another host, or a redirect to one, gets the bytes without the login."""
    elsewhere: list[str | None] = []
    stored: list[bytes] = []

    async def other(request: web.Request) -> web.Response:
        elsewhere.append(request.headers.get("Authorization"))
        stored.append(await request.read())
        return web.Response(status=201)

    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", other)
    server = TestServer(app)
    await server.start_server()

    async def guarded(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != Credentials("me", "secret").basic:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        place = str(server.make_url("/upload?token=t"))
        if request.method == "POST" and answer == "session":
            return web.Response(status=202, headers={"Location": place})
        if request.method == "PUT":
            return web.Response(status=307, headers={"Location": place})
        return None

    target.disturb = guarded
    try:
        await _push(target, Source(BLOB))
    finally:
        await server.close()
    assert elsewhere == [None]
    assert stored == [BLOB]


@pytest.mark.parametrize("location", ["ftp://x/", "file:///etc/passwd", "http://[", ""])
async def test_a_session_nowhere_is_refused(target: Target, location: str) -> None:
    """Not followed, and not tried for ever."""

    async def lead(request: web.Request) -> web.StreamResponse | None:
        if request.method == "POST":
            return web.Response(status=202, headers={"Location": location})
        return web.Response(status=404)

    target.disturb = lead
    with pytest.raises(UpstreamError):
        await _push(target, Source(BLOB))


async def test_a_token_is_for_pushing_and_mounting(target: Target) -> None:
    """Its scopes are the repository's, and those of repositories to mount from."""
    scopes: list[list[str]] = []

    async def tokens(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            scopes.append(request.query.getall("scope"))
            return web.json_response({"token": f"T{len(scopes)}"})
        if request.headers.get("Authorization") != f"Bearer T{len(scopes)}" or not scopes:
            realm = target.server.make_url("/token")
            challenge = f'Bearer realm="{realm}",service="s"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if request.query.get("from") == "c/d":
            return web.Response(status=201)
        return None

    target.disturb = tokens
    await _push(target, Source(BLOB))
    assert await target.registry.mount("a/b", DIGEST, "c/d") is None
    assert scopes == [
        ["repository:a/b:pull,push"],
        ["repository:a/b:pull,push", "repository:c/d:pull"],
    ]


async def test_a_token_that_ends_meanwhile_is_renewed(target: Target) -> None:
    """401 in the middle: once more, with a new login, and then no more."""
    refused = 1

    async def expired(request: web.Request) -> web.StreamResponse | None:
        nonlocal refused
        if request.method == "PUT" and refused:
            refused -= 1
            await request.read()
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        return None

    target.disturb = expired
    await _push(target, Source(BLOB))
    assert target.blobs == {str(DIGEST): BLOB}
    refused = 2
    with pytest.raises(LoginRefused):
        await _push(target, Source(BLOB))


async def test_no_mount_is_a_session(target: Target) -> None:
    """A registry that does not mount opens a session, or refuses; neither is an error."""
    session = await target.registry.mount("a/b", DIGEST, "c/d")
    assert session
    await target.registry.push_blob("a/b", Source(BLOB).stream, lambda size: None, session)
    assert target.asked == ["POST", "PUT"]

    async def refuse(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=405)

    target.disturb = refuse
    assert await target.registry.mount("a/b", DIGEST, "c/d") == ""


async def test_referrers_without_the_api(target: Target) -> None:
    """The fallback tag lists each referrer once, and keeps those of others."""
    subject = parse(image_body(b"{}"))
    first, second = (
        parse(image_body(b"{}", subject=subject_of(subject), annotations={"n": n})) for n in "ab"
    )
    place = RegistryTarget(target.registry)
    for manifest in (first, second, first):
        await place.put_manifest("a/b", manifest, of(manifest.body), None)
    listed = await place.referrers("a/b", of(subject.body))
    assert listed == {of(first.body), of(second.body)}
    (tag,) = [name for name in target.manifests if re.fullmatch("sha256-[0-9a-f]{64}", name)]
    assert len(parse(target.manifests[tag]).manifests) == 2
    target.manifests[tag] = b'{"manifests": [{"digest": "nonsense"}]}'
    with pytest.raises(UpstreamError, match="list of referrers is damaged"):
        await place.referrers("a/b", of(subject.body))
