"""What is synced behind a growing upload: never the last word, and never an error that is lost."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.directory.writeback import STEP, FileSync, Writeback
from mayfly.storage.errors import BlobUnknown, DigestInvalid, StorageFull
from tests.storage.contract import OpenStore
from tests.storage.disk import Disk, path_of
from tests.storage.test_publish_order import REPO, assert_durable
from tests.support.process import descriptors

CONTENT = os.urandom(STEP + 1)
SECONDS = 30


class Syncs:
    """Stands in for fdatasync(2): holds every call until `release`, and fails it with ``error``."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.error = 0
        self.begun = threading.Semaphore(0)
        self._gate = threading.Event()

    def __call__(self, descriptor: int) -> None:
        self.paths.append(path_of(descriptor))
        self.begun.release()
        assert self._gate.wait(SECONDS)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def release(self) -> None:
        self._gate.set()


@pytest.fixture
def syncs(quick_sync: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Syncs]:
    """The record of everything that is synced with fdatasync(2)."""
    made = Syncs()
    monkeypatch.setattr(os, "fdatasync", made)
    yield made
    made.release()


def test_large_upload_is_synced_while_it_grows(
    open_store: OpenStore, disk: Disk, syncs: Syncs
) -> None:
    """Before its end, and once more at it: the last bytes came after the first sync."""
    upload = open_store().begin_upload(REPO, "sha256")
    upload.write([CONTENT[:-1]], 0)
    assert syncs.begun.acquire(timeout=SECONDS)
    upload.write([CONTENT[-1:]], STEP)
    assert [path.parent.name for path in syncs.paths] == [upload.id]
    syncs.release()
    with disk.watch():
        upload.commit(digests.of(CONTENT))
    assert_durable(disk.steps)


def test_small_upload_is_synced_once(open_store: OpenStore, syncs: Syncs) -> None:
    """At its end: a sync costs a disk more than few bytes are worth."""
    upload = open_store().begin_upload(REPO, "sha256")
    upload.write([CONTENT[: STEP - 1]], 0)
    upload.commit(digests.of(CONTENT[: STEP - 1]))
    assert syncs.paths == []


def test_commit_waits(open_store: OpenStore, disk: Disk, syncs: Syncs) -> None:
    """Nothing becomes visible before it is known how the sync that runs went."""
    store = open_store()
    upload = store.begin_upload(REPO, "sha256")
    upload.write([CONTENT], 0)
    assert syncs.begun.acquire(timeout=SECONDS)
    with ThreadPoolExecutor(1) as pool, disk.watch():
        committed = pool.submit(upload.commit, digests.of(CONTENT))
        with pytest.raises(TimeoutError):
            committed.result(timeout=0.5)
        assert disk.steps == []
        syncs.release()
        committed.result(timeout=SECONDS)
    assert store.blob(REPO, digests.of(CONTENT)).size == len(CONTENT)


@pytest.mark.parametrize(
    ("error", "raised"), [(errno.EIO, OSError), (errno.ENOSPC, StorageFull)], ids=["broken", "full"]
)
def test_failure_behind_is_told(
    open_store: OpenStore, syncs: Syncs, error: int, raised: type[Exception]
) -> None:
    """Linux tells of lost bytes once, so the sync at the end would find nothing wrong."""
    store = open_store()
    upload = store.begin_upload(REPO, "sha256")
    syncs.error = error
    syncs.release()
    upload.write([CONTENT], 0)
    for _ in range(2):
        with pytest.raises(raised):
            upload.commit(digests.of(CONTENT))
    with pytest.raises(raised):
        upload.write([CONTENT], len(CONTENT))
    with pytest.raises(BlobUnknown):
        store.blob(REPO, digests.of(CONTENT))
    assert len(syncs.paths) == 1


def test_failure_in_the_middle_of_a_write(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write during a failure raises its error, not that the upload stands elsewhere."""
    emptied, told = threading.Event(), threading.Event()
    real = os.ftruncate

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def empty(descriptor: int, size: int) -> None:
        real(descriptor, size)
        emptied.set()
        assert told.wait(SECONDS)

    monkeypatch.setattr(os, "fdatasync", fail)
    monkeypatch.setattr(os, "ftruncate", empty)
    upload = open_store().begin_upload(REPO, "sha256")
    upload.write([CONTENT], 0)
    assert emptied.wait(SECONDS)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(upload.write, [b"x"], len(CONTENT))
        with pytest.raises(TimeoutError):
            written.result(timeout=0.2)
        told.set()
        with pytest.raises(OSError, match="Input/output error"):
            written.result(timeout=SECONDS)


def test_failure_behind_outlives_the_process(open_store: OpenStore, syncs: Syncs) -> None:
    """A process that opens the session later gets no error of the disk, and nothing to commit."""
    upload = open_store().begin_upload(REPO, "sha256")
    syncs.error = errno.EIO
    syncs.release()
    upload.write([CONTENT], 0)
    with pytest.raises(OSError, match="Input/output error"):
        upload.commit(digests.of(CONTENT))
    found = open_store().upload(REPO, upload.id)
    assert found.offset == 0
    with pytest.raises(DigestInvalid):
        found.commit(digests.of(CONTENT))


@pytest.mark.parametrize("end", ["commit", "cancel"])
def test_an_upload_that_ends_leaves_the_line(open_store: OpenStore, syncs: Syncs, end: str) -> None:
    """An upload that ends waits for no other's sync, and leaves no descriptor in the line."""
    store = open_store()
    first, second = (store.begin_upload(REPO, "sha256") for _ in range(2))
    first.write([CONTENT], 0)
    assert syncs.begun.acquire(timeout=SECONDS)
    before = descriptors()
    second.write([CONTENT], 0)
    assert descriptors() == before + 1
    if end == "commit":
        second.commit(digests.of(CONTENT))
    else:
        second.cancel()
    assert descriptors() == before
    assert len(syncs.paths) == 1


def test_end_of_the_store(tmp_path: Path, syncs: Syncs) -> None:
    """It waits for the sync that runs; one that has not begun is nobody's any more."""
    writeback = Writeback()
    with (tmp_path / "file").open("wb") as file:
        futures = [writeback.begin(file.fileno()) for _ in range(2)]
        assert syncs.begun.acquire(timeout=SECONDS)
        before = descriptors()
        with ThreadPoolExecutor(1) as pool:
            closed = pool.submit(writeback.close)
            with pytest.raises(CancelledError):
                futures[1].result(timeout=SECONDS)
            syncs.release()
            closed.result(timeout=SECONDS)
        assert futures[0].done() and len(syncs.paths) == 1
        assert descriptors() == before - 2


@pytest.mark.parametrize("lacking", ["descriptor", "thread"])
def test_without_means_for_it(
    open_store: OpenStore, syncs: Syncs, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """An upload gets on without a sync behind it where there is nothing to do it with."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "") if lacking == "descriptor" else RuntimeError("no thread")

    upload = open_store().begin_upload(REPO, "sha256")
    before = descriptors()
    with monkeypatch.context() as patched:
        target = (
            "os.dup"
            if lacking == "descriptor"
            else "mayfly.storage.directory.writeback.ThreadPoolExecutor.submit"
        )
        patched.setattr(target, refuse)
        upload.write([CONTENT], 0)
    assert descriptors() == before
    upload.commit(digests.of(CONTENT))
    assert syncs.paths == []


def test_one_sync_at_a_time(tmp_path: Path, syncs: Syncs) -> None:
    """A disk that is slower than the upload is asked less often, not more."""
    writeback = Writeback()
    with (tmp_path / "file").open("wb") as file:
        sync = FileSync(writeback)
        for size in (STEP - 1, STEP, 2 * STEP, 3 * STEP):
            sync.written(file.fileno(), size)
        assert syncs.begun.acquire(timeout=SECONDS)
        syncs.release()
        sync.wait()
        assert len(syncs.paths) == 1
        sync.written(file.fileno(), 2 * STEP - 1)
        sync.written(file.fileno(), 3 * STEP)
        assert syncs.begun.acquire(timeout=SECONDS)
        writeback.close()
        assert len(syncs.paths) == 2
