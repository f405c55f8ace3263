"""A body on its way into an upload: how much is held, and that no write outlives its request."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from mayfly.registry.http.receive import Receiver
from tests.http.test_body import Greedy, body_of
from tests.support.beside import run_what_is_ready
from tests.support.wire import TIMEOUT

MIB = 1024 * 1024


class Upload:
    """Notes what is written; a write takes as long as the gate is shut."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.written: list[int] = []

    def write(self, pieces: list[memoryview], at: int) -> None:
        self.begun.set()
        assert self.gate.wait(TIMEOUT)
        assert sum(self.written) == at
        self.written.append(sum(map(len, pieces)))


def _start(length: int, upload: Upload, receiver: Receiver) -> asyncio.Task[int]:
    body, _ = body_of(Greedy([b"x" * length]), length)
    activity: Any = SimpleNamespace(bytes_in=0)
    http: Any = SimpleNamespace(body=body)
    made: Any = upload
    return asyncio.create_task(receiver.receive(activity, http, made, 0))


async def test_batches_shrink_under_way() -> None:
    """An upload that began alone holds less as soon as many run."""
    upload = Upload()
    receiver = Receiver()
    running = _start(6 * MIB, upload, receiver)
    await asyncio.to_thread(upload.begun.wait, TIMEOUT)
    receiver.active = 64
    upload.gate.set()
    assert await running == 6 * MIB
    assert set(upload.written[:2]) == {MIB}
    assert set(upload.written[3:]) == {256 * 1024}


async def test_a_cancelled_reader_leaves_no_write_behind() -> None:
    """A request that is cut off in the middle ends when its last write has."""
    upload = Upload()
    running = _start(3 * MIB, upload, Receiver())
    await asyncio.to_thread(upload.begun.wait, TIMEOUT)
    await run_what_is_ready(10)
    running.cancel()
    await run_what_is_ready(10)
    assert not running.done()
    upload.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert upload.written == [MIB]
