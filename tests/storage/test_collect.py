"""Garbage collection: what goes, what stays, and what a push beside it can rely on."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import BlobUnknown
from mayfly.storage.manifest import parse
from mayfly.storage.reading import repositories
from mayfly.storage.upkeep.collect import collect
from tests.support.images import all_succeed, image_body, index_body, push, put, put_image, read
from tests.support.process import PATIENCE

REPO = "team/app"


@pytest.fixture
def store(root: Path) -> DistributionStore:
    """The store that is collected."""
    return DistributionStore(root)


def _age(store: DistributionStore, digest: Digest, seconds: float = 7200) -> None:
    """Make a blob look untouched for that long."""
    then = time.time() - seconds
    path = dict(store.stored_blobs())[digest]
    os.utime(path, (then, then))


def test_unreferenced_goes_referenced_stays(store: DistributionStore) -> None:
    """A blob that no manifest names is removed with its link; everything an image needs stays."""
    lonely = push(store, REPO, b"lonely")
    _, manifest = put_image(store, REPO, "v1")
    for digest, _ in list(store.stored_blobs()):
        _age(store, digest)
    found = collect(store, 3600)
    assert found.blobs == (lonely,)
    assert found.size == len(b"lonely")
    with pytest.raises(BlobUnknown):
        store.blob(REPO, lonely)
    assert read(store.manifest(REPO, manifest)) == image_body()
    assert read(store.blob(REPO, digests.of(b"{}"))) == b"{}"


def test_grace_spares_the_young(store: DistributionStore) -> None:
    """What was touched within the grace stays, and a dry run removes nothing."""
    young, old = push(store, REPO, b"young"), push(store, REPO, b"old")
    _age(store, old)
    assert collect(store, 3600, dry_run=True).blobs == (old,)
    assert read(store.blob(REPO, old)) == b"old"
    assert collect(store, 3600).blobs == (old,)
    assert read(store.blob(REPO, young)) == b"young"


def test_mount_and_manifest_start_the_age_anew(store: DistributionStore) -> None:
    """A push that only refers to an old blob keeps it from a collection that began before."""
    mounted, named = push(store, "source", b"mounted"), push(store, REPO, b"{}")
    for digest in (mounted, named):
        _age(store, digest)
    store.mount(REPO, mounted, "source")
    put(store, REPO, image_body(), "v1")
    store.delete_tag(REPO, "v1")
    store.delete_manifest(REPO, digests.of(image_body()))
    assert collect(store, 3600).blobs == ()


def test_age_begins_when_an_upload_is_finished(store: DistributionStore, root: Path) -> None:
    """Not with its last byte: a push that continued after a long pause is as young as any."""
    upload = store.begin_upload(REPO, "sha256")
    upload.write([b"resumed"], 0)
    (data,) = root.rglob("_uploads/*/data")
    os.utime(data, (0, 0))
    upload.commit(digests.of(b"resumed"))
    assert collect(store, 3600).blobs == ()


def test_hold_starts_the_age_anew(store: DistributionStore) -> None:
    """A blob that a push was told is there stays until its manifest can come."""
    digest = push(store, REPO, b"asked for")
    _age(store, digest)
    assert read(store.touch(REPO, digest)) == b"asked for"
    assert collect(store, 3600).blobs == ()


def test_finished_upload_starts_the_age_anew(store: DistributionStore, root: Path) -> None:
    """A session that stood still for long becomes a blob whose manifest has the grace to come."""
    upload = store.begin_upload(REPO, "sha256")
    upload.write([b"slow"], 0)
    then = time.time() - 7200
    (data,) = root.rglob("_uploads/*/data")
    os.utime(data, (then, then))
    upload.commit(digests.of(b"slow"))
    assert collect(store, 3600).blobs == ()


def test_hold_in_the_moment_of_a_mark(
    store: DistributionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for while the collector marks stays, though no grace spares it.

    The times of files come from a clock that ticks a hundred times a second on many a kernel: they
    lie before those of a clock which was read a moment earlier.
    """
    precise = os.utime

    def coarse(path: Path, times: tuple[float, float] | None = None) -> None:
        tick = time.time() // 0.01 * 0.01
        precise(path, times or (tick, tick))

    monkeypatch.setattr(os, "utime", coarse)
    listing = store.repositories
    digest = push(store, REPO, b"asked for")

    def page(after: str, limit: int) -> list[str]:
        found = listing(after, limit)
        if not found:
            store.touch(REPO, digest)
        return found

    monkeypatch.setattr(store, "repositories", page)
    for _ in range(10):
        _age(store, digest)
        assert collect(store, 0).blobs == ()


@pytest.mark.parametrize("untagged", [False, True])
def test_push_in_the_moment_of_a_mark(
    store: DistributionStore, root: Path, monkeypatch: pytest.MonkeyPatch, untagged: bool
) -> None:
    """A manifest that is stored and not linked yet, or not tagged, when a collection begins stays
    with all that it names, though no grace spares it."""
    for blob in (b"{}", b"layer"):
        push(store, REPO, blob)
    other = DistributionStore(root)
    collecting = threading.Thread(target=collect, args=(other, 0), kwargs={"untagged": untagged})
    links: list[Path] = []
    link = store._link

    def slow_link(path: Path, digest: Digest) -> None:
        links.append(path)
        if len(links) == 1 + untagged:
            collecting.start()
            collecting.join(0.3)  # without the wait for pushes it has marked by then
        link(path, digest)

    monkeypatch.setattr(store, "_link", slow_link)
    body = image_body(b"{}", [b"layer"])
    _, manifest = put(store, REPO, body, "v1")
    collecting.join(PATIENCE)
    other.close()
    assert store.tag(REPO, "v1") == manifest
    assert read(store.manifest(REPO, manifest)) == body
    for one in parse(body).blobs:
        assert digests.of(read(store.blob(REPO, one.digest))) == one.digest


def test_untagged_and_nested_manifests_stay(store: DistributionStore) -> None:
    """Children of an index and manifests without a tag are kept, with all they name."""
    child, _ = put_image(store, REPO)
    put(store, REPO, index_body([child]), "multi")
    for digest, _ in list(store.stored_blobs()):
        _age(store, digest)
    assert collect(store, 0).blobs == ()


def test_other_repository_keeps_the_blob(store: DistributionStore) -> None:
    """A blob deleted in one repository stays while another's image names it."""
    put_image(store, REPO, "v1")
    put_image(store, "other", "v1")
    store.delete_manifest(REPO, digests.of(image_body()))
    store.delete_blob(REPO, digests.of(b"{}"))
    for digest, _ in list(store.stored_blobs()):
        _age(store, digest)
    assert collect(store, 0).blobs == ()
    assert read(store.blob("other", digests.of(b"{}"))) == b"{}"


def test_link_goes_with_the_blob(store: DistributionStore) -> None:
    """The same content pushed elsewhere later does not come back where it was collected."""
    digest = push(store, REPO, b"content")
    _age(store, digest)
    collect(store, 0)
    push(store, "other", b"content")
    with pytest.raises(BlobUnknown):
        store.blob(REPO, digest)


def _damage_link(store: DistributionStore, root: Path, manifest: Digest) -> None:
    (root / f"{REVISIONS}/{manifest.hex}/link").unlink()


DAMAGE: dict[str, Callable[[DistributionStore, Path, Digest], object]] = {
    "torn": lambda store, root, d: store.manifest(REPO, d).path.write_bytes(b"torn"),
    "empty": lambda store, root, d: store.manifest(REPO, d).path.write_bytes(b""),
    "zeros": lambda store, root, d: store.manifest(REPO, d).path.write_bytes(bytes(99)),
    "another manifest": lambda store, root, d: store.manifest(REPO, d).path.write_bytes(
        image_body(b"{}", [])
    ),
    "gone": lambda store, root, d: store.manifest(REPO, d).path.unlink(),
    "link gone": _damage_link,
}
REVISIONS = f"docker/registry/v2/repositories/{REPO}/_manifests/revisions/sha256"


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_manifest_keeps_its_repository(
    store: DistributionStore, root: Path, damage: Callable[..., object]
) -> None:
    """What a damaged manifest refers to is not known: its repository keeps all, no other does."""
    for data in (b"{}", b"layer"):
        push(store, REPO, data)
    _, manifest = put(store, REPO, image_body(b"{}", [b"layer"]), "v1")
    lonely, elsewhere = push(store, REPO, b"lonely"), push(store, "other", b"elsewhere")
    damage(store, root, manifest)
    for digest, _ in list(store.stored_blobs()):
        _age(store, digest)
    found = collect(store, 0)
    assert found.blobs == (elsewhere,)
    assert read(store.blob(REPO, lonely)) == b"lonely"
    assert read(store.blob(REPO, digests.of(b"layer"))) == b"layer"
    (unread,) = found.unread
    assert unread.image in (f"{REPO}@{manifest}", f"{REPO}:v1")


def test_damaged_manifest_in_two_repositories(store: DistributionStore) -> None:
    """Each repository that links the damaged bytes keeps its own blobs."""
    for name in (REPO, "other"):
        push(store, name, b"layer of " + name.encode())
        put_image(store, name, "v1")
    store.manifest(REPO, digests.of(image_body())).path.write_bytes(b"torn")
    for digest, _ in list(store.stored_blobs()):
        _age(store, digest)
    found = collect(store, 0)
    assert found.blobs == ()
    assert len(found.unread) == 2


def _store_as_registry_2(store: DistributionStore, root: Path, body: bytes) -> Digest:
    """Put a manifest where registry:2 would; no push of ours would be taken."""
    digest = digests.of(body)
    push(store, REPO, body)
    link = root / f"{REVISIONS}/{digest.hex}/link"
    link.parent.mkdir(parents=True)
    link.write_text(str(digest))
    return digest


@pytest.mark.parametrize("depth", [1, 988, 5000])
def test_both_readings_of_a_stored_manifest_are_kept(
    store: DistributionStore, root: Path, depth: int
) -> None:
    """Whichever of two keys a client goes by, and however deep it lies, its blob stays."""
    one, two, lonely = (push(store, REPO, data) for data in (b"one", b"two", b"lonely"))
    push(store, REPO, b"{}")
    layer = f'{{"mediaType":"x","size":3,"digest":"{one}","Digest":"{two}"}}'
    deep = "[" * depth + layer + "]" * depth
    fields = image_body()[:-1].decode().replace(', "layers": []', "")
    _store_as_registry_2(store, root, f'{fields},"layers":[{deep}]}}'.encode())
    for digest, _ in list(store.stored_blobs()):
        _age(store, digest)
    found = collect(store, 0)
    assert (found.blobs, found.unread) == ((lonely,), ())


def test_collect_beside_pushes(store: DistributionStore, root: Path) -> None:
    """Pushes, mounts and deletes beside a collector that never rests: nothing tagged is lost."""
    seed = random.randrange(2**32)
    done = threading.Event()
    freed: list[int] = []

    def collector() -> None:
        other = DistributionStore(root)  # as a command beside the server: only the gate is shared
        while not done.is_set():
            freed.append(len(collect(other, 30).blobs))
        other.close()

    def pusher(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        for turn in range(40):
            repository = f"r{number}"
            layers = [b"shared %d" % chance.randrange(3), b"own %d %d" % (number, turn)]
            for layer in (*layers, b"{}"):
                digest = push(store, repository, layer)
                if chance.random() < 0.3:
                    _age(store, digest, 22)
            body = image_body(b"{}", layers)
            _, digest = put(store, repository, body, "keep" if turn % 2 else "drop")
            if chance.random() < 0.3:
                store.delete_manifest(repository, digest)

    def work() -> None:
        try:
            all_succeed([lambda n=n: pusher(n) for n in range(3)])
        finally:
            done.set()

    all_succeed([collector, work])
    assert freed, f"seed {seed}"
    for name in repositories(store):
        for tag in store.tags(name):
            body = read(store.manifest(name, store.tag(name, tag)))
            assert digests.of(body) == store.tag(name, tag), f"seed {seed}"
            for blob in parse(body).blobs:
                assert digests.of(read(store.blob(name, blob.digest))) == blob.digest, (
                    f"seed {seed}"
                )
