"""Floods of well-meaning clients: none is starved or turned away, and memory has a bound."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.auth.users import hash_password
from mayfly.registry.http.connections import unsent_limit
from tests.faults.disk_pushes import Pushes, noise
from tests.faults.flood_load import (
    LONG,
    MIB,
    Costs,
    Line,
    connected,
    many_files,
    request,
    tell,
    timed,
)
from tests.support.client import basic
from tests.support.images import digest_of
from tests.support.process import Mayfly, until

Start = Callable[..., Mayfly]

NODES, IMAGES = (200, 20) if LONG else (30, 4)
SLOW = 500 if LONG else 50
ROUNDS = 20 if LONG else 4
USERS = 200 if LONG else 20
UNFINISHED = 2000 if LONG else 100

QUICK = ("--drain-timeout", "1s")
"""Clients that vanish in the middle of a pull are not waited for at the end."""

GROWTH = 96 * MIB
"""The bound on what a flood may add to the server's memory, also in its long form."""


async def test_fleet_at_once(start_mayfly: Start) -> None:
    """Every node pulls every image at the same time; all get all of it, in bounded memory."""
    many_files()
    server = start_mayfly(*QUICK)
    client = Pushes(server.host)
    base = noise(MIB // 2, "base")
    for number in range(IMAGES):
        client.push(f"app{number}", "1", base, noise(MIB // 8, number))
    costs = Costs(server)
    images = dict(client.kept)

    async def node() -> None:
        have: set[str] = set()
        async with Line(server.host) as line:
            for (repository, tag), (digest, blobs) in images.items():
                found = await line.ask("HEAD", f"/v2/{repository}/manifests/{tag}")
                assert found.headers["docker-content-digest"] == digest
                assert (await line.ask("GET", f"/v2/{repository}/manifests/{digest}")).status == 200
                for blob in blobs:
                    if blob not in have:
                        answer = await line.ask("GET", f"/v2/{repository}/blobs/{blob}")
                        assert (answer.status, digest_of(answer.body)) == (200, blob)
                        have.add(blob)

    times = await timed(node, 1, NODES)
    tell(f"fleet {NODES} x {IMAGES}: per node {times}; growth {costs.growth / MIB:.1f} MiB")
    assert costs.growth < GROWTH


@pytest.mark.alone
async def test_slow_readers(start_mayfly: Start) -> None:
    """Beside many that read a kibibyte a second, normal clients are about as quick as alone."""
    many_files()
    server = start_mayfly(*QUICK)
    client = Pushes(server.host)
    layer, small = noise(32 * MIB, "large"), noise(MIB // 4, "small")
    client.push("app", "1", layer, small)
    large_blob, small_blob = (f"/v2/app/blobs/{digest_of(data)}" for data in (layer, small))
    costs = Costs(server)

    async def normal() -> None:
        async with Line(server.host) as line:
            assert (await line.ask("GET", "/v2/app/manifests/1")).status == 200
            answer = await line.ask("GET", small_blob)
            assert len(answer.body) == len(small)

    slow_bytes = 0

    async def slow() -> None:
        nonlocal slow_bytes
        loop = asyncio.get_running_loop()
        with await connected(server.host) as line:
            await loop.sock_sendall(line, request("GET", large_blob))
            while piece := await loop.sock_recv(line, 1024):
                slow_bytes += len(piece)
                await asyncio.sleep(1)
        raise AssertionError("a slow reader was cut")

    calm = await timed(normal, ROUNDS, 20)
    readers = [asyncio.create_task(slow()) for _ in range(SLOW)]
    try:
        await until(lambda: slow_bytes >= SLOW * 1024)
        flooded = await timed(normal, ROUNDS, 20)
        queued = costs.queued
        assert [reader.exception() for reader in readers if reader.done()] == []
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    tell(f"{SLOW} slow readers: calm {calm}, flood {flooded}")
    tell(f"growth {costs.growth / MIB:.1f} MiB, {queued / MIB:.0f} MiB wait in the kernel")
    # What is unsent, and what is on its way to the client.
    assert queued < sum(map(unsent_limit, range(SLOW))) + SLOW * MIB
    assert flooded.quantile(0.99) < 5 * max(calm.quantile(0.99), 0.05)
    assert costs.growth < GROWTH


async def test_login_storm(start_mayfly: Start, tmp_path: Path) -> None:
    """Everyone logs in at once while others guess: right passwords pass, wrong ones never do."""
    many_files()
    users = {f"user{n}": hash_password(f"password {n}", rounds=5) for n in range(USERS)}
    lines = (f"{name}:{made.decode()}\n" for name, made in users.items())
    (tmp_path / "htpasswd").write_text("".join(lines))
    (tmp_path / "grants.toml").write_text("")
    server = start_mayfly(*QUICK, "--auth", str(tmp_path))
    costs = Costs(server)
    answers: list[int] = []

    async def login(name: str, password: str, source: str) -> int:
        async with Line(server.host, source) as line:
            target = "/auth/token?service=mayfly"
            return (await line.ask("GET", target, dict([basic(name, password)]))).status

    async def guess(number: int) -> None:
        turn = 0
        while True:
            name = f"user{turn % USERS}" if turn % 2 else f"nobody{number}"
            answers.append(await login(name, f"guess {number} {turn}", "127.0.9.9"))
            turn += 1

    async def right(number: int) -> None:
        source = f"127.0.1.{number % 250 + 1}"
        assert await login(f"user{number}", f"password {number}", source) == 200

    guessing = [asyncio.create_task(guess(number)) for number in range(20)]
    try:
        await until(lambda: bool(answers))
        numbers = iter(range(USERS))
        times = await timed(lambda: right(next(numbers)), 1, USERS)
    finally:
        for one in guessing:
            one.cancel()
        await asyncio.gather(*guessing, return_exceptions=True)
    tell(f"{USERS} logins: {times}; {len(answers)} guesses, growth {costs.growth / MIB:.1f} MiB")
    assert set(answers) == {401}
    assert costs.growth < GROWTH


async def test_unfinished_uploads(start_mayfly: Start) -> None:
    """Uploads begun and left take no descriptors and little memory, and expire."""
    many_files()
    server = start_mayfly(*QUICK, "--upload-expiry", "2s")
    costs = Costs(server)
    before = costs.descriptors
    gate = asyncio.Semaphore(50)

    async def leave(number: int) -> None:
        async with gate, Line(server.host) as line:
            begun = await line.ask("POST", f"/v2/app{number % 7}/blobs/uploads/")
            assert begun.status == 202
            # Half of what it announces; then the client is gone.
            line.begin(
                "PATCH", begun.headers["location"], {"Content-Length": "131072"}, b"x" * 65536
            )
            await line.writer.drain()

    await asyncio.gather(*(leave(number) for number in range(UNFINISHED)))
    tell(f"{UNFINISHED} unfinished uploads: growth {costs.growth / MIB:.1f} MiB")
    assert costs.growth < GROWTH

    def sessions() -> int:
        return sum(d.endswith("/_uploads") and len(names) for d, names, _ in os.walk(server.root))

    server.wait_for(lambda: not sessions() and costs.descriptors <= before + 2)
    tell(f"after expiry: {costs.descriptors} descriptors, {before} before")


async def test_pushing_crowd(start_mayfly: Start) -> None:
    """Many push at once as fast as they can: their buffers share one bounded amount of memory."""
    many_files()
    server = start_mayfly(*QUICK)
    costs = Costs(server)
    crowd, size = (400, 4 * MIB) if LONG else (40, MIB)

    async def push(number: int) -> None:
        body = number.to_bytes(4) * (size // 4)
        async with Line(server.host) as line:
            target = f"/v2/app/blobs/uploads/?digest={digest_of(body)}"
            assert (await line.ask("POST", target, None, body)).status == 201

    numbers = iter(range(crowd))
    times = await timed(lambda: push(next(numbers)), 1, crowd)
    tell(f"{crowd} pushes of {size // MIB} MiB: {times}; growth {costs.growth / MIB:.1f} MiB")
    assert costs.growth < 2 * GROWTH
