"""Events on slow links: as long as pieces arrive an event may take its time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mayfly.registry.api import page

PIECES = 8


class Link:
    """A browser that takes a piece of an event in a time.

    Args:
        seconds: for each piece.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.received = b""
        self.dropped = False

    async def send_piece(self, piece: bytes) -> None:
        """See `registry.http.request.HTTPRequest.send_piece`."""
        await asyncio.sleep(self._seconds)
        self.received += piece

    def drop(self) -> None:
        """See `registry.http.request.HTTPRequest.drop`."""
        self.dropped = True


async def test_slow_browsers_get_the_whole_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than `SEND_SECONDS` altogether, but not for any piece."""
    monkeypatch.setattr(page, "_PIECE", 10)
    monkeypatch.setattr(page, "SEND_SECONDS", 1.0)
    event = bytes(range(10 * PIECES))
    link: Any = Link(1.2 / PIECES)
    await page._send(link, event)
    assert link.received == event
    assert not link.dropped


async def test_browsers_that_take_nothing_are_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first piece that takes too long."""
    monkeypatch.setattr(page, "SEND_SECONDS", 0.01)
    link: Any = Link(60)
    with pytest.raises(ConnectionError):
        await page._send(link, b"event")
    assert link.dropped
