"""What is synced behind a growing upload: never the last word, and never an error that is lost."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage import digest as digests
from storage.errors import BlobUnknown, StorageFull
from storage.writeback import STEP, Behind, Writeback
from tests.storage.contract import OpenStore
from tests.storage.disk import Disk, path_of
from tests.storage.test_publish_order import REPO, assert_durable

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
    """Of everything that is synced with fdatasync(2)."""
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


def test_commit_waits(open_store: OpenStore, syncs: Syncs) -> None:
    """A commit is not answered before it is known how the sync behind it went."""
    store = open_store()
    upload = store.begin_upload(REPO, "sha256")
    upload.write([CONTENT], 0)
    assert syncs.begun.acquire(timeout=SECONDS)
    with ThreadPoolExecutor(1) as pool:
        committed = pool.submit(upload.commit, digests.of(CONTENT))
        with pytest.raises(TimeoutError):
            committed.result(timeout=0.2)
        with pytest.raises(BlobUnknown):
            store.blob(REPO, digests.of(CONTENT))
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
    upload.write([CONTENT], len(CONTENT))
    for _ in range(2):
        with pytest.raises(raised):
            upload.commit(digests.of(CONTENT * 2))
    with pytest.raises(BlobUnknown):
        store.blob(REPO, digests.of(CONTENT * 2))
    assert len(syncs.paths) == 1


def test_one_sync_at_a_time(tmp_path: Path, syncs: Syncs) -> None:
    """A disk that is slower than the upload is asked less often, not more."""
    writeback = Writeback()
    with (tmp_path / "file").open("wb") as file:
        behind = Behind(writeback)
        for size in (STEP - 1, STEP, 2 * STEP, 3 * STEP):
            behind.grown(file.fileno(), size)
        assert syncs.begun.acquire(timeout=SECONDS)
        syncs.release()
        behind.settle()
        assert len(syncs.paths) == 1
        behind.grown(file.fileno(), 2 * STEP - 1)
        behind.grown(file.fileno(), 3 * STEP)
        writeback.close()
        assert len(syncs.paths) == 2
