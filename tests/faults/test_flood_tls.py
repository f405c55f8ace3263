"""Floods of handshakes that never come to their end: bounded, cut, and nobody else suffers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import struct
from collections.abc import Callable

import pytest

from tests.faults.disk_pushes import Pushes, noise
from tests.faults.flood_load import LONG, MIB, Costs, Line, connected, many_files, tell, timed
from tests.support.images import digest_of
from tests.support.process import PATIENCE, Mayfly, until

Start = Callable[..., Mayfly]

FLOOD = 5000 if LONG else 1000
ROUNDS = 40 if LONG else 8

EACH = 80 * 1024
"""The bound on what a handshake may take; some 55 KiB were measured."""


def trust_in(server: Mayfly) -> ssl.SSLContext:
    """What a client has to trust."""
    return ssl.create_default_context(cafile=server.state_dir / "ca.crt")


def hello() -> bytes:
    """The first message of a client."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="localhost"
    )
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def endless_hello(size: int = 120_000) -> bytes:
    """A first message of a size, in as many records as it takes, without its last byte."""
    message = b"\x01" + struct.pack(">I", size)[1:] + b"\x03\x03" + noise(size - 3, "hello")
    pieces = [message[at : at + 16384] for at in range(0, len(message), 16384)]
    return b"".join(b"\x16\x03\x01" + struct.pack(">H", len(one)) + one for one in pieces)


HELLO = hello()
KINDS: dict[str, tuple[bytes, bool]] = {
    # What is sent, and whether byte by byte.
    "silent": (b"", False),
    "begun": (HELLO[:100], False),
    "stopped after the server's answer": (HELLO, False),
    "dripping": (HELLO, True),
    "endless": (endless_hello(), False),
    "garbage": (noise(2000, "garbage"), False),
    "no TLS": (b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", False),
}


async def hostile(host: str, sent: bytes, drips: bool) -> None:
    """One such client, until the server ends the connection."""
    loop = asyncio.get_running_loop()
    with await connected(host) as line:

        async def send() -> None:
            with contextlib.suppress(ConnectionError):
                for at in range(0, len(sent), 1 if drips else len(sent)):
                    await loop.sock_sendall(line, sent[at:][:1] if drips else sent)
                    await asyncio.sleep(0.2 if drips else 0)

        sending = asyncio.create_task(send())
        with contextlib.suppress(ConnectionError):
            while await loop.sock_recv(line, 65536):
                pass
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


@pytest.mark.alone
async def test_handshakes_that_never_end(start_mayfly: Start) -> None:
    """A thousand of them of every kind are ended; beside them normal clients are served."""
    many_files()
    server = start_mayfly("--tls", "auto", "--header-timeout", "4s", "--drain-timeout", "1s")
    trust = trust_in(server)
    client = Pushes(server.host, trust)
    layer = noise(MIB // 4, "layer")
    client.push("app", "1", layer)
    costs = Costs(server)
    before = costs.descriptors

    async def normal() -> None:
        async with Line(server.host, trust=trust) as line:
            assert (await line.ask("GET", "/v2/app/manifests/1")).status == 200
            answer = await line.ask("GET", f"/v2/app/blobs/{digest_of(layer)}")
            assert digest_of(answer.body) == digest_of(layer)

    calm = await timed(normal, ROUNDS, 5)
    kinds = itertools.islice(itertools.cycle(KINDS.values()), FLOOD)
    flood = [asyncio.create_task(hostile(server.host, *kind)) for kind in kinds]
    await until(lambda: costs.established > FLOOD // 3)
    flooded = await timed(normal, ROUNDS, 5)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*flood)
    await until(lambda: costs.descriptors <= before)
    tell(f"{FLOOD} handshakes: calm {calm}, flood {flooded}")
    tell(f"growth {costs.growth / MIB:.1f} MiB")
    # Most of them: the flood begins in one moment, in the same event loop as the normal clients.
    assert flooded.quantile(0.5) < 10 * max(calm.quantile(0.5), 0.05)
    assert costs.growth < FLOOD * EACH
    assert "Traceback" not in server.output()


async def test_more_handshakes_than_connections(start_mayfly: Start) -> None:
    """Those that hold every place are ended, and waiting clients are served."""
    many_files()
    options = ("--header-timeout", "1s", "--max-connections", "50", "--drain-timeout", "1s")
    server = start_mayfly("--tls", "auto", *options)
    kinds = itertools.islice(itertools.cycle(("silent", "begun", "dripping")), 200)
    flood = [asyncio.create_task(hostile(server.host, *KINDS[kind])) for kind in kinds]
    await until(lambda: Costs(server).established >= 50)
    async with asyncio.timeout(PATIENCE), Line(server.host, trust=trust_in(server)) as line:
        assert (await line.ask("GET", "/v2/")).status == 200
        await asyncio.gather(*flood)
    assert "Traceback" not in server.output()
