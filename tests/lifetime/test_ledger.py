"""The ledger's file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from registry.lifetime import ledger as ledgers
from registry.lifetime.ledger import MAX_AGE, Ledger
from tests.lifetime.fakes import FakeClock, digest

A, B = digest("a"), digest("b")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "coverage.jsonl"


def open_ledger(file: Path, clock: FakeClock) -> Ledger:
    return Ledger(file, clock)


def test_everything_is_read_again(file: Path) -> None:
    """Each kind of fact is there after a restart, twice over."""
    clock = FakeClock()
    first = open_ledger(file, clock)
    first.confirmed("n", "r", A, head=True, tag="1")
    first.again("n", "r", A)
    first.blob_failed("n", "r", B, 99)
    first.pushed("p", "r", A, ["1", "2"])
    first.close()
    for _ in range(2):
        read = open_ledger(file, clock)
        assert read.nodes() == ["n"]
        confirmed = read.confirmation("n", "r", A)
        assert confirmed is not None
        assert confirmed.head
        assert confirmed.again
        assert read.failed_after(confirmed.order, "n", "r", {B})
        assert read.pushers() == {("r", A): ["p"]}
        assert read.pullers() == {("r", A): ["n"]}
        assert read.tags("r", A) == ["1", "2"]
        assert read.asked_again() == {"n": 1}
        read.close()


def test_torn_and_foreign_lines(file: Path) -> None:
    """A torn last line, and lines that are no facts, are skipped; the rest counts."""
    clock = FakeClock()
    first = open_ledger(file, clock)
    first.confirmed("n", "r", A, head=False)
    first.confirmed("n", "r", B, head=False)
    first.close()
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    foreign = [
        b"[]\n",
        b'{"fact": "has"}\n',
        b'{"time": "x", "fact": "has", "node": 1}\n',
        b"\xff\n",
    ]
    mended = (
        b'{"time": 9999999999, "fact": "mended", "node": "n", "repository": "r", "digest": "d"}\n'
    )
    file.write_bytes(b"".join([*lines[:3], *foreign, mended, lines[3][:-20]]))
    read = open_ledger(file, clock)
    assert read.confirmation("n", "r", A)
    assert read.confirmation("n", "r", B) is None
    read.confirmed("n", "r", B, head=False)
    read.close()
    assert open_ledger(file, clock).confirmation("n", "r", B)


def test_other_version(file: Path) -> None:
    """A file that is not ours in this form is taken for empty."""
    file.write_text('{"mayfly-ledger": 2}\n{"fact": "has"}\n')
    assert open_ledger(file, FakeClock()).nodes() == []


async def test_old_facts_are_dropped(file: Path) -> None:
    """A ledger of an upgrade long ago says nothing, and reading it does not make it younger."""
    clock = FakeClock()
    open_ledger(file, clock).confirmed("n", "r", A, head=False)
    await clock.tick(MAX_AGE - 1)
    assert open_ledger(file, clock).nodes() == ["n"]
    await clock.tick(2)
    assert open_ledger(file, clock).nodes() == []


@pytest.mark.parametrize("jump", [3 * MAX_AGE, -3 * MAX_AGE])
async def test_clock_that_is_set(file: Path, jump: float) -> None:
    """It makes nothing old or young, whether it is set while the server runs or after its end."""
    clock = FakeClock()
    first = open_ledger(file, clock)
    first.confirmed("before", "r", A, head=False)
    clock.set(jump)
    first.confirmed("after", "r", A, head=False)
    confirmed = first.confirmation("before", "r", A)
    assert confirmed is not None
    assert first.age(confirmed) <= 1
    first.close()
    for _ in range(2):
        clock.set(jump)
        read = open_ledger(file, clock)
        assert read.nodes() == ["before", "after"]
        read.close()
    await clock.tick(MAX_AGE - 5)
    assert open_ledger(file, clock).nodes() == ["before", "after"]
    await clock.tick(6)
    assert open_ledger(file, clock).nodes() == []


@pytest.mark.parametrize("tells", [True, False])
def test_another_boot(file: Path, monkeypatch: pytest.MonkeyPatch, tells: bool) -> None:
    """Where the monotonic clock began anew, or nothing tells, the wall clock is believed."""
    wall = FakeClock().wall()
    nodes = []
    for boot, later in (("one", 0.0), ("two", MAX_AGE - 5), ("three", MAX_AGE + 5)):
        monkeypatch.setattr(ledgers, "boot_id", lambda boot=boot: boot if tells else None)
        read = open_ledger(file, FakeClock(wall + later))
        nodes.append(read.nodes())
        if not later:
            read.confirmed("n", "r", A, head=False)
        read.close()
    assert nodes == [[], ["n"], []]


def test_only_news_is_written(file: Path) -> None:
    """A thousand pulls of the same image by the same node are one line."""
    ledger = open_ledger(file, FakeClock())
    for _ in range(1000):
        ledger.confirmed("n", "r", A, head=False, tag="1")
    ledger.close()
    facts = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert [fact["fact"] for fact in facts] == ["clock", "has", "named"]


def test_file_is_bounded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that fails and mends the same blob for ever does not fill the disk."""
    monkeypatch.setattr(ledgers, "_COMPACT_SLACK", 10)
    ledger = open_ledger(file, FakeClock())
    for _ in range(200):
        ledger.blob_failed("n", "r", A, 9)
        ledger.blob_arrived("n", "r", A, 0, 10)
    ledger.close()
    assert len(file.read_text().splitlines()) < 30


def test_facts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that make up names do not fill the memory."""
    monkeypatch.setattr(ledgers, "MAX_FACTS", 10)
    ledger = Ledger(None, FakeClock())
    for i in range(100):
        ledger.confirmed(f"n{i}", "r", A, head=False)
    assert len(ledger.nodes()) == 10


def test_full_disk(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the file cannot be written any more, counting goes on and one warning says so."""
    ledger = open_ledger(file, FakeClock())

    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    ledger.confirmed("n", "r", A, head=False)
    ledger.confirmed("m", "r", A, head=False)
    assert ledger.nodes() == ["n", "m"]
    assert len(caplog.records) == 1


def test_private_and_removed(file: Path) -> None:
    """The file is its owner's alone, and goes when the upgrade is over."""
    ledger = open_ledger(file, FakeClock())
    assert file.stat().st_mode & 0o777 == 0o600
    ledger.remove()
    assert list(file.parent.iterdir()) == []
