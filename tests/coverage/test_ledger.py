"""The ledger's file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mayfly.registry.coverage import fact_limits, sent_offsets
from mayfly.registry.coverage import ledger as ledgers
from mayfly.registry.coverage.ledger import MAX_AGE_SECONDS, Ledger
from mayfly.registry.notices import text
from tests.support.fakes import FakeClock, digest

A, B, C, D = (digest(name) for name in "abcd")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "coverage.jsonl"


def open_ledger(file: Path, clock: FakeClock) -> Ledger:
    return Ledger(file, clock)


def transfer(ledger: Ledger, node: str, blob: str, first: int, end: int, size: int) -> None:
    """Bytes of a blob below the manifest A reach a node."""
    flow = ledger.blob_begun(node, "r", blob, first, size, [A])
    flow.count(end - first)
    ledger.blob_ended(flow, end, end)


def test_everything_is_read_again(file: Path) -> None:
    """Each kind of fact survives two restarts."""
    clock = FakeClock()
    first = open_ledger(file, clock)
    first.asked("n", "r", A, got=True, tag="1")
    first.asked("n", "r", A, got=False, claims=True)
    first.asked_again("n", "r", A)
    transfer(first, "n", B, 0, 60, 100)
    first.failed("n", "r", C)
    transfer(first, "n", D, 0, 100, 100)
    first.pushed("p", "r", A, ["1", "2"])
    first.close()
    for _ in range(2):
        read = open_ledger(file, clock)
        assert read.facts.nodes() == ["n"]
        pull = read.facts.pull("n", "r", A)
        assert pull is not None
        assert pull.again
        assert pull.bytes == 160
        b, c = (read.facts.last_pending("n", {blob}) for blob in (B, C))
        assert 0 < pull.got < pull.claim < b < c
        assert read.facts.has_blob("n", D)
        assert not read.facts.has_blob("n", B)
        assert read.facts.pushers() == {("r", A): ["p"]}
        assert read.facts.pullers() == {("r", A): ["n"]}
        assert read.facts.tags("r", A) == ["1", "2"]
        assert read.facts.asked_again() == {"n": 1}
        read.close()


def test_torn_and_foreign_lines(file: Path) -> None:
    """A torn last line and foreign lines are skipped; the others count."""
    clock = FakeClock()
    first = open_ledger(file, clock)
    first.asked("n", "r", A, got=True)
    first.asked("n", "r", B, got=True)
    first.close()
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    foreign = [
        b"[]\n",
        b'{"fact": "asked"}\n',
        b'{"time": "x", "fact": "asked", "node": 1}\n',
        b'{"time": 1, "fact": "foreign", "node": "n", "repository": "r", "digest": "d"}\n',
        b"\xff\n",
    ]
    mended = (
        b'{"time": 9999999999, "fact": "mended", "node": "n", "repository": "r", "digest": "d"}\n'
    )
    file.write_bytes(b"".join([*lines[:3], *foreign, mended, lines[3][:-20]]))
    read = open_ledger(file, clock)
    assert read.facts.pull("n", "r", A)
    assert read.facts.pull("n", "r", B) is None
    read.asked("n", "r", B, got=True)
    read.close()
    assert open_ledger(file, clock).facts.pull("n", "r", B)


def test_other_version(file: Path) -> None:
    """A file of an unknown format counts as empty."""
    file.write_text('{"mayfly-ledger": 99}\n{"fact": "asked"}\n')
    assert open_ledger(file, FakeClock()).facts.nodes() == []


def test_older_version(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Facts of a file of the first version are kept, but no node has an image by them: the file had
    neither the client nor the arrival of the config."""
    clock = FakeClock()
    base = {"time": int(clock.wall()), "node": "n", "repository": "r"}
    facts = [
        {**base, "fact": "has", "digest": A, "head": True},
        {**base, "fact": "has", "digest": B, "head": False},
        {**base, "fact": "failed", "digest": C, "last": -1},
        {**base, "fact": "failed", "digest": D, "last": 99},
        {**base, "fact": "mended", "digest": D},
        {**base, "fact": "again", "digest": A},
        {**base, "fact": "pushed", "digest": A, "node": "p"},
        {**base, "fact": "named", "digest": A, "tags": ["1"]},
    ]
    lines = [{"mayfly-ledger": 1}, *facts]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for _ in range(2):
        read = open_ledger(file, clock)
        a, b = read.facts.pull("n", "r", A), read.facts.pull("n", "r", B)
        assert a is not None
        assert b is not None
        assert (a.claim, a.got, a.again, b.claim) == (0, 0, True, 0)
        assert b.got
        assert read.facts.last_pending("n", {C})
        assert not read.facts.last_pending("n", {D})
        assert read.facts.pushers() == {("r", A): ["p"]}
        assert read.facts.tags("r", A) == ["1"]
        read.close()
    assert len(caplog.records) == 1  # the second time it is of this version


def test_killed_in_the_middle_of_transfers(file: Path) -> None:
    """The next request of the client shows the end of a transfer that a kill aborted."""
    clock = FakeClock()
    before = open_ledger(file, clock)
    before.asked("n", "r", A, got=True)
    before.blob_begun("n", "r", B, 0, 100, [A]).ahead(50)
    before.blob_begun("n", "r", C, 0, 100, [A]).ahead(50)
    # No close: nothing of the dying process runs.
    for after in (open_ledger(file, clock), open_ledger(file, clock)):
        transfer(after, "n", B, 40, 100, 100)
        assert after.facts.has_blob("n", B)
        assert not after.facts.has_blob("n", C)
        assert after.facts.last_pending("n", {C})
        after.close()
    before.close()


def test_killed_in_the_middle_of_a_range(file: Path) -> None:
    """Bytes after a requested range do not count, also after two kills."""
    clock = FakeClock()
    before = open_ledger(file, clock)
    before.asked("n", "r", A, got=True)
    before.blob_begun("n", "r", B, 0, 100, [A], 10).ahead(10)
    before.blob_begun("n", "r", C, 0, 100, [A], 10).ahead(10)
    open_ledger(file, clock).close()
    after = open_ledger(file, clock)
    transfer(after, "n", B, 10, 100, 100)
    transfer(after, "n", C, 99, 100, 100)
    assert after.facts.has_blob("n", B)
    assert not after.facts.has_blob("n", C)
    after.close()
    before.close()


@pytest.mark.parametrize("kills", [1, 2])
def test_killed_before_much_was_sent(file: Path, kills: int) -> None:
    """The next request never shows more bytes than the killed server had sent."""
    clock = FakeClock()
    before = open_ledger(file, clock)
    before.asked("n", "r", A, got=True)
    ended = before.blob_begun("n", "r", D, 0, 100, [A])
    before.blob_ended(ended, 100, 100)
    before.blob_begun("n", "r", B, 0, 100, [A]).ahead(40)
    before.blob_begun("n", "r", C, 0, 100, [A]).ahead(39)
    assert before._file is not None
    before._file.replace(before._entries())
    for _ in range(kills - 1):
        open_ledger(file, clock).close()
    after = open_ledger(file, clock)
    for blob in (B, C):
        transfer(after, "n", blob, 40, 100, 100)
    assert [after.facts.has_blob("n", blob) for blob in (B, C, D)] == [True, False, True]
    after.close()
    before.close()


def test_more_transfers_than_slots(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transfers without a slot are recorded, but lost by a kill. Slots are reused."""
    monkeypatch.setattr(sent_offsets, "SLOTS", 1)
    clock = FakeClock()
    before = open_ledger(file, clock)
    before.asked("n", "r", A, got=True)
    for _ in range(3):
        transfer(before, "n", D, 0, 100, 100)
    before.blob_begun("n", "r", B, 0, 100, [A]).ahead(50)
    before.blob_begun("n", "r", C, 0, 100, [A]).ahead(50)
    after = open_ledger(file, clock)
    for blob in (B, C):
        transfer(after, "n", blob, 50, 100, 100)
    assert [after.facts.has_blob("n", blob) for blob in (B, C, D)] == [True, False, True]
    after.remove()
    assert list(file.parent.iterdir()) == []
    before.close()


def test_two_transfers_from_the_same_byte(file: Path) -> None:
    """After a kill the one that had not ended counts, not the one that had."""
    clock = FakeClock()
    before = open_ledger(file, clock)
    before.asked("n", "r", A, got=True)
    before.blob_begun("n", "r", B, 0, 100, [A]).ahead(10)
    ended = before.blob_begun("n", "r", B, 0, 100, [A])
    ended.count(20)
    before.blob_ended(ended, 20, 20)
    # The slot of the ended one is another transfer's now.
    before.blob_begun("n", "r", C, 0, 100, [A]).ahead(90)
    after = open_ledger(file, clock)
    transfer(after, "n", B, 90, 100, 100)
    assert not after.facts.has_blob("n", B)
    after.close()
    before.close()


def test_table_of_offsets_is_missing(file: Path) -> None:
    """Without the table, no byte of a transfer that a kill aborted counts."""
    clock = FakeClock()
    before = open_ledger(file, clock)
    before.asked("n", "r", A, got=True)
    before.blob_begun("n", "r", B, 0, 100, [A]).ahead(50)
    for content in (None, b"", b"1234567"):
        table = file.with_suffix(".reach")
        table.unlink()
        if content is not None:
            table.write_bytes(content)
        after = open_ledger(file, clock)
        transfer(after, "n", B, 50, 100, 100)
        assert not after.facts.has_blob("n", B)
        after.close()
    before.close()


def test_asked_for_once_more(file: Path) -> None:
    """A node that asks again for a blob it had lacks it from that byte on."""
    ledger = open_ledger(file, FakeClock())
    ledger.asked("n", "r", A, got=True)
    transfer(ledger, "n", B, 0, 100, 100)
    transfer(ledger, "n", B, 60, 80, 100)
    assert not ledger.facts.has_blob("n", B)
    ledger.close()
    ledger = open_ledger(file, FakeClock())
    transfer(ledger, "n", B, 80, 100, 100)
    assert ledger.facts.has_blob("n", B)
    pull = ledger.facts.pull("n", "r", A)
    assert pull is not None
    assert (pull.bytes, pull.retries) == (140, 1)
    ledger.close()


async def test_old_facts_are_dropped(file: Path) -> None:
    """An old ledger does not count, and reading it does not make it younger."""
    clock = FakeClock()
    open_ledger(file, clock).asked("n", "r", A, got=True)
    await clock.tick(MAX_AGE_SECONDS - 1)
    assert open_ledger(file, clock).facts.nodes() == ["n"]
    await clock.tick(2)
    assert open_ledger(file, clock).facts.nodes() == []


@pytest.mark.parametrize("jump", [3 * MAX_AGE_SECONDS, -3 * MAX_AGE_SECONDS])
async def test_clock_that_is_set(file: Path, jump: float) -> None:
    """Setting the wall clock, while the server runs or after, does not change the age of facts."""
    clock = FakeClock()
    first = open_ledger(file, clock)
    first.asked("before", "r", A, got=True)
    clock.set(jump)
    first.asked("after", "r", A, got=True)
    pull = first.facts.pull("before", "r", A)
    assert pull is not None
    assert first.age(pull) <= 1
    assert abs(first.unix(pull.first) - clock.wall()) <= 1
    first.close()
    for _ in range(2):
        clock.set(jump)
        read = open_ledger(file, clock)
        assert read.facts.nodes() == ["before", "after"]
        read.close()
    await clock.tick(MAX_AGE_SECONDS - 5)
    assert open_ledger(file, clock).facts.nodes() == ["before", "after"]
    await clock.tick(6)
    assert open_ledger(file, clock).facts.nodes() == []


@pytest.mark.parametrize("tells", [True, False])
def test_another_boot(file: Path, monkeypatch: pytest.MonkeyPatch, tells: bool) -> None:
    """After a reboot, or without a boot ID, the wall clock counts."""
    wall = FakeClock().wall()
    nodes = []
    for boot, later in (("one", 0.0), ("two", MAX_AGE_SECONDS - 5), ("three", MAX_AGE_SECONDS + 5)):
        monkeypatch.setattr(ledgers, "boot_id", lambda boot=boot: boot if tells else None)
        read = open_ledger(file, FakeClock(wall + later))
        nodes.append(read.facts.nodes())
        if not later:
            read.asked("n", "r", A, got=True)
        read.close()
    assert nodes == [[], ["n"], []]


def test_only_news_is_written(file: Path) -> None:
    """A thousand pulls of the same image by the same node are one line."""
    ledger = open_ledger(file, FakeClock())
    for _ in range(1000):
        ledger.asked("n", "r", A, got=True, tag="1")
    ledger.close()
    facts = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert [fact["fact"] for fact in facts] == ["clock", "asked", "named"]


def test_file_is_bounded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that repeatedly fails and completes the same blob does not fill the disk."""
    monkeypatch.setattr(ledgers, "_COMPACT_SLACK", 10)
    ledger = open_ledger(file, FakeClock())
    ledger.asked("n", "r", A, got=True)
    for _ in range(200):
        ledger.failed("n", "r", B)
        transfer(ledger, "n", B, 0, 10, 10)
    ledger.close()
    assert len(file.read_text().splitlines()) < 30


def test_facts_are_bounded(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither one client nor many fill memory or file; listed images have room of their own, and
    each bound that is reached is logged once."""
    monkeypatch.setattr(fact_limits, "MAX_OTHER_FACTS", 20)
    monkeypatch.setattr(fact_limits, "MAX_OTHER_FACTS_PER_NODE", 10)
    monkeypatch.setattr(fact_limits, "MAX_LISTED_FACTS", 30)

    def listed(node: str, repository: str) -> bool:
        return (node, repository) == ("worker", "app")

    ledger = Ledger(file, FakeClock(), listed)
    for i in range(100):
        ledger.asked("greedy", "r", digest(f"m{i}"), got=True, tag=f"t{i}")
    assert len(ledger.facts.pulls("greedy")) <= 10
    for i in range(100):
        ledger.asked(f"n{i}", "r", A, got=True)
        ledger.failed(f"n{i}", "r", B)
        ledger.pushed(f"n{i}", "r", digest(f"m{i}"), ["latest"])
    assert len(ledger.facts.nodes()) <= 20
    lines = len(file.read_text().splitlines())
    for i in range(40):
        ledger.asked("worker", "app", digest(f"m{i}"), got=True)
    assert len(ledger.facts.pulls("worker")) == 30
    assert len(file.read_text().splitlines()) == lines + 30
    assert [(n["code"], n["most"]) for n in ledger.facts.limits.reached.all()] == [
        ("record_full_node", 10),
        ("record_full_others", 20),
        ("record_full_list", 30),
    ]
    notices = ledger.facts.limits.reached.all()
    assert [record.getMessage() for record in caplog.records] == [*map(text, notices)]
    ledger.close()
    read = Ledger(file, FakeClock(), listed)
    assert len(read.facts.pulls("worker")) == 30
    read.close()


def test_full_disk(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the file cannot be written, facts are still counted, and one warning is logged."""
    ledger = open_ledger(file, FakeClock())

    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    ledger.asked("n", "r", A, got=True)
    ledger.asked("m", "r", A, got=True)
    assert ledger.facts.nodes() == ["n", "m"]
    assert len(caplog.records) == 1


def test_private_and_removed(file: Path) -> None:
    """Only the owner may read the file, and it is removed when the upgrade is complete."""
    ledger = open_ledger(file, FakeClock())
    assert file.stat().st_mode & 0o777 == 0o600
    ledger.remove()
    assert list(file.parent.iterdir()) == []


def test_nodes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client with very many addresses fills only the room for nodes that are not listed."""
    monkeypatch.setattr(fact_limits, "MAX_NODES", 10)
    ledger = Ledger(None, FakeClock(), lambda node, repository: True, ("worker",))
    for i in range(100):
        ledger.asked(f"n{i}", "r", A, got=True)
    ledger.asked("worker", "r", A, got=True)
    assert len(ledger.facts.nodes()) <= 12
    assert "worker" in ledger.facts.nodes()
    assert [notice["code"] for notice in ledger.facts.limits.reached.all()] == ["record_full_nodes"]
