"""The control socket: what a client is told when a request cannot be answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mayfly.registry.control import client
from mayfly.registry.control.socket import MAX_LINE, ControlServer, Message
from mayfly.registry.errors import LifetimeError


async def _status(request: Message) -> Message:
    return {"pid": 1}


async def _stop(request: Message) -> Message:
    raise OSError("a secret path")


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[Path]:
    """The state directory of a server whose stop fails."""
    server = ControlServer(tmp_path, {"status": _status, "stop": _stop})
    await server.start()
    yield tmp_path
    await server.close()


async def test_a_command_that_fails(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The client is told so, and not that the server has ended; the cause is in the log."""
    with pytest.raises(LifetimeError, match=r"^the server failed to answer stop; its log"):
        await asyncio.to_thread(client.ask, state, "stop")
    assert "a secret path" in caplog.text
    assert await asyncio.to_thread(client.ask, state, "status") == {"pid": 1}


async def test_a_request_that_is_too_long(state: Path) -> None:
    """It is refused in words, whatever part of it the server has read."""
    for size in (MAX_LINE, 50 * MAX_LINE):
        with pytest.raises(LifetimeError, match=f"a line of at most {MAX_LINE} bytes"):
            await asyncio.to_thread(client.ask, state, "status", images="x" * size)
