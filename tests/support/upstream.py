"""A registry that is mirrored: what it has, how often it was asked, and how it misbehaves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.images import digest_of, image_body

Handler = Callable[[web.Request], Awaitable[web.StreamResponse | None]]

PIECE = 64 * 1024


@dataclass
class FakeUpstream:
    """The parts of a registry that are pulled from.

    Attributes:
        url: of the server.
        manifests: repository and tag or digest → body.
        blobs: repository and digest → bytes.
        referrers: repository and digest → descriptors.
        asked: method and path → number of requests.
        headers: of each request, in order.
        first: answers before the registry does, unless it returns None.
        gate: is waited for before the second half of each blob.
        sent: bytes of blobs that were sent.
    """

    url: str = ""
    manifests: dict[tuple[str, str], bytes] = field(default_factory=dict)
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    referrers: dict[tuple[str, str], list[dict[str, object]]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    headers: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    first: Handler | None = None
    gate: asyncio.Event | None = None
    sent: int = 0

    def push(self, repository: str, tag: str, *layers: bytes, config: bytes = b"{}") -> str:
        """Have an image; its digest."""
        body = image_body(config, layers)
        for blob in (config, *layers):
            self.blobs[repository, digest_of(blob)] = blob
        digest = digest_of(body)
        self.manifests[repository, tag] = self.manifests[repository, digest] = body
        return digest

    def count(self, method: str, end: str) -> int:
        """How many requests of a method had a path with this end."""
        return sum(
            count
            for line, count in self.asked.items()
            if line.startswith(f"{method} ") and line.endswith(end)
        )

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        self.asked[f"{request.method} {request.path}"] += 1
        self.headers.append((request.method, request.path, dict(request.headers)))
        if self.first is not None:
            answer = await self.first(request)
            if answer is not None:
                return answer
        repository, _, rest = request.path.removeprefix("/v2/").rpartition("/manifests/")
        if repository:
            body = self.manifests.get((repository, rest))
            if body is None:
                return web.Response(status=404)
            return web.Response(
                body=body,
                content_type="application/vnd.oci.image.manifest.v1+json",
                headers={"Docker-Content-Digest": digest_of(body)},
            )
        repository, _, rest = request.path.removeprefix("/v2/").rpartition("/referrers/")
        if repository:
            return web.json_response({"manifests": self.referrers.get((repository, rest), [])})
        repository, _, rest = request.path.removeprefix("/v2/").rpartition("/blobs/")
        blob = self.blobs.get((repository, rest))
        if blob is None:
            return web.Response(status=404)
        return await self.send(request, blob)

    async def send(self, request: web.Request, blob: bytes) -> web.StreamResponse:
        """Send a blob in pieces, or the part from the start of a Range on."""
        start = request.http_range.start or 0
        response = web.StreamResponse(status=206 if start else 200)
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(blob) - 1}/{len(blob)}"
        response.content_length = len(blob) - start
        await response.prepare(request)
        if request.method == "GET":
            for at in range(start, len(blob), PIECE):
                if self.gate is not None and at >= len(blob) // 2:
                    await self.gate.wait()
                piece = blob[at : at + PIECE]
                await response.write(piece)
                self.sent += len(piece)
        return response


@asynccontextmanager
async def serving_upstream() -> AsyncIterator[FakeUpstream]:
    """Run an upstream without content on loopback."""
    made = FakeUpstream()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    server = TestServer(app)
    await server.start_server()
    made.url = str(server.make_url("")).rstrip("/")
    try:
        yield made
    finally:
        if made.gate is not None:
            made.gate.set()
        await server.close()
