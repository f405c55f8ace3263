"""The client of other registries against servers that are slow, broken or hostile."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mayfly.registry.upstream import client
from mayfly.registry.upstream.client import Access, Registry, _lifetime
from mayfly.registry.upstream.credentials import Credentials, CredentialStore
from mayfly.registry.upstream.errors import ContentWrong, LoginRefused, NotThere, UpstreamError
from mayfly.storage.digest import of
from tests.support.process import PATIENCE
from tests.upstream.answering import HOST, answering

MANIFEST = json.dumps({"schemaVersion": 2}).encode()
BLOB = bytes(range(256)) * 40
DIGEST = of(BLOB)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Upstream:
    """A server that answers with one handler, and a client of it."""

    registry: Registry
    server: TestServer
    requests: list[web.Request] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    answer: Handler | None = None

    @property
    def headers(self) -> list[str | None]:
        """The ``Authorization`` of each request."""
        return [request.headers.get("Authorization") for request in self.requests]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """A registry that does what the test says."""
    made: list[Upstream] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        made[0].requests.append(request)
        assert made[0].answer is not None
        return await made[0].answer(request)

    async with answering(Registry, handle) as found:
        made.append(Upstream(found.registry, found.server, waits=found.waits))
        yield made[0]


async def _blob(upstream: Upstream, start: int = 0) -> bytes:
    pieces = upstream.registry.blob("a/b", DIGEST, len(BLOB), start)
    return b"".join([piece async for piece in pieces])


async def test_a_manifest_is_compared_with_its_digest(upstream: Upstream) -> None:
    """Other bytes than the digest names are refused, by digest and by the registry's own header."""

    async def lie(request: web.Request) -> web.Response:
        headers = {"Docker-Content-Digest": str(of(b"other"))}
        return web.Response(body=MANIFEST, headers=headers)

    upstream.answer = lie
    for reference in ("latest", str(of(b"other"))):
        with pytest.raises(ContentWrong, match="does not have digest"):
            await upstream.registry.manifest("a/b", reference)
    assert (await upstream.registry.manifest("a/b", str(of(MANIFEST)))).body == MANIFEST


async def test_an_endless_manifest_is_cut(upstream: Upstream) -> None:
    """No more is read than a manifest may have."""
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(64):
            await response.write(bytes(2**20))
            sent += 2**20
        return response

    upstream.answer = endless
    with pytest.raises(ContentWrong, match="longer than"):
        await upstream.registry.manifest("a/b", "latest")
    assert sent < 40 * 2**20


async def test_a_token_is_fetched_once_and_used(upstream: Upstream) -> None:
    """The challenge's realm gets the credentials, the registry the token."""

    async def tokens(request: web.Request) -> web.Response:
        if request.path == "/token":
            assert request.query["scope"] == "repository:a/b:pull"
            return web.json_response({"token": "TOKEN", "expires_in": 300})
        if request.headers.get("Authorization") != "Bearer TOKEN":
            realm = upstream.server.make_url("/token")
            challenge = f'Bearer realm="{realm}",service="s",scope="repository:a/b:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return web.Response(body=MANIFEST)

    upstream.answer = tokens
    await upstream.registry.manifest("a/b", "latest")
    await upstream.registry.manifest("a/b", "other")
    basic = Credentials("me", "secret").basic
    assert upstream.headers == [None, basic, "Bearer TOKEN", "Bearer TOKEN"]


@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer realm="http://other.test/token",service="s"',
        "Digest x",
        "",
    ],
)
async def test_credentials_go_nowhere_else(upstream: Upstream, challenge: str) -> None:
    """A realm on another host by plain HTTP, or an unknown scheme, gets no credentials."""

    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    upstream.answer = refuse
    with pytest.raises(LoginRefused):
        await upstream.registry.manifest("a/b", "latest")
    assert upstream.headers == [None]


async def test_credentials_do_not_follow_a_redirect(upstream: Upstream) -> None:
    """A blob on another origin is fetched without the login that the registry asked for."""
    other_headers: list[str | None] = []

    async def other(request: web.Request) -> web.Response:
        other_headers.append(request.headers.get("Authorization"))
        return web.Response(body=BLOB)

    app = web.Application()
    app.router.add_get("/{path:.*}", other)
    storage = TestServer(app)
    await storage.start_server()

    async def redirect(request: web.Request) -> web.Response:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        return web.Response(status=307, headers={"Location": str(storage.make_url("/blob"))})

    upstream.answer = redirect
    try:
        assert await _blob(upstream) == BLOB
    finally:
        await storage.close()
    assert upstream.headers == [None, Credentials("me", "secret").basic]
    assert other_headers == [None]


async def test_a_mirror_gets_its_own_login(upstream: Upstream) -> None:
    """The login of the host that it mirrors stays at home."""

    async def ask(request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})

    upstream.answer = ask
    url = str(upstream.server.make_url("")).rstrip("/")
    mirror = url.removeprefix("http://")
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        access = Access(url, HOST, ssl.create_default_context())
        logins = {HOST: Credentials("me", "secret")}
        with pytest.raises(LoginRefused, match=f"docker login {mirror}"):
            await Registry(session, HOST, access, CredentialStore(logins)).manifest("a/b", "1")
        assert upstream.headers == [None]
        logins[mirror] = own = Credentials("mirror", "other")
        with pytest.raises(LoginRefused, match="access denied"):
            await Registry(session, HOST, access, CredentialStore(logins)).manifest("a/b", "1")
    assert upstream.headers == [None, None, own.basic]
    assert all(request.query["ns"] == HOST for request in upstream.requests)


async def test_redirects_end(upstream: Upstream) -> None:
    """A circle of redirects is an error that names the host."""

    async def circle(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": request.path})

    upstream.answer = circle
    with pytest.raises(UpstreamError, match="redirects"):
        await upstream.registry.manifest("a/b", "latest")


@pytest.mark.parametrize("target", ["https://[", "https://h:99999/", "//[/x"])
@pytest.mark.parametrize("by_link", [False, True])
async def test_what_is_no_url_is_named(upstream: Upstream, target: str, by_link: bool) -> None:
    """A redirect or the next page of a list that no client can read is an error in words."""

    async def odd(request: web.Request) -> web.Response:
        if by_link:
            return web.json_response({"tags": []}, headers={"Link": f'<{target}>; rel="next"'})
        return web.Response(status=307, headers={"Location": target})

    upstream.answer = odd
    with pytest.raises(UpstreamError, match=r"no URL|another host"):
        if by_link:
            await upstream.registry.tags("a/b")
        else:
            await upstream.registry.manifest("a/b", "latest")


@pytest.mark.parametrize("told", ["9" * 400, "-" + "9" * 400, "1e308", "true", '"x"', "null"])
def test_any_lifetime_of_a_token(told: str) -> None:
    """Between a minute and a day, whatever the answer says."""
    assert 60.0 <= _lifetime(json.loads(told)) <= 86400.0


async def test_lists_have_a_bound(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pages together, however many there are."""
    monkeypatch.setattr(client, "_MAX_LIST", 10_000)

    async def endless(request: web.Request) -> web.Response:
        link = f'</v2/a/b/tags/list?last={len(upstream.requests)}>; rel="next"'
        return web.json_response({"tags": ["x" * 100] * 20}, headers={"Link": link})

    upstream.answer = endless
    with pytest.raises(UpstreamError):
        await upstream.registry.tags("a/b")
    assert len(upstream.requests) < 10


async def test_rate_limits_are_waited_for(upstream: Upstream) -> None:
    """Retry-After is obeyed; without it the waits grow; both end in an error at last."""

    async def busy(request: web.Request) -> web.Response:
        if len(upstream.requests) == 1:
            return web.Response(status=429, headers={"Retry-After": "7"})
        if len(upstream.requests) == 2:
            return web.Response(status=503)
        return web.Response(body=MANIFEST)

    upstream.answer = busy
    await upstream.registry.manifest("a/b", "latest")
    assert upstream.waits[0] == 7
    assert 0 < upstream.waits[1] <= 4

    async def always(request: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "999999999999"})

    upstream.answer = always
    with pytest.raises(UpstreamError, match="429"):
        await upstream.registry.manifest("a/b", "latest")
    assert max(upstream.waits) <= 600


async def test_a_head_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However steadily its bytes come, each attempt has an end."""
    monkeypatch.setattr(client, "_HEAD_SECONDS", 0.3)
    attempts: list[asyncio.Task[object] | None] = []

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(asyncio.current_task())
        writer.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
        try:
            while True:
                writer.write(b"a")
                await asyncio.sleep(0.02)
        finally:
            writer.close()

    async def no_wait(seconds: float) -> None:
        pass

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, aiohttp.ClientSession() as session:
        reached = Access(f"http://127.0.0.1:{port}", None, ssl.create_default_context())
        registry = Registry(session, HOST, reached, CredentialStore({}), no_wait, attempts=2)
        with pytest.raises(UpstreamError, match="no answer in time"):
            await asyncio.wait_for(registry.manifest("a/b", "latest"), PATIENCE)
        assert len(attempts) == 2
        for attempt in attempts:
            assert attempt is not None
            attempt.cancel()
        await asyncio.wait([one for one in attempts if one], timeout=PATIENCE)


@pytest.mark.parametrize("is_list", [False, True])
async def test_a_cut_document_is_asked_for_again(upstream: Upstream, is_list: bool) -> None:
    """A manifest or a list that breaks off in its body; at last it is an error in words."""
    body = b'{"tags": ["1"]}' if is_list else MANIFEST
    cuts = 2

    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(body)
        await response.prepare(request)
        if len(upstream.requests) > cuts:
            await response.write(body)
            return response
        await response.write(body[:5])
        assert request.transport is not None
        request.transport.close()
        return response

    async def ask() -> None:
        if is_list:
            assert await upstream.registry.tags("a/b") == ["1"]
        else:
            assert (await upstream.registry.manifest("a/b", "latest")).body == MANIFEST

    upstream.answer = cut
    await ask()
    assert len(upstream.requests) == 3
    cuts = 1000
    with pytest.raises(UpstreamError, match="a/b"):
        await ask()
    assert len(upstream.waits) == 2 + 4


async def test_a_cut_blob_goes_on_by_range(upstream: Upstream) -> None:
    """Each attempt asks for what is missing; progress renews the attempts."""

    async def cut(request: web.Request) -> web.StreamResponse:
        asked = request.headers.get("Range", "bytes=0-")
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(BLOB) - start
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"
        await response.prepare(request)
        await response.write(BLOB[start : start + 1000])
        if start + 1000 < len(BLOB):
            assert request.transport is not None
            request.transport.close()
        return response

    upstream.answer = cut
    assert await _blob(upstream) == BLOB
    assert len(upstream.requests) == -(-len(BLOB) // 1000)


async def test_a_server_without_ranges_is_read_from_its_begin(upstream: Upstream) -> None:
    """An answer of 200 to a Range starts at byte 0; what is there already is skipped."""

    async def whole(request: web.Request) -> web.Response:
        return web.Response(body=BLOB)

    upstream.answer = whole
    assert await _blob(upstream, start=5000) == BLOB[5000:]


async def test_another_range_than_asked_for_is_refused(upstream: Upstream) -> None:
    """Bytes of another place never stand in for those asked for."""

    async def other(request: web.Request) -> web.Response:
        return web.Response(
            status=206, body=BLOB[1:], headers={"Content-Range": f"bytes 1-{len(BLOB) - 1}/*"}
        )

    upstream.answer = other
    with pytest.raises(ContentWrong, match="another part"):
        await _blob(upstream, start=5000)


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("body", [BLOB + b"x", BLOB[:-1]])
async def test_wrong_lengths_are_named(upstream: Upstream, body: bytes, is_chunked: bool) -> None:
    """A body that is longer or shorter than its manifest says is an error, told or not."""

    async def wrong(request: web.Request) -> web.StreamResponse:
        if "Range" in request.headers:
            return web.Response(status=416)
        if not is_chunked:
            return web.Response(body=body)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(body)
        return response

    upstream.answer = wrong
    with pytest.raises(UpstreamError, match="longer|416|ended" if is_chunked else "not taken"):
        await _blob(upstream)


async def test_lists_stay_on_their_host_and_end(upstream: Upstream) -> None:
    """Pages follow Link on the same host only."""

    async def pages(request: web.Request) -> web.Response:
        last = request.query.get("last", "")
        link = {"": '</v2/a/b/tags/list?last=a>; rel="next"', "a": ""}[last]
        headers = {"Link": link} if link else {}
        return web.json_response({"tags": [last or "a", "b"]}, headers=headers)

    upstream.answer = pages
    assert await upstream.registry.tags("a/b") == ["a", "b", "a", "b"]

    async def elsewhere(request: web.Request) -> web.Response:
        return web.json_response({"tags": []}, headers={"Link": '<http://x.test/>; rel="next"'})

    upstream.answer = elsewhere
    with pytest.raises(UpstreamError, match="another host"):
        await upstream.registry.tags("a/b")


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"manifests": [1]}', b'{"manifests": [{"digest": "x"}]}']
)
async def test_damaged_lists_are_named(upstream: Upstream, body: bytes) -> None:
    """A list of referrers that cannot be read is an error, not an empty list."""

    async def damaged(request: web.Request) -> web.Response:
        return web.Response(body=body)

    upstream.answer = damaged
    with pytest.raises(UpstreamError):
        await upstream.registry.referrers("a/b", DIGEST)


async def test_a_registry_without_referrers_is_told_apart(upstream: Upstream) -> None:
    """404 means that there is no such API, and absent content is its own error."""

    async def nothing(request: web.Request) -> web.Response:
        return web.Response(status=404)

    upstream.answer = nothing
    assert await upstream.registry.referrers("a/b", DIGEST) is None
    assert await upstream.registry.find_manifest("a/b", "latest") is None
    assert not await upstream.registry.has_blob("a/b", DIGEST)
    with pytest.raises(NotThere, match=HOST):
        await _blob(upstream)
