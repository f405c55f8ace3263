"""Every step of every change, failing: the old state or the new one, and nothing left over.

Each change is first run whole to count its steps, then once for each step with that step failing,
on a root of its own. Afterwards the same change must go through, as it would for a client that
tries again.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.directory.publish import Publisher
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import (
    BlobUnknown,
    ManifestUnknown,
    StorageError,
    StorageFull,
    UploadUnknown,
)
from mayfly.storage.interface import Upload
from tests.storage.disk import FAILURES, Disk
from tests.support.images import image_body, push, put, put_image, read

REPO = "team/app"
OLD = image_body()
NEW = image_body(annotations={"is": "new"})
BLOB = b"the blob" * 100

State = dict[str, object]


def _visible(root: Path) -> State:
    """What another process sees: every tag, and every content of which it can read all bytes."""
    store = DistributionStore(root)
    found: State = {}
    for name in store.repositories("", 100):
        for tag in store.tags(name):
            found[f"{name}:{tag}"] = store.tag(name, tag)
        for body in (OLD, NEW):
            with contextlib.suppress(ManifestUnknown):
                found[f"{name} {digests.of(body)}"] = read(store.manifest(name, digests.of(body)))
        for blob in (b"{}", BLOB):
            with contextlib.suppress(BlobUnknown):
                found[f"{name} {digests.of(blob)}"] = read(store.blob(name, digests.of(blob)))
    store.close()
    return found


@dataclass(frozen=True)
class Change:
    """One change: how it is prepared, made, and which states between old and new may be seen."""

    prepare: Callable[[DistributionStore], object]
    make: Callable[[DistributionStore], object]
    between: tuple[Callable[[DistributionStore], object], ...] = ()


def _upload(store: DistributionStore) -> Upload:
    upload = store.begin_upload(REPO, "sha256")
    upload.write([BLOB], 0)
    return upload


CHANGES = {
    "push a blob": Change(
        lambda s: None,
        lambda s: push(s, REPO, BLOB),
    ),
    "mount": Change(
        lambda s: push(s, "source", BLOB),
        lambda s: s.mount(REPO, digests.of(BLOB), "source"),
    ),
    "put the first manifest": Change(
        lambda s: push(s, REPO, b"{}"),
        lambda s: put(s, REPO, OLD, "v1"),
        (lambda s: put(s, REPO, OLD),),
    ),
    "move a tag": Change(
        lambda s: put_image(s, REPO, "v1"),
        lambda s: put(s, REPO, NEW, "v1"),
        (lambda s: put(s, REPO, NEW),),
    ),
    "delete a blob": Change(
        lambda s: push(s, REPO, BLOB),
        lambda s: s.delete_blob(REPO, digests.of(BLOB)),
    ),
    "delete a tag": Change(
        lambda s: put_image(s, REPO, "v1", "v2"),
        lambda s: s.delete_tag(REPO, "v1"),
    ),
    "delete a manifest": Change(
        lambda s: put_image(s, REPO, "v1"),
        lambda s: s.delete_manifest(REPO, digests.of(OLD)),
        (lambda s: s.delete_tag(REPO, "v1"),),
    ),
}


def _state_after(root: Path, *calls: Callable[[DistributionStore], object]) -> State:
    store = DistributionStore(root)
    for call in calls:
        call(store)
    store.close()
    return _visible(root)


def _leftovers(root: Path) -> list[str]:
    """Files that no read can reach: temporary ones, and parts of upload sessions."""
    base = root / "docker/registry/v2"
    found = [p for p in base.rglob("*") if p.is_file()]
    return [str(p) for p in found if "_uploads" in p.parts or "scratch" in p.parts]


@pytest.mark.parametrize("name", CHANGES)
def test_failing_step(name: str, tmp_path: Path, disk: Disk) -> None:
    """Whatever step fails: a named error, a state that may be seen, no leftovers, and a retry."""
    change = CHANGES[name]
    old = _state_after(tmp_path / "old", change.prepare)
    new = _state_after(tmp_path / "new", change.prepare, change.make)
    between = [
        _state_after(tmp_path / f"between{n}", change.prepare, call)
        for n, call in enumerate(change.between)
    ]
    number, failed = 0, True
    while failed:
        root = tmp_path / f"step{number}"
        store = DistributionStore(root)
        change.prepare(store)
        refused: Exception | None = None
        error = FAILURES[number % len(FAILURES)]
        with disk.watch(fail_at=number, error=error):
            try:
                change.make(store)
            except (StorageFull, OSError) as raised:
                refused = raised
        failed = len(disk.steps) > number
        where = f"{name}, step {number}: {disk.steps[number] if failed else None}"
        seen = _visible(root)
        if refused is None:
            assert seen == new, where
            # Only the tidying after a delete may fail without a word, and a record of a size.
            assert (
                not failed
                or disk.steps[number].kind == "unlink"
                or disk.steps[number].path.name.startswith("_mayfly_size_")
                or "delete" in name
            ), where
        else:
            assert isinstance(refused, StorageFull) or _is(refused, error, name), where
            assert seen in (old, new, *between), where
        if name != "push a blob":
            assert _leftovers(root) == [], where
        if seen != new:
            change.make(store)
            assert _visible(root) == new, where
        store.close()
        number += 1
    assert number > 2


def _is(raised: Exception, error: int, name: str) -> bool:
    """Whether an `OSError` may be the answer: not to a full disk, unless nothing was to be kept."""
    space = error in (errno.ENOSPC, errno.EDQUOT)
    same = isinstance(raised, OSError) and raised.errno == error
    return same and (not space or "delete" in name)


@pytest.mark.parametrize("error", FAILURES)
def test_publisher_write(error: int, tmp_path: Path, disk: Disk) -> None:
    """Until the rename the old content stays, and no temporary file ever does."""
    number, failed = 0, True
    while failed:
        tree = tmp_path / str(number)
        publisher = Publisher(tree, tree / "_scratch")
        publisher.open()
        publisher.write(tree / "old/file", b"old")
        refused = None
        with disk.watch(fail_at=number, error=error):
            try:
                publisher.write(tree / "new/file", b"new")
                publisher.write(tree / "old/file", b"new")
            except (StorageFull, OSError) as raised:
                refused = raised
        failed = len(disk.steps) > number
        if failed:
            kind = OSError if error == errno.EIO else StorageFull
            assert type(refused) is kind, disk.steps[number]
            renamed = {s.target for s in disk.steps[:number] if s.kind == "rename"}
            content = (tree / "old/file").read_bytes()
            assert content == (b"new" if tree / "old/file" in renamed else b"old")
            assert (tree / "new/file").exists() == (tree / "new/file" in renamed)
        assert [p for p in (tree / "_scratch").rglob("*") if p.is_file()] == []
        publisher.close()
        number += 1
    assert number > 8


@pytest.mark.parametrize("error", FAILURES)
def test_publisher_adopt(error: int, tmp_path: Path, disk: Disk) -> None:
    """Until the rename the source stays where it was and whole."""
    number, failed = 0, True
    while failed:
        tree = tmp_path / str(number)
        publisher = Publisher(tree, tree / "_scratch")
        publisher.open()
        (tree / "source").write_bytes(b"whole")
        with disk.watch(fail_at=number, error=error), contextlib.suppress(StorageFull, OSError):
            publisher.adopt(tree / "source", tree / "a/b/target")
        failed = len(disk.steps) > number
        renamed = any(s.kind == "rename" for s in disk.steps[:number])
        assert (tree / "source").exists() != renamed
        assert (tree / "a/b/target").exists() == renamed
        assert (tree / ("a/b/target" if renamed else "source")).read_bytes() == b"whole"
        publisher.close()
        number += 1
    assert number > 4


@pytest.mark.parametrize("error", FAILURES)
def test_upload_write(error: int, tmp_path: Path, disk: Disk) -> None:
    """A write that fails half way counts for nothing: the client sends the same bytes again."""
    store = DistributionStore(tmp_path / "root")
    upload = store.begin_upload(REPO, "sha256")
    upload.write([b"first "], 0)
    number, failed = 0, True
    while failed:
        at = upload.offset
        with disk.watch(fail_at=number, error=error), contextlib.suppress(StorageFull, OSError):
            upload.write([b"second ", b"third "], at)
        failed = len(disk.steps) > number
        assert upload.offset == (at if failed else at + 13)
        number += 1
    assert number > 2
    digest = digests.of(b"first second third ")
    upload.commit(digest)
    assert read(store.blob(REPO, digest)) == b"first second third "
    store.close()


@pytest.mark.parametrize("error", FAILURES)
def test_upload_begin(error: int, tmp_path: Path, disk: Disk) -> None:
    """A session that could not be begun leaves no file that nobody knows of."""
    number, failed = 0, True
    while failed:
        root = tmp_path / str(number)
        store = DistributionStore(root)
        refused: Exception | None = None
        with disk.watch(fail_at=number, error=error):
            try:
                store.begin_upload(REPO, "sha256")
            except (StorageFull, OSError) as raised:
                refused = raised
        failed = len(disk.steps) > number
        if failed:
            assert type(refused) is (OSError if error == errno.EIO else StorageFull)
            assert _leftovers(root) == [], disk.steps[number]
        store.close()
        number += 1
    assert number > 3


def test_upload_commit(tmp_path: Path, disk: Disk) -> None:
    """After a failed commit the session either can be committed again or has left nothing."""
    number, failed = 0, True
    while failed:
        root = tmp_path / str(number)
        store = DistributionStore(root)
        upload = _upload(store)
        with disk.watch(fail_at=number), contextlib.suppress(OSError):
            upload.commit(digests.of(BLOB))
        failed = len(disk.steps) > number
        try:
            store.upload(REPO, upload.id).commit(digests.of(BLOB))
        except UploadUnknown:
            assert _leftovers(root) == [], disk.steps[number] if failed else "success"
            push(store, REPO, BLOB)
        assert read(store.blob(REPO, digests.of(BLOB))) == BLOB
        assert _leftovers(root) == []
        store.close()
        number += 1
    assert number > 8


def test_full_disk_is_named_to_the_client(tmp_path: Path, disk: Disk) -> None:
    """The message of a full disk says so, and shows no path of the host."""
    store = DistributionStore(tmp_path)
    for error in (errno.ENOSPC, errno.EDQUOT):
        with disk.watch(fail_at=0, error=error), pytest.raises(StorageError) as refused:
            push(store, REPO, BLOB)
        assert isinstance(refused.value, StorageFull)
        assert "space" in refused.value.message
        assert str(tmp_path) not in refused.value.message
    store.close()
