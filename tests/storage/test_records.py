"""What is known of a blob's bytes: a file that is cut is no blob, and nothing else hides one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import BlobUnknown, ManifestBlobUnknown, ManifestUnknown, SizeInvalid
from mayfly.storage.upkeep.collect import collect
from tests.storage.disk import Disk
from tests.support.images import descriptor, image_body, push, put, put_image, read
from tests.support.process import poll

REPO = "team/app"
LAYER = b"layer " * 1000


@pytest.fixture
def store(root: Path) -> DistributionStore:
    """A store whose blobs are damaged behind its back."""
    return DistributionStore(root)


def _blob(root: Path, digest: Digest) -> Path:
    return root / "docker/registry/v2/blobs" / digest.algorithm / digest.hex[:2] / digest.hex


def _records(root: Path, digest: Digest) -> list[str]:
    return sorted(p.name.rstrip("0123456789_") for p in _blob(root, digest).glob("_mayfly_*"))


def _forget(root: Path, digest: Digest) -> Path:
    """Leave a blob as another writer would have; its data."""
    for record in _blob(root, digest).glob("_mayfly_*"):
        record.unlink()
    return _blob(root, digest) / "data"


def _is_unknown(store: DistributionStore, digest: Digest) -> bool:
    try:
        store.blob(REPO, digest)
    except BlobUnknown:
        return True
    return False


@pytest.mark.parametrize("length", [0, 1, len(LAYER) - 1, len(LAYER) + 1])
def test_file_of_another_length_is_unknown(
    store: DistributionStore, root: Path, length: int
) -> None:
    """A blob whose file is empty, cut or longer is unknown to every question; a push heals it."""
    digest = push(store, REPO, LAYER)
    os.truncate(_blob(root, digest) / "data", length)
    for call in (
        lambda: store.blob(REPO, digest),
        lambda: store.touch(REPO, digest),
        lambda: store.mount("copy", digest, REPO),
    ):
        with pytest.raises(BlobUnknown, match="damaged"):
            call()
    assert list(store.repositories_with(digest)) == []
    with pytest.raises(ManifestBlobUnknown):
        put(store, REPO, image_body(LAYER), "v1")
    assert push(store, REPO, LAYER) == digest
    assert read(store.blob(REPO, digest)) == LAYER


def test_empty_file_is_known_by_its_digest(store: DistributionStore, root: Path) -> None:
    """No bytes have one digest for each algorithm: there no record is needed, nowhere."""
    empty, lost = push(store, REPO, b""), push(store, REPO, LAYER)
    for digest in (empty, lost):
        _forget(root, digest)
    os.truncate(_blob(root, lost) / "data", 0)
    assert store.blob(REPO, empty).size == 0
    assert _is_unknown(store, lost)


def test_other_writers_files_are_believed(store: DistributionStore, root: Path) -> None:
    """Without a record the length of a file is taken as it is."""
    digest = push(store, REPO, LAYER)
    os.truncate(_forget(root, digest), 10)
    assert store.blob(REPO, digest).size == 10


def test_contradiction_has_the_bytes_hashed(store: DistributionStore, root: Path) -> None:
    """A manifest with another size has a damaged blob found; after that a push heals it."""
    digest = push(store, REPO, LAYER)
    os.truncate(_forget(root, digest), 10)
    with pytest.raises(SizeInvalid, match="being checked"):
        put(store, REPO, image_body(LAYER), "v1")
    poll(lambda: _is_unknown(store, digest))
    assert _records(root, digest) == ["_mayfly_damaged"]
    assert _is_unknown(DistributionStore(root), digest)  # also after a restart
    push(store, REPO, LAYER)
    put(store, REPO, image_body(LAYER), "v1")
    assert _records(root, digest) == ["_mayfly_size"]


def test_served_manifest_has_the_bytes_hashed(store: DistributionStore, root: Path) -> None:
    """A manifest that is read and gives another size than the file has is reason enough."""
    push(store, REPO, LAYER)
    manifest, digest = put(store, REPO, image_body(LAYER), "v1")
    layer = digests.of(LAYER)
    _forget(root, digest)
    os.truncate(_forget(root, layer), 10)
    store.compare(REPO, digest, manifest.body)
    poll(lambda: _is_unknown(store, layer))
    assert _records(root, digest) == ["_mayfly_size"]


def test_nothing_that_is_pushed_hides_a_blob(root: Path) -> None:
    """Manifests with wrong sizes, foreign or sparse, hide nothing; each blob is hashed once."""
    store = DistributionStore(root, allow_sparse=True)
    digest = push(store, REPO, LAYER)
    for recorded in (True, False):
        if not recorded:
            _forget(root, digest)
        for size in (0, 1, len(LAYER) + 1, 2**63 - 1):
            for fields in ({}, {"urls": ["https://example.com/layer"]}):
                wrong = descriptor(LAYER) | fields | {"size": size}
                with pytest.raises(SizeInvalid):
                    put(store, REPO, image_body(b"{}", [], config=wrong), "v1")
                body = image_body(b"{}", [], config=wrong)
                put(store, "elsewhere", body, "v1")
                store.compare("elsewhere", digests.of(body), body)
        poll(lambda: _records(root, digest) == ["_mayfly_size"])
        assert read(store.blob(REPO, digest)) == LAYER
    with pytest.raises(SizeInvalid) as refused:
        put(store, REPO, image_body(b"{}", [], config=descriptor(LAYER, size=1)))
    assert "checked" not in refused.value.message


def test_mark_is_of_the_file_that_was_hashed(store: DistributionStore, root: Path) -> None:
    """A good file put in the place of a damaged one, by whomever, is served."""
    digest = push(store, REPO, LAYER)
    data = _blob(root, digest) / "data"
    data.write_bytes(b"x" * len(LAYER))
    assert not store.examine(digest)
    assert _is_unknown(store, digest)
    draft = data.with_name("draft")
    draft.write_bytes(LAYER)
    draft.replace(data)
    assert read(store.blob(REPO, digest)) == LAYER


def test_damage_that_cannot_be_marked(store: DistributionStore, root: Path, disk: Disk) -> None:
    """Where the disk takes no mark, this process remembers."""
    digest = push(store, REPO, LAYER)
    os.truncate(_forget(root, digest), 10)
    with disk.watch(fail_at=0):
        assert not store.examine(digest)
    assert _records(root, digest) == []
    assert _is_unknown(store, digest)


@pytest.mark.parametrize("place", ["directory", "pipe", "dangling link", "file for a directory"])
def test_something_else_in_the_place_of_a_file(
    store: DistributionStore, root: Path, place: str
) -> None:
    """What is no file is no blob, and nothing waits for it."""
    digest = push(store, REPO, LAYER)
    data = _forget(root, digest)
    data.unlink()
    match place:
        case "directory":
            data.mkdir()
        case "pipe":
            os.mkfifo(data)
        case "dangling link":
            data.symlink_to("nowhere")
        case _:
            data.parent.rmdir()
            data.parent.write_bytes(b"")
    assert _is_unknown(store, digest)
    assert not store.examine(digest)
    assert not store.is_whole(digest)
    if place != "file for a directory":
        push(store, REPO, LAYER)
        assert read(store.blob(REPO, digest)) == LAYER


def test_cut_manifest_is_unknown(store: DistributionStore, root: Path) -> None:
    """A manifest is a blob: cut, it is unknown, and a push heals it."""
    _, digest = put_image(store, REPO, "v1")
    os.truncate(_blob(root, digest) / "data", 20)
    with pytest.raises(ManifestUnknown, match="damaged"):
        store.manifest(REPO, digest)
    put_image(store, REPO, "v1")
    assert read(store.manifest(REPO, digest)) == image_body()


def test_collecting_leaves_nothing(store: DistributionStore, root: Path) -> None:
    """Records go with their blob."""
    digest = push(store, REPO, LAYER)
    os.utime(_blob(root, digest) / "data", (0, 0))
    assert collect(store, 0).blobs == (digest,)
    assert not _blob(root, digest).parent.exists()
