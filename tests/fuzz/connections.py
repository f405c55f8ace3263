"""Exchanges played against a server, each on a connection and from an address of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tests.fuzz.mutations import Exchange

AT_ONCE = 24
GUARD = 90.0
"""Seconds after which an exchange hangs: longer than the longest wait a failed login is given."""

QUIET = 0.05
PATIENCE = 0.5
"""Seconds without a byte after which the client has said all: after an answer, and before one."""

_STATUS = re.compile(rb"HTTP/[0-9]\.[0-9] ([0-9]{3}) ")
"""aiohttp answers with the version it was asked in, whatever that is."""

_SESSION = re.compile(rb"Docker-Upload-UUID: ([0-9a-f-]{36})\r\n")


@dataclass(frozen=True)
class Played:
    """An exchange and its outcome."""

    exchange: Exchange
    received: bytes

    @property
    def statuses(self) -> list[int]:
        """The status of each answer."""
        return [int(status) for status in _STATUS.findall(self.received)]

    @property
    def sessions(self) -> set[str]:
        """The upload sessions that the answers name."""
        return {found.decode() for found in _SESSION.findall(self.received)}

    @property
    def unseen(self) -> int:
        """How many upload sessions it may have opened without the client being told."""
        asked = b"".join(self.exchange.pieces).count(b"HTTP/1.")
        return self.exchange.posts if len(self.statuses) < max(asked, 1) else 0


async def play(host: str, exchanges: Iterable[Exchange], *, answered: bool = False) -> list[Played]:
    """Play exchanges, some at once.

    Args:
        answered: whether the server ends them, since they ask it to; else the client does, where
            nothing more comes.

    Raises:
        AssertionError: one did not come to its end.
    """
    address, _, port = host.rpartition(":")
    waiting, played = iter(enumerate(exchanges)), list[Played]()

    async def work() -> None:
        for number, exchange in waiting:
            # Its own address: the wait after one's failed login is not another's.
            source = f"127.{1 + number // 62500 % 250}.{number // 250 % 250}.{1 + number % 250}"
            try:
                async with asyncio.timeout(GUARD):
                    received = await _one(address, int(port), source, exchange, answered)
            except TimeoutError:
                raise AssertionError(f"no end after {GUARD} s: {exchange}") from None
            played.append(Played(exchange, received))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return played


async def _one(address: str, port: int, source: str, exchange: Exchange, answered: bool) -> bytes:
    reader, writer = await asyncio.open_connection(address, port, local_addr=(source, 0))
    received = bytearray()
    try:
        for piece in exchange.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if exchange.vanish:
            return b""
        await _read(reader, received, quiet=not answered)
        if not reader.at_eof():
            writer.write_eof()
            await _read(reader, received, quiet=False)
    except OSError:
        pass  # the server may close on what it refuses, with bytes of ours still under way
    finally:
        writer.transport.abort()
    return bytes(received)


async def _read(reader: asyncio.StreamReader, into: bytearray, *, quiet: bool) -> None:
    """Read to the end, or until nothing came for a while."""
    while True:
        pause = None if not quiet else QUIET if into else PATIENCE
        try:
            async with asyncio.timeout(pause):
                piece = await reader.read(65536)
        except TimeoutError:
            return
        if not piece:
            return
        into += piece
