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
    return Ledger(file, clock.wall)


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
    file.write_bytes(b"".join([*lines[:2], *foreign, mended, lines[2][:-20]]))
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


def test_only_news_is_written(file: Path) -> None:
    """A thousand pulls of the same image by the same node are one line."""
    ledger = open_ledger(file, FakeClock())
    for _ in range(1000):
        ledger.confirmed("n", "r", A, head=False, tag="1")
    ledger.close()
    facts = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert [fact["fact"] for fact in facts] == ["has", "named"]


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
    ledger = Ledger(None, FakeClock().wall)
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
