"""Readers of the rollout page's events that read nothing, over real sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from mayfly.registry.api import page
from mayfly.registry.page import feed as feeds
from mayfly.registry.page.feed import MAX_SENDING, Feed
from mayfly.registry.page.view import Failed, NodeView, View
from tests.security.registries import Registry, by_password
from tests.support.process import PATIENCE, resident_bytes, until
from tests.support.views import view

MIB = 1 << 20
EVENTS = "/mayfly/v1/events"
LARGE = 4 * MIB
"""Bytes of a whole event, more than the kernel keeps for a reader."""


def large(number: int) -> View:
    """A view of its own."""
    why = f"{number} " + "x" * 1000
    nodes = {
        f"worker-{place}": NodeView("fm", failed=(Failed(0, why),))
        for place in range(LARGE // 1000)
    }
    return view(nodes=nodes)


async def follow(made: Registry, number: int = 0) -> socket.socket:
    """Ask for events on a connection from an address of its own, and read nothing."""
    name, _, port = made.server.host.rpartition(":")
    line = socket.socket()
    line.setblocking(False)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    line.bind((f"127.0.{1 + number // 40}.{1 + number % 40}", 0))
    loop = asyncio.get_running_loop()
    await loop.sock_connect(line, (name, int(port)))
    await loop.sock_sendall(line, made.server.render("GET", EVENTS, [by_password("admin")], b""))
    return line


async def rest_of(line: socket.socket) -> int:
    """Read to the end; the number of bytes."""
    found = 0
    try:
        while data := await asyncio.get_running_loop().sock_recv(line, MIB):
            found += len(data)
    except ConnectionResetError:
        pass
    finally:
        line.close()
    return found


def turning(feed: Feed) -> None:
    """Have each look find another view."""
    number = 0

    async def look() -> View:
        nonlocal number
        number += 1
        return large(number)

    feed._look = look


async def test_a_reader_that_takes_nothing_is_cut(
    closed: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an event; one that reads gets all of it meanwhile."""
    monkeypatch.setattr(page, "SEND_SECONDS", 2.0)
    monkeypatch.setattr(feeds, "QUIET_SECONDS", 0.5)
    feed = closed.hooks.feed()
    shown = large(1)

    async def look() -> View:
        return shown

    feed._look = look
    line = await follow(closed)
    reader, writer = await closed.server.connect()
    async with asyncio.timeout(PATIENCE):
        writer.write(closed.server.render("GET", EVENTS, [by_password("admin")], b""))
        await reader.readuntil(b"\n\n")
        found = b""
        while not found.endswith(b"\n\n\r\n"):
            found += await reader.read(MIB)
    writer.close()
    assert len(found) > LARGE
    await until(lambda: feed.streams == 0)
    assert await rest_of(line) < LARGE
    assert feed._sending.bytes == 0


async def test_memory_of_readers_that_take_nothing(
    closed: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, and each of another event: those that take longest are cut."""
    monkeypatch.setattr(feeds, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(feeds, "_SHARE", 1.0)
    feed = closed.hooks.feed()
    turning(feed)
    lines, most, before = [], 0, resident_bytes()
    for number in range(32):
        lines.append(await follow(closed, number))
        version = feed._version
        await until(lambda version=version: feed._version > version + 1)
        most = max(most, feed._sending.bytes)
    assert 0 < most <= MAX_SENDING + LARGE
    assert feed.streams <= 2 + MAX_SENDING // LARGE
    assert resident_bytes() - before < 16 * LARGE, "half of what all of them would take"
    for line in lines:
        line.close()
    await until(lambda: feed.streams == 0)
