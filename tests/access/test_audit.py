"""The audit file: repeats are folded, its growth and its size are bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mayfly.registry.access import audit as audit_module
from mayfly.registry.access.audit import ADDRESS_BURST, BURST, FOLD_SECONDS, RATE, Audit
from mayfly.registry.access.needs import PULL, AccessRequest
from tests.auth.clock import Clock


class Recorded:
    """An audit whose time is the test's."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.clock = Clock()
        self.audit = Audit(file, self.clock)

    def refused(self, user: str = "eve", address: str = "192.0.2.1", detail: str = "no") -> None:
        """Record a refusal."""
        http: Any = SimpleNamespace(remote=address)
        self.audit.refused(
            http, AccessRequest("tags", "GET", PULL, "team/app"), user, "denied", detail
        )

    async def lines(self) -> list[dict[str, str]]:
        """All that is written, once it is."""
        writing = asyncio.create_task(self.audit.write())
        await asyncio.sleep(0)
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        return [json.loads(line) for line in self.file.read_text().splitlines()]


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path / "audit.jsonl")


async def test_repeats_are_folded(recorded: Recorded) -> None:
    """A stale credential that is tried a thousand times makes two lines."""
    for _ in range(1000):
        recorded.refused()
    recorded.refused("mallory")
    lines = await recorded.lines()
    assert [(line["user"], line.get("repeated")) for line in lines] == [
        ("eve", None),
        ("mallory", None),
        ("eve", "999"),
    ]
    assert recorded.audit.refusals == {("eve", "192.0.2.1"): 1000, ("mallory", "192.0.2.1"): 1}


async def test_what_repeats_later_is_told_again(recorded: Recorded) -> None:
    """After `FOLD_SECONDS` a refusal has a line of its own, after the count of those before."""
    for _ in range(3):
        recorded.refused()
    recorded.clock.advance(FOLD_SECONDS + 1)
    recorded.refused()
    assert [line.get("repeated") for line in await recorded.lines()] == [None, "2", None]


async def test_address_has_an_allowance(recorded: Recorded) -> None:
    """Made-up names from one address, or one /64, fill nothing, and hide nobody else's refusal."""
    for number in range(5000):
        recorded.refused(f"made up {number}", f"2001:db8::{number:x}")
    recorded.refused("eve", "192.0.2.1")
    lines = await recorded.lines()
    assert len(lines) == ADDRESS_BURST + 1
    assert lines[-1]["user"] == "eve"
    assert lines[-1]["dropped_before"] == str(5000 - ADDRESS_BURST)


async def test_log_has_an_allowance(recorded: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    """Made-up names do not fill the journal either, with or without ``--audit``."""
    for number in range(5000):
        recorded.refused(f"made up {number}")
    assert len(caplog.records) == ADDRESS_BURST


async def test_all_have_an_allowance(recorded: Recorded) -> None:
    """However many addresses: so many lines at once, and so many a second."""
    for second in range(11):
        for number in range(2000):
            recorded.refused("eve", f"198.51.{number % 250}.{number // 250}", f"at {second}")
        recorded.clock.advance(1)
    lines = await recorded.lines()
    assert BURST <= len(lines) <= BURST + 10 * RATE + 1


async def test_file_is_rotated(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of bounded size, both private; the newest lines are in the one that was named."""
    monkeypatch.setattr(audit_module, "MAX_FILE_BYTES", 2000)
    for turn in range(40):
        recorded.refused(f"user {turn}")
        recorded.clock.advance(1)
        await recorded.lines()
    older = recorded.file.with_name("audit.jsonl.1")
    assert sorted(os.listdir(recorded.file.parent)) == [recorded.file.name, older.name]
    for file in (recorded.file, older):
        assert file.stat().st_size <= 2000
        assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(recorded.file.read_text().splitlines()[-1])["user"] == "user 39"


async def test_pipe_is_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--audit /dev/stderr` and the like are written, and stay."""
    monkeypatch.setattr(audit_module, "MAX_FILE_BYTES", 10)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    recorded = Recorded(fifo)
    for turn in range(3):
        recorded.refused(f"user {turn}")
    recorded.file = tmp_path / "empty"
    recorded.file.touch()
    await recorded.lines()
    assert os.read(reader, 10_000).count(b"\n") == 3
    os.close(reader)
    assert not fifo.with_name("fifo.1").exists()
