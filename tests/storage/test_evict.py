"""Eviction: images of upstreams go, least recently pulled first; nothing else ever does."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.manifest import OCI_MANIFEST, Manifest, parse
from mayfly.storage.reading import read_unverified
from mayfly.storage.upkeep import evict
from mayfly.storage.upkeep.evict import Freed, Usage, free, thresholds, usage_of
from tests.support.fixtures import quick_sync as quick_sync
from tests.support.images import descriptor, image_body, index_body, push, put, subject_of

REPO = "quay.io/team/app"
SIZE = 100_000
DISK = 1_000_000
DAY = 86400.0


@pytest.fixture
def store(root: Path, monkeypatch: pytest.MonkeyPatch) -> DistributionStore:
    """A store on a disk of a megabyte, which has nothing else."""
    made = DistributionStore(root)

    def usage(directory: Path) -> Usage:
        held = sum(path.stat().st_size for _, path in made.stored_blobs())
        return Usage(DISK, DISK - held)

    monkeypatch.setattr(evict, "usage_of", usage)
    return made


def _cache(
    store: DistributionStore, tag: str, days: float, body: bytes = b"", repository: str = REPO
) -> Digest:
    """An image of an upstream as a pull leaves it, last pulled a number of days ago."""
    if not body:
        layer = tag.encode()[:1] * SIZE
        push(store, repository, layer)
        push(store, repository, b"{}")
        body = image_body(b"{}", [layer], annotations={"tag": tag})
    manifest = parse(body)
    digest = digests.of(body)
    store.cache_manifest(repository, manifest, digest, tag or None)
    _age(store, digest, days, repository)
    return digest


def _age(store: DistributionStore, digest: Digest, days: float, repository: str = REPO) -> None:
    """Make a manifest last pulled a number of days ago, and all blobs old."""
    then = time.time() - days * DAY
    os.utime(store.parts.layout.cached_manifest(repository, digest), (then, then))
    old = time.time() - 100 * DAY
    for _, path in store.stored_blobs():
        os.utime(path, (old, old))


def _names(found: Freed) -> list[str]:
    return [one.name.rpartition(":")[2] for one in found.evicted]


def _tags(store: DistributionStore, repository: str = REPO) -> list[str]:
    return store.tags(repository)


def test_the_least_recently_pulled_go_first(store: DistributionStore) -> None:
    """Down to the lower threshold, and no further; their blobs with them."""
    for tag, days in (("a", 3), ("b", 9), ("c", 1), ("d", 5)):
        _cache(store, tag, days)
    planned = free(store, 35, 25, dry_run=True)
    assert _tags(store) == ["a", "b", "c", "d"]
    found = free(store, 35, 25)
    assert _names(found) == _names(planned) == ["b", "d"]
    assert found.evicted[0].size == planned.evicted[0].size > SIZE
    assert found.is_enough and planned.is_enough
    assert round(found.after.percent) == round(planned.after.percent) == 20
    assert _tags(store) == ["a", "c"]
    assert free(store, 35, 25).evicted == ()


def test_below_the_threshold_nothing_happens(store: DistributionStore) -> None:
    """Not even a look at the store."""
    _cache(store, "a", 9)
    push(store, REPO, b"garbage")
    found = free(store, 50, 0.5)
    assert (found.evicted, found.collected.blobs, found.is_enough) == ((), (), True)
    assert found.before == found.after


def test_garbage_goes_before_images(store: DistributionStore) -> None:
    """If that is enough, no image goes."""
    _cache(store, "a", 9)
    push(store, REPO, b"x" * SIZE)
    _cache(store, "b", 8)
    found = free(store, 25, 22)
    assert (found.evicted, len(found.collected.blobs)) == ((), 1)
    assert free(store, 15, 12).evicted[0].tags == ("a",)


def test_pushed_content_stays(store: DistributionStore) -> None:
    """An image that was pushed, a tag that was pushed over an upstream's, an index over a child."""
    pushed = b"p" * SIZE
    push(store, REPO, pushed)
    push(store, REPO, b"{}")
    put(store, REPO, image_body(b"{}", [pushed]), "pushed")
    _cache(store, "a", 9)
    _cache(store, "b", 8)
    child = _cache(store, "c", 7)
    again = parse(image_body(b"{}", [b"b" * SIZE], annotations={"tag": "b"}))
    put(store, REPO, again.body, "mine")
    body = image_body(b"{}", [b"c" * SIZE], annotations={"tag": "c"})
    put(store, REPO, index_body(manifests=[descriptor(body, OCI_MANIFEST)]), "index")
    for digest in (child,):
        _age(store, digest, 7)
    found = free(store, 1, 0.5)
    assert _names(found) == ["a"]
    assert not found.is_enough
    assert _tags(store) == ["b", "c", "index", "mine", "pushed"]
    store.manifest(REPO, child)


@pytest.mark.parametrize("reason", ["protected", "in use", "recent"])
def test_what_must_stay_stays(store: DistributionStore, reason: str) -> None:
    """With its children, and with the signatures that refer to it."""
    child = _cache(store, "", 9, _body(store, b"child"))
    child_body = read_unverified(store, REPO, child)
    index = index_body(manifests=[descriptor(child_body, OCI_MANIFEST)])
    top = _cache(store, "top", 0 if reason == "recent" else 9, index)
    signature = _cache(
        store, "", 9, _body(store, b"sig", subject=subject_of(parse(index)), annotations={"s": "1"})
    )
    other = _cache(store, "other", 8)
    _age(store, top, 0 if reason == "recent" else 9)
    found = free(
        store,
        1,
        0.5,
        is_protected=lambda repository, digest, tags: reason == "protected" and "top" in tags,
        in_use=lambda: [(REPO, top)] if reason == "in use" else [],
    )
    assert [one.digest for one in found.evicted] == [other]
    for digest in (top, child, signature):
        store.manifest(REPO, digest)


def _body(store: DistributionStore, layer: bytes, **fields: Any) -> bytes:
    push(store, REPO, layer)
    push(store, REPO, b"{}")
    return image_body(b"{}", [layer], **fields)


def test_a_blob_in_use_keeps_its_image(store: DistributionStore) -> None:
    """A pull that is at one of the layers may still ask for the others."""
    _cache(store, "a", 9)
    layer = digests.of(b"a" * SIZE)
    assert free(store, 1, 0.5, in_use=lambda: [(REPO, layer)]).evicted == ()
    assert _names(free(store, 1, 0.5, in_use=lambda: [("other", layer)])) == ["a"]


def test_shared_layers_count_once(store: DistributionStore) -> None:
    """A layer that another image needs is not free before that one has gone, too."""
    _cache(store, "a", 9)
    shared = image_body(b"{}", [b"a" * SIZE], annotations={"other": "1"})
    _cache(store, "b", 8, shared)
    _cache(store, "c", 7)
    found = free(store, 15, 11)
    assert _names(found) == ["a", "b"]
    assert [one.size > SIZE for one in found.evicted] == [False, True]


def test_young_blobs_are_not_counted_on(store: DistributionStore) -> None:
    """The collector would keep them: others have to go."""
    _cache(store, "a", 9)
    _cache(store, "b", 8)
    os.utime(store.parts.layout.data(digests.of(b"a" * SIZE)))
    found = free(store, 15, 12)
    assert _names(found) == ["a", "b"]
    assert found.evicted[0].size < SIZE


@pytest.mark.parametrize("change", ["pull", "push", "tag", "use"])
def test_a_change_meanwhile_saves_an_image(
    store: DistributionStore, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Between the choice and the removal: it is looked at again, behind the locks."""
    digest = _cache(store, "a", 9)
    manifest = _manifest(store, digest)
    used: list[tuple[str, Digest]] = []
    choose = evict._Eviction.choose

    def chosen(self: evict._Eviction, *words: object) -> object:
        found = choose(self, *words)  # type: ignore[arg-type]
        match change:
            case "pull":
                store.record_pull(REPO, digest)
            case "push":
                store.put_manifest(REPO, manifest, digest, ())
            case "tag":
                store.put_manifest(REPO, manifest, digest, ("mine",))
            case _:
                used.append((REPO, digest))
        return found

    monkeypatch.setattr(evict._Eviction, "choose", chosen)
    assert free(store, 5, 1, in_use=lambda: used).evicted == ()
    store.manifest(REPO, digest)


@pytest.mark.parametrize("grace", [0, 3600])
@pytest.mark.parametrize("depth", [1, 2])
def test_an_index_pushed_meanwhile_keeps_what_it_names(
    store: DistributionStore, monkeypatch: pytest.MonkeyPatch, grace: float, depth: int
) -> None:
    """Between the choice and the removal: a child of it, and what that child names."""
    digest = _cache(store, "", 9)
    named = [digest]
    for _ in range(depth - 1):
        digest = _cache(store, "", 8, index_body([_manifest(store, digest)]))
        named.append(digest)
    other = _cache(store, "other", 7)
    body = index_body([_manifest(store, digest)])
    choose = evict._Eviction.choose

    def chosen(self: evict._Eviction, *words: object) -> object:
        found = choose(self, *words)  # type: ignore[arg-type]
        put(store, REPO, body, "mine")
        return found

    monkeypatch.setattr(evict._Eviction, "choose", chosen)
    assert [one.digest for one in free(store, 5, 1, grace).evicted] == [other]
    for one in named:
        for blob in _manifest(store, one).blobs:
            store.blob(REPO, blob.digest)


@pytest.mark.parametrize("step", ["look", "remove"])
def test_eviction_is_linear(store: DistributionStore, step: str, quick_sync: None) -> None:
    """Twice as many tags and signatures take twice as long, not four times."""

    def steps(count: int) -> int:
        repository = f"quay.io/many/{count}"
        push(store, repository, b"{}")
        for number in range(count):
            image = parse(image_body(b"{}", annotations={"n": str(number)}))
            store.cache_manifest(repository, image, digests.of(image.body), f"t{number}")
            signature = parse(image_body(b"{}", subject=subject_of(image)))
            store.cache_manifest(repository, signature, digests.of(signature.body), None)
        eviction = evict._Eviction(store, 0, evict.unprotected, tuple)
        nodes = eviction._nodes(repository)
        assert nodes is not None and len(nodes) == 2 * count
        if step == "look":
            return _instructions(lambda: list(eviction._candidates(repository, nodes)))
        chosen = eviction.choose(DISK, frozenset())
        assert len(chosen) == 2 * count
        taken = _instructions(lambda: eviction.remove(chosen))
        assert not list(store.revisions(repository)) and not store.tag_names(repository)
        return taken

    few, many = steps(20), steps(80)
    assert many < 6 * few


def _instructions(call: Callable[[], object]) -> int:
    """How many instructions of Python a call takes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def _manifest(store: DistributionStore, digest: Digest) -> Manifest:
    return parse(read_unverified(store, REPO, digest))


def test_a_damaged_manifest_keeps_its_repository(store: DistributionStore) -> None:
    """What it needs is unknown; other repositories are not hurt."""
    damaged = _cache(store, "a", 9)
    _cache(store, "b", 9, repository="quay.io/team/other")
    store.parts.layout.data(damaged).write_bytes(b"not a manifest")
    found = free(store, 5, 1)
    assert [one.repository for one in found.evicted] == ["quay.io/team/other"]


def test_pushes_beside_evictions_lose_nothing(store: DistributionStore) -> None:
    """Images that share layers with cached ones are pushed all the time; each is whole."""
    end = time.monotonic() + 3
    errors: list[BaseException] = []
    pushed: list[tuple[str, Digest]] = []

    def client(number: int) -> None:
        try:
            for turn in range(1000):
                if time.monotonic() > end:
                    return
                layer = b"abc"[turn % 3 : turn % 3 + 1] * SIZE
                push(store, REPO, b"{}")
                push(store, REPO, layer)
                body = image_body(b"{}", [layer], annotations={"n": f"{number}-{turn}"})
                _, digest = put(store, REPO, body, f"mine-{number}-{turn}")
                pushed.append((REPO, digest))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    turns = 0
    while time.monotonic() < end:
        for tag in "abc":
            layer = tag.encode() * SIZE
            push(store, REPO, layer)
            body = image_body(b"{}", [layer], annotations={"turn": f"{turns}"})
            digest = digests.of(body)
            store.cache_manifest(REPO, parse(body), digest, f"{tag}{turns}")
            then = time.time() - DAY
            os.utime(store.parts.layout.cached_manifest(REPO, digest), (then, then))
        free(store, 0.1, 0.05, 1.5)
        turns += 1
    for thread in threads:
        thread.join()
    assert errors == []
    assert pushed and turns > 1
    for repository, digest in pushed:
        manifest = _manifest(store, digest)
        for blob in manifest.blobs:
            assert store.blob(repository, blob.digest).size == blob.size


def test_thresholds() -> None:
    """The lower one is below the upper one; without it, by 5."""
    assert thresholds(85, None) == (85, 80)
    assert thresholds(3, None) == (3, 0)
    for low in (85, 90):
        with pytest.raises(ValueError, match="not below"):
            thresholds(85, low)


def test_the_usage_of_a_filesystem(tmp_path: Path) -> None:
    """As the kubelet counts it: what is not available is used."""
    found = usage_of(tmp_path)
    status = os.statvfs(tmp_path)
    assert 0 < found.percent < 100
    assert found.available <= found.size == status.f_blocks * status.f_frsize
    assert Usage(1000, 150).above(80) == 50
    assert Usage(1000, 300).above(80) == 0
    assert Usage(0, 0).percent == 0
