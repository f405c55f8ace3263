"""Clients that are slow or stand still, over TLS and not: none that makes progress is cut."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.faults.disk_pushes import Pushes, noise
from tests.faults.flood_load import MIB, Costs, Crawler, Line, request
from tests.support.images import digest_of
from tests.support.process import PATIENCE, Mayfly, until

UNREAD = [number * MIB // 4 for number in range(1, 21)]
"""Bytes of answers that nobody reads. The kernel takes the smaller ones whole. Of others a part is
left, of some so little that they have been handled when it is."""


@dataclass(frozen=True)
class Reached:
    """A server, and how clients reach it.

    Attributes:
        trust: None without TLS.
    """

    server: Mayfly
    trust: ssl.SSLContext | None

    @property
    def pushes(self) -> Pushes:
        """A client that is quick."""
        return Pushes(self.server.host, self.trust)

    def line(self) -> Line:
        """A connection of a quick client."""
        return Line(self.server.host, trust=self.trust)

    def crawler(self) -> Crawler:
        """A connection of a slow one."""
        return Crawler(self.server.host, self.trust)


Start = Callable[..., Reached]


@pytest.fixture(params=["plain", "tls"])
def start(request: pytest.FixtureRequest, start_mayfly: Callable[..., Mayfly]) -> Start:
    """Start a server with some options."""

    def started(*options: str) -> Reached:
        tls = "auto" if request.param == "tls" else "off"
        server = start_mayfly("--tls", tls, "--auth", "none", "--drain-timeout", "1s", *options)
        if tls == "off":
            return Reached(server, None)
        return Reached(server, ssl.create_default_context(cafile=server.state_dir / "ca.crt"))

    return started


async def test_slow_headers(start: Start) -> None:
    """A header that never ends is cut, as is a connection that asks for nothing; idle ones stay."""
    found = start("--header-timeout", "1s")
    async with found.line() as kept, found.crawler() as dripping, found.crawler() as silent:
        assert (await kept.ask("GET", "/v2/")).status == 200

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in request("GET", "/v2/", {"X": "y" * 4000}):
                    await dripping.send(bytes([byte]))
                    await asyncio.sleep(0.1)

        dripper = asyncio.create_task(drip())
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(dripping.ended(), silent.ended())
        dripper.cancel()
        # It was silent all that time, and has a right to.
        assert (await kept.ask("GET", "/v2/")).status == 200
        async with found.line() as other:
            assert (await other.ask("GET", "/v2/")).status == 200


async def test_slow_bodies(start: Start) -> None:
    """A push that stalls is cut and its session kept; one that crawls on goes through."""
    found = start("--stall-timeout", "2s")
    data = noise(12 * 1024, "slow")
    async with found.line() as line:
        stalled = (await line.ask("POST", "/v2/app/blobs/uploads/")).headers["location"]
        target = f"/v2/app/blobs/uploads/?digest={digest_of(data)}"
        length = {"Content-Length": str(len(data))}

        async def stall() -> None:
            async with found.crawler() as sending:
                await sending.send(request("PATCH", stalled, length) + data[:5000])
                async with asyncio.timeout(PATIENCE):
                    await sending.ended()

        async def crawl() -> int:
            async with found.line() as crawling:
                crawling.begin("POST", target, length)
                for at in range(0, len(data), 1024):
                    crawling.writer.write(data[at : at + 1024])
                    await asyncio.sleep(0.5)
                return (await crawling.answer()).status

        _, status = await asyncio.gather(stall(), crawl())
        assert status == 201
        answer = await line.ask("GET", stalled)
        assert (answer.status, answer.headers["range"]) == (204, "0-4999")


async def test_stalled_readers(start: Start) -> None:
    """A pull that takes nothing more is cut and frees its place; one that crawls on is not."""
    found = start("--stall-timeout", "3s")
    layer = noise(8 * MIB, "layer")
    found.pushes.push("app", "1", layer)
    costs = Costs(found.server)
    async with found.crawler() as stalled, found.crawler() as crawling:
        for crawler in (stalled, crawling):
            await crawler.send(request("GET", f"/v2/app/blobs/{digest_of(layer)}"))
        received = 0

        async def crawl() -> None:
            nonlocal received
            while piece := await crawling.receive(16384):
                received += len(piece)
                await asyncio.sleep(0.2)

        reading = asyncio.create_task(crawl())
        await until(lambda: received > 0)
        # The one that is left is the crawling client's.
        await until(lambda: costs.established == 1)
        at = received
        await until(lambda: received > at + 65536)
        reading.cancel()


@pytest.mark.parametrize("then", ["keep-alive", "close"])
async def test_answers_that_nobody_reads(start: Start, then: str) -> None:
    """They hold no connection for ever, be it kept open or closing, and handled or not."""
    found = start("--stall-timeout", "1s")
    layers = {size: noise(size, size) for size in UNREAD}
    found.pushes.push("app", "1", *layers.values())
    costs = Costs(found.server)
    before = costs.descriptors
    async with contextlib.AsyncExitStack() as stack:
        for layer in layers.values():
            crawler = await stack.enter_async_context(found.crawler())
            target = f"/v2/app/blobs/{digest_of(layer)}"
            await crawler.send(request("GET", target, {"Connection": then}))
        await until(lambda: costs.descriptors > before)
        await until(lambda: costs.descriptors <= before)
    assert "Traceback" not in found.server.output()
