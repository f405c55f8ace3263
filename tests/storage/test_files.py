"""`storage.files`: files replaced at once and durably, locks, stamps."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from mayfly.storage.errors import StorageFull
from mayfly.storage.files import (
    Attributes,
    copy_range,
    exposed_mode,
    is_locked,
    locked,
    locked_at_once,
    replace_by_link,
    replace_file,
    replacing,
    stamp_at,
    stamp_of,
    sync,
    temporary_of,
    translate_disk_full,
    try_lock,
)
from tests.storage.disk import FAILURES, Disk, Step
from tests.support.process import PATIENCE

PRIVATE = Attributes(0o600)


def test_replace_file(tmp_path: Path, disk: Disk) -> None:
    """Temporary file beside the target, sync, rename, sync of the directory."""
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with disk.watch():
        replace_file(target, b"new", Attributes(0o640))
    temporary = temporary_of(target)
    assert [s for s in disk.steps if s.kind != "unlink"] == [
        Step("create", temporary),
        Step("fsync", temporary),
        Step("rename", temporary, target),
        Step("fsync", tmp_path),
    ]
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_attributes(tmp_path: Path) -> None:
    """Mode and modification time are those asked for."""
    target = tmp_path / "file"
    replace_file(target, b"x", Attributes(0o604, mtime_ns=1_000_000_000))
    found = target.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o604, 1_000_000_000)


def test_not_durable(tmp_path: Path, disk: Disk) -> None:
    """A file that means nothing after a power cut is not synced."""
    with disk.watch():
        replace_file(tmp_path / "file", b"x", PRIVATE, durable=False)
    assert [s.kind for s in disk.steps if s.kind != "unlink"] == ["create", "rename"]


@pytest.mark.parametrize("error", FAILURES)
def test_failure_at_each_step(tmp_path: Path, disk: Disk, error: int) -> None:
    """The old file stays until the rename; the temporary file does not."""
    target = tmp_path / "file"
    with disk.watch():
        replace_file(target, b"first", PRIVATE)
    kinds = [step.kind for step in disk.steps]
    for number, kind in enumerate(kinds):
        target.write_bytes(b"old")
        with disk.watch(fail_at=number, error=error), pytest.raises(OSError, match=r".+") as raised:
            replace_file(target, b"new", PRIVATE)
        assert raised.value.errno == error
        is_after = number > kinds.index("rename")
        assert target.read_bytes() == (b"new" if is_after else b"old"), kind
        temporary_of(target).unlink(missing_ok=True)


def test_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    """An error while the new file is written leaves the old one, and no temporary file."""
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match="stop"), replacing(target) as file:
        file.write(b"half")
        raise ValueError("stop")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_link_is_replaced(tmp_path: Path) -> None:
    """A link in the target's place is replaced; the file it led to stays as it is."""
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "file"
    elsewhere.write_bytes(b"somebody's")
    target.symlink_to(elsewhere)
    replace_file(target, b"ours", PRIVATE)
    assert (elsewhere.read_bytes(), target.read_bytes()) == (b"somebody's", b"ours")
    assert not target.is_symlink()


def test_planted_temporary_file(tmp_path: Path) -> None:
    """A link under the temporary name is not followed."""
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "file"
    elsewhere.write_bytes(b"somebody's")
    temporary_of(target).symlink_to(elsewhere)
    replace_file(target, b"ours", PRIVATE)
    assert elsewhere.read_bytes() == b"somebody's"


def test_replace_by_link(tmp_path: Path) -> None:
    """A link takes the place of a file."""
    target = tmp_path / "file"
    target.write_bytes(b"old")
    replace_by_link(target, "./elsewhere", (os.getuid(), os.getgid()))
    assert os.readlink(target) == "./elsewhere"  # noqa: PTH115 - a Path drops the "./"


def test_locks_exclude(tmp_path: Path) -> None:
    """A shared lock admits others that share, an exclusive one nobody."""
    with locked(tmp_path, shared=True), locked(tmp_path, shared=True):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert is_locked(tmp_path / "gone")


def test_lock_is_waited_for(tmp_path: Path) -> None:
    """An exclusive lock waits until the directory is free."""
    entered = threading.Event()

    def enter() -> None:
        with locked(tmp_path):
            entered.set()

    with locked(tmp_path):
        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.1)
    assert entered.wait(PATIENCE)
    waiting.join(PATIENCE)


def test_lock_at_once(tmp_path: Path) -> None:
    """The directory is made; a second holder is refused at once."""
    directory = tmp_path / "a/b"
    with locked_at_once(directory, mode=0o750):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o750
        with pytest.raises(BlockingIOError), locked_at_once(directory):
            pass
    with locked_at_once(directory):
        directory.rmdir()  # as its holder may
    with locked_at_once(directory):
        assert directory.is_dir()


def test_try_lock(tmp_path: Path) -> None:
    """Whether the lock was taken is the answer, not an error."""
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert try_lock(first)
    assert not try_lock(second)
    os.close(first)
    assert try_lock(second)
    os.close(second)


def test_stamps(tmp_path: Path) -> None:
    """A stamp shows a write, a chmod and another file under the name, also behind a link."""
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"x")
    link.symlink_to(file)
    seen = [stamp_at(link)]
    assert seen == [stamp_of(file.stat())]
    file.write_bytes(b"xy")
    seen.append(stamp_at(link))
    replace_file(file, b"xy", PRIVATE)
    seen.append(stamp_at(link))
    file.chmod(0o640)
    seen.append(stamp_at(link))
    file.unlink()
    seen.append(stamp_at(link))
    assert len(set(seen)) == len(seen)
    assert seen[-1] is None


def test_exposed_mode(tmp_path: Path) -> None:
    """The mode is given where it has a forbidden bit."""
    tmp_path.chmod(0o720)
    assert exposed_mode(tmp_path.stat(), 0o022) == "0720"
    assert exposed_mode(tmp_path.stat(), 0o007) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_translated(number: int) -> None:
    """A full disk and an exceeded quota are a domain error; other errors pass."""
    with pytest.raises(StorageFull), translate_disk_full():
        raise OSError(number, "full")
    with pytest.raises(PermissionError), translate_disk_full():
        raise PermissionError(errno.EACCES, "no")


def test_sync_waits_for_no_pipe(tmp_path: Path) -> None:
    """A pipe in the place of a file is not waited for until it has a writer."""
    os.mkfifo(tmp_path / "pipe")
    syncing = threading.Thread(target=sync, args=[tmp_path / "pipe"], daemon=True)
    syncing.start()
    syncing.join(PATIENCE)
    assert not syncing.is_alive()


@pytest.mark.parametrize("refused", [None, errno.EXDEV, errno.ENOSYS, errno.EINVAL])
@pytest.mark.parametrize("count", [0, 1, 2_500_000, 3_000_000, 4_000_000])
def test_copy_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int | None, count: int
) -> None:
    """A part is copied to its place, in the kernel or by reading, as far as the source goes."""
    content = bytes(range(250)) * 12_000
    (tmp_path / "source").write_bytes(content)
    (tmp_path / "target").write_bytes(b"before")

    def refuse(*_: int) -> int:
        assert refused is not None
        raise OSError(refused, "refused")

    if refused is not None:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    counted: list[int] = []
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("rb+") as target:
        done = copy_range(source.fileno(), 5, count, target.fileno(), 6, counted.append)
    expected = content[5 : 5 + count]
    assert done == sum(counted) == len(expected)
    assert (tmp_path / "target").read_bytes() == b"before" + expected
