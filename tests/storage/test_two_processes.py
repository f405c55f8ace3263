"""A command beside the server, on one root: a second store, which shares no lock in memory."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from mayfly.storage import digest as digests
from mayfly.storage.directory.gate import Gate
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import NameUnknown
from tests.storage.disk import Disk
from tests.support.images import all_succeed, image_body, put, put_image, read

REPO = "team/app"
THREADS = 8
PASSES = 100


def test_manifest_deleted_at_every_step_of_a_push(tmp_path: Path, disk: Disk) -> None:
    """A manifest is pushed anew, under a tag, while it is deleted: no tag leads nowhere."""
    number, deleted = 0, True
    while deleted:
        deleted = _delete_at(number, tmp_path / str(number), disk)
        number += 1
    assert number > 5


def _delete_at(number: int, root: Path, disk: Disk) -> bool:
    """Push, and delete before a step; whether there was such a step."""
    store, other = DistributionStore(root), DistributionStore(root)
    _, digest = put_image(store, REPO, "before")
    thread = threading.Thread(target=other.delete_manifest, args=(REPO, digest))

    def before(step: int) -> None:
        if step == number:
            thread.start()
            # Either it gets through now, or it waits for the push; both is right.
            thread.join(0.1)

    with disk.watch(before=before):
        put(store, REPO, image_body(), "v1")
    begun = thread.ident is not None
    if begun:
        thread.join()
    for tag in _tags(store):
        assert read(store.manifest(REPO, store.tag(REPO, tag))) == image_body(), f"step {number}"
    store.close()
    other.close()
    return begun


def _tags(store: DistributionStore) -> list[str]:
    try:
        return store.tags(REPO)
    except NameUnknown:
        return []


def test_pushes_that_overlap_do_not_keep_out_a_removal(tmp_path: Path) -> None:
    """Some thread always refers; one that has to be alone enters before they end."""
    (tmp_path / "turnstile").mkdir()
    passed: list[int] = []
    seen: list[int] = []
    first = threading.Event()

    def refer() -> None:
        gate = Gate(tmp_path, tmp_path / "turnstile")
        for turn in range(PASSES):
            with gate.referring():
                time.sleep(0.005)
                passed.append(turn)
            first.set()

    def remove() -> None:
        first.wait()
        with Gate(tmp_path, tmp_path / "turnstile").removing():
            seen.append(len(passed))

    all_succeed([remove, *[refer] * THREADS])
    assert seen[0] < THREADS * PASSES / 2


def test_a_removal_is_alone(tmp_path: Path) -> None:
    """Nobody refers meanwhile, and nobody else removes."""
    (tmp_path / "turnstile").mkdir()
    inside: set[int | str] = set()

    def enter(number: int) -> None:
        gate = Gate(tmp_path, tmp_path / "turnstile")
        for _ in range(20):
            with gate.referring():
                assert "removing" not in inside
                inside.add(number)
                time.sleep(0.0005)
                inside.discard(number)
            with gate.removing():
                assert not inside
                inside.add("removing")
                time.sleep(0.0005)
                inside.clear()

    all_succeed([lambda n=n: enter(n) for n in range(4)])


def test_blob_is_synced_before_the_gate(tmp_path: Path, disk: Disk) -> None:
    """While gigabytes go to the disk nobody waits at the gate."""
    store = DistributionStore(tmp_path)
    upload = store.begin_upload(REPO, "sha256")
    upload.write([b"large"], 0)
    free: list[bool] = []

    def before(step: int) -> None:
        if disk.steps[-1].kind == "fsync" and disk.steps[-1].path.name == "data":
            gate = os.open(tmp_path / "docker/registry/v2/_mayfly", os.O_RDONLY)
            with suppress(BlockingIOError):
                fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free.append(True)
            os.close(gate)

    with disk.watch(before=before):
        upload.commit(digests.of(b"large"))
    assert free == [True]
    store.close()
