"""The audit file: a chain of lines that shows what was changed, removed or cut off."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.registry.telemetry import chained_file, events
from mayfly.registry.telemetry.chain import Checked, check
from mayfly.registry.telemetry.chained_file import KEPT_FILES, ChainedFile


def append(file: ChainedFile, count: int = 1) -> None:
    """Append events at once."""
    asyncio.run(file.append([events.new("pull") for _ in range(count)]))


def write(path: Path, count: int, batch: int = 3) -> ChainedFile:
    """Append events as a server does that starts now, a few at a time."""
    file = ChainedFile(path)
    for begin in range(0, count, batch):
        append(file, min(batch, count - begin))
    return file


def assert_whole(found: Checked, first: int, last: int) -> None:
    """The chain holds from one event to another."""
    assert found.broken is None
    assert (found.first, found.head.number) == (first, last)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_chain_holds(path: Path) -> None:
    """All events are there, the head is the file's own, and the next start continues."""
    head = write(path, 10).head
    assert_whole(check(path), 1, 10)
    assert check(path).head == head
    later = write(path, 5)
    assert_whole(check(path), 1, 15)
    assert later.head.number == 15
    assert check(path, head.digest).found == 10
    assert path.stat().st_mode & 0o777 == 0o600


def test_empty_file(path: Path) -> None:
    """A file without an event is whole, and has no head."""
    write(path, 0)
    assert_whole(check(path), 0, 0)
    assert check(path, "0" * 64).found is None


Change = Callable[[list[bytes]], list[bytes]]
CHANGES: dict[str, Change] = {
    "a value": lambda lines: [*lines[:4], lines[4].replace(b"pull", b"push"), *lines[5:]],
    "a line is gone": lambda lines: [*lines[:4], *lines[5:]],
    "a line is there twice": lambda lines: [*lines[:5], *lines[4:]],
    "two lines have changed places": lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]],
    "a line is no JSON": lambda lines: [*lines[:4], b"removed", *lines[5:]],
    "a line is added": lambda lines: [*lines[:4], b'{"action":"pull"}', *lines[4:]],
    "a deep line": lambda lines: [*lines[:4], b"[" * 100_000, *lines[5:]],
    "a number of another type": lambda lines: [
        *lines[:4], b'{"number":true,"previous":""}', *lines[5:],
    ],
    "the first is changed": lambda lines: [lines[0].replace(b"pull", b"push"), *lines[1:]],
    "the first has a past": lambda lines: [lines[0].replace(b'"":', b'"x":'), *lines[1:]],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_change_breaks_the_chain(path: Path, change: Change) -> None:
    """Whatever is done to a line but the last is found."""
    write(path, 10)
    lines = path.read_bytes().splitlines()
    changed = change(lines)
    path.write_bytes(b"\n".join(changed) + b"\n")
    found = check(path)
    assert found.broken is not None or changed == lines
    assert (found.broken is None) == (changed == lines)


def test_removed_end_needs_the_head(path: Path) -> None:
    """Lines removed at the end leave a chain that holds, without the head of the report."""
    head = write(path, 10).head
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:8]))
    assert_whole(check(path), 1, 8)
    assert check(path, head.digest).found is None


def test_cut_anywhere(path: Path) -> None:
    """After a crash that cut off the file at any byte the chain continues, and names the cut."""
    write(path, 6)
    whole = path.read_bytes()
    sample = random.Random(7).sample(range(len(whole)), 150)
    for size in [*sample, 0, len(whole), len(whole) - 1]:
        path.write_bytes(whole[:size])
        kept = whole[: size + 1].count(b"\n")  # an event that lacks its newline alone is whole
        torn = max(0, size - (whole[: size + 1].rfind(b"\n") + 1))
        cut = check(path)
        assert_whole(cut, min(kept, 1), kept)
        assert [one.bytes for one in cut.cuts] == ([torn] if torn else [])
        write(path, 2)
        found = check(path)
        assert_whole(found, 1, kept + 2 + bool(torn))
        assert [(one.after, one.bytes) for one in found.cuts] == ([(kept, torn)] if torn else [])


def test_zeros_after_power_loss(path: Path) -> None:
    """A tail of zeros, as power loss may leave, is a cut whatever its size."""
    write(path, 3)
    with path.open("ab") as file:
        file.write(bytes(300_000))
    write(path, 1)
    found = check(path)
    assert_whole(found, 1, 5)
    assert [(one.after, one.bytes) for one in found.cuts] == [(3, 300_000)]


def test_cut_that_is_changed(path: Path) -> None:
    """What a crash left can neither be exchanged nor taken away."""
    write(path, 3)
    with path.open("ab") as file:
        file.write(b'{"numb')
    write(path, 1)
    whole = path.read_bytes()
    for changed, line, problem in ((b'{"nomb\n', 5, "not_json"), (b"", 4, "missing")):
        path.write_bytes(whole.replace(b'{"numb\n', changed))
        broken = check(path).broken
        assert broken is not None
        assert (broken.line, broken.problem) == (line, problem)


def test_rotation(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of bounded size and number; the chain runs through them, older ones may be gone."""
    monkeypatch.setattr(chained_file, "MAX_FILE_BYTES", 2000)
    head = write(path, 200, batch=2).head
    kept = sorted(os.listdir(path.parent))
    assert len(kept) == KEPT_FILES + 1
    for name in kept:
        assert (path.parent / name).stat().st_size <= 2000
        assert (path.parent / name).stat().st_mode & 0o777 == 0o600
    found = check(path, head.digest)
    assert found.broken is None
    assert found.first > 1
    assert found.found == found.head.number == 200
    path.with_name(f"{path.name}.4").unlink()
    broken = check(path).broken
    assert broken is not None
    assert broken.problem == "missing"


def test_start_after_rotation(path: Path) -> None:
    """A file that was just renamed, with nothing written since, is continued."""
    write(path, 5)
    path.rename(path.with_name(f"{path.name}.1"))
    write(path, 1)
    assert_whole(check(path), 1, 6)


def test_older_file_is_gone_on_with(path: Path) -> None:
    """Lines that are no chain stay, and are named as what they are."""
    path.write_text('{"event":"refused"}\n')
    file = write(path, 2)
    assert file.head.number == 2
    assert [json.loads(line).get("number") for line in path.read_text().splitlines()] == [
        None,
        1,
        2,
    ]
    broken = check(path).broken
    assert broken is not None
    assert broken.problem == "not_json"


def test_one_server_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second server is refused, also once the file was renamed, until the first one has ended."""
    monkeypatch.setattr(chained_file, "MAX_FILE_BYTES", 2000)
    file = write(path, 1)
    for count in (1, 20):
        append(file, count)
        with pytest.raises(BlockingIOError):
            ChainedFile(path)
    link = path.with_name("link")
    link.symlink_to(path)
    with pytest.raises(BlockingIOError):
        ChainedFile(link)
    file.close()
    write(path, 1)
    assert_whole(check(path), 1, 23)


def test_two_servers_at_a_rename(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that starts just when the file was renamed continues the chain, and alone."""
    monkeypatch.setattr(chained_file, "MAX_FILE_BYTES", 2000)
    first, other = write(path, 10), list[ChainedFile]()
    rotate = ChainedFile._rotate

    def rotated(file: ChainedFile) -> None:
        rotate(file)
        if file is first:
            other.append(ChainedFile(path))

    monkeypatch.setattr(ChainedFile, "_rotate", rotated)
    head = first.head
    with pytest.raises(BlockingIOError):
        append(first, 10)
    append(other[0], 2)
    with pytest.raises(BlockingIOError):
        append(first)
    assert first.head == head
    assert_whole(check(path), 1, 12)


def test_failed_write_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a write fails in the middle, the file ends with the last whole line, and continues."""
    file = write(path, 3)
    before = path.read_bytes()

    def no_sync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", no_sync)
        with pytest.raises(OSError, match="No space"):
            append(file)
    assert path.read_bytes() == before
    append(file)
    assert_whole(check(path), 1, 4)


def test_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--audit /dev/stderr` and the like are written, and never renamed."""
    monkeypatch.setattr(chained_file, "MAX_FILE_BYTES", 10)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    file = ChainedFile(fifo)
    for _ in range(3):
        append(file)
    assert os.read(reader, 10_000).count(b"\n") == 3
    os.close(reader)
    assert not fifo.with_name("fifo.1").exists()
