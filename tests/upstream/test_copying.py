"""Copies into a store by `registry.upstream.copying`: tags that collide or move, and its marks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from mayfly.registry.upstream import copying, gather
from mayfly.registry.upstream.copying import (
    Copied,
    Item,
    Outcome,
    Plan,
    Rules,
    State,
    carry_out,
    plan,
)
from mayfly.registry.upstream.errors import ImagesMissing
from mayfly.registry.upstream.lists import Wanted
from mayfly.registry.upstream.sources import LocalSource
from mayfly.registry.upstream.targets import StoreTarget
from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import DoesNotFit, StorageFull
from mayfly.storage.manifest import Manifest, parse
from mayfly.storage.reference import Reference
from mayfly.storage.upkeep.verify import verify
from tests.support.fixtures import quick_sync as quick_sync
from tests.support.images import image_body, push, put, subject_of

REPO = "team/app"
HERE, OTHER = "registry.example", "other.example"


@dataclass
class World:
    """Two sources by host, and the store that is copied to."""

    sources: dict[str, DistributionStore]
    store: DistributionStore

    def push(self, host: str, tag: str, layer: bytes) -> Manifest:
        """An image at a source."""
        store = self.sources[host]
        for data in (b"{}", layer):
            push(store, REPO, data)
        return put(store, REPO, image_body(b"{}", [layer]), tag)[0]

    def sign(self, host: str, image: Manifest, word: str) -> Digest:
        """A signature of an image, as cosign tags it."""
        tag = f"sha256-{digests.of(image.body).hex}.sig"
        return put(self.sources[host], REPO, image_body(annotations={"w": word}), tag)[1]

    async def plan(self, *names: tuple[str, str], override: bool = False) -> Plan:
        """Plan to copy images, named by host and tag."""
        items = [
            Item(
                Wanted(Reference(host, REPO, tag)),
                lambda host: [LocalSource(self.sources[host], None, host)],
            )
            for host, tag in names
        ]
        target = StoreTarget(self.store, "store")
        return await plan(items, lambda one: (target, one.source), Rules(override=override))

    async def copy(self, *names: tuple[str, str], override: bool = False) -> list[Outcome]:
        """Plan it and carry it out; the outcomes in the order of their names."""
        planned = await self.plan(*names, override=override)
        return outcomes(await carried_out(planned))


async def carried_out(planned: Plan) -> Copied:
    """Carry out a plan."""
    return await carry_out(planned, 2, lambda size: None, lambda outcome: None)


def outcomes(copied: Copied) -> list[Outcome]:
    """In the order of their sources."""
    return sorted(copied.outcomes, key=lambda one: one.source)


@pytest.fixture
def world(tmp_path: Path, quick_sync: None) -> Iterator[World]:
    """See `World`."""
    with (
        closing(DistributionStore(tmp_path / "here")) as here,
        closing(DistributionStore(tmp_path / "other")) as other,
        closing(DistributionStore(tmp_path / "to")) as to,
    ):
        yield World({HERE: here, OTHER: other}, to)


def codes(one: Outcome) -> list[str]:
    """The codes of the problems."""
    return [problem.code for problem in one.problems]


@pytest.mark.parametrize("override", [False, True])
async def test_images_of_two_hosts_never_get_one_tag(world: World, override: bool) -> None:
    """A store has no hosts: the first of the list gets the tag, the other is named."""
    first = world.push(HERE, "1", b"here")
    world.push(OTHER, "1", b"other")
    planned = await world.plan((HERE, "1"), (OTHER, "1"), override=override)
    assert [one.state for one in planned.preview] == [State.COPIED, State.SKIPPED]
    other, here = outcomes(await carried_out(planned))
    assert (here.state, other.state, codes(other)) == (State.COPIED, State.SKIPPED, ["conflict"])
    assert world.store.tag(REPO, "1") == digests.of(first.body)


async def test_signatures_of_two_hosts_never_get_one_tag(world: World) -> None:
    """One image, signed at two places: cosign's tag is that of the first of the list."""
    image = world.push(HERE, "1", b"layer")
    world.push(OTHER, "1", b"layer")
    signature, _ = world.sign(HERE, image, "here"), world.sign(OTHER, image, "other")
    other, here = await world.copy((HERE, "1"), (OTHER, "1"), override=True)
    assert (here.state, codes(here)) == (State.COPIED, [])
    assert codes(other) == ["conflict"]
    assert world.store.tag(REPO, f"sha256-{digests.of(image.body).hex}.sig") == signature


@pytest.mark.parametrize("override", [False, True])
@pytest.mark.parametrize("moved", ["image", "signature"])
async def test_a_tag_pushed_meanwhile_stays(world: World, override: bool, moved: str) -> None:
    """Between plan and copy someone sets it: as if it had been there, --override moves it."""
    image = world.push(HERE, "1", b"layer")
    signature = world.sign(HERE, image, "mine")
    planned = await world.plan((HERE, "1"), override=override)
    push(world.store, REPO, b"{}")
    tag = "1" if moved == "image" else f"sha256-{digests.of(image.body).hex}.sig"
    _, theirs = put(world.store, REPO, image_body(annotations={"theirs": "1"}), tag)
    (found,) = outcomes(await carried_out(planned))
    ours = digests.of(image.body) if moved == "image" else signature
    assert world.store.tag(REPO, tag) == (ours if override else theirs)
    assert codes(found) == ([] if override else ["conflict"])
    skipped = moved == "image" and not override
    assert found.state is (State.SKIPPED if skipped else State.COPIED)
    if moved == "signature":
        assert world.store.tag(REPO, "1") == digests.of(image.body)


async def test_what_an_upstream_gave_is_copied(world: World) -> None:
    """Its blobs may be missing, and it may be evicted: it is copied whole, and stays then."""
    image = world.push(HERE, "1", b"layer")
    source = world.sources[HERE]
    signature = parse(image_body(b"{}", subject=subject_of(image)))
    put(source, REPO, signature.body)
    for manifest, tag in ((image, "1"), (signature, None)):
        world.store.cache_manifest(REPO, manifest, digests.of(manifest.body), tag)
    (found,) = await world.copy((HERE, "1"))
    assert (found.state, found.problems) == (State.COPIED, ())
    for manifest in (image, signature):
        digest = digests.of(manifest.body)
        assert not world.store.cached.has_manifest(REPO, digest)
        for blob in manifest.blobs:
            world.store.blob(REPO, blob.digest)
    assert world.store.cached.last_checked(REPO, "1") is None
    assert not verify(world.store).findings
    (again,) = await world.copy((HERE, "1"))
    assert again.state is State.PRESENT


async def test_a_cached_tag_is_no_conflict(world: World) -> None:
    """What the upstream had there gives way to what is copied, as to a push."""
    cached = parse(image_body(annotations={"cached": "1"}))
    world.store.cache_manifest(REPO, cached, digests.of(cached.body), "1")
    image = world.push(HERE, "1", b"layer")
    (found,) = await world.copy((HERE, "1"))
    assert found.state is State.COPIED
    assert world.store.tag(REPO, "1") == digests.of(image.body)


async def test_an_image_that_does_not_fit_fails_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of the list are copied; a store that is full ends the copy."""
    world.push(HERE, "large", b"l" * 1000)
    world.push(HERE, "small", b"s" * 10)

    def check(size: int) -> None:
        if size > 100:
            raise DoesNotFit("not enough space left", {"size": size})

    monkeypatch.setattr(world.store, "check_room", check)
    large, small = await world.copy((HERE, "large"), (HERE, "small"))
    assert (large.state, codes(large)) == (State.FAILED, ["does_not_fit"])
    assert small.state is State.COPIED

    def full(size: int) -> None:
        raise StorageFull("no space left")

    monkeypatch.setattr(world.store, "check_room", full)
    with pytest.raises(StorageFull, match="no space left"):
        await world.copy((HERE, "large"))


@pytest.mark.parametrize("is_present", [False, True])
async def test_manifests_in_memory_have_a_bound(
    world: World, monkeypatch: pytest.MonkeyPatch, is_present: bool
) -> None:
    """An image for which there is no room fails alone; one that is there already takes none."""
    monkeypatch.setattr(gather, "_MAX_MEMORY", 300_000)
    monkeypatch.setattr(copying, "_AT_ONCE", 1)
    push(world.sources[HERE], REPO, b"{}")
    for tag in "abcd":
        size = 1_000_000 if tag == "d" else 200_000
        put(world.sources[HERE], REPO, image_body(annotations={"a": tag * size}), tag)
    if is_present:
        for tag in "ab":
            (one,) = await world.copy((HERE, tag))
            assert one.state is State.COPIED
    found = await world.copy(*((HERE, tag) for tag in "abcd"))
    states = [str(one.state) for one in found]
    if is_present:
        assert states == ["present", "present", "copied", "failed"]
    else:
        assert sorted(states) == ["copied", "failed", "failed", "failed"]
    for one in found:
        assert codes(one) == (["too_many"] if one.state is State.FAILED else [])


async def test_a_bundle_has_the_same_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image for which there is no room is named."""
    monkeypatch.setattr(gather, "_MAX_MEMORY", 300_000)
    push(world.sources[HERE], REPO, b"{}")
    wanted = []
    for tag in "ab":
        put(world.sources[HERE], REPO, image_body(annotations={"a": tag * 200_000}), tag)
        wanted.append(Wanted(Reference(HERE, REPO, tag)))

    def find(host: str) -> list[LocalSource]:
        return [LocalSource(world.sources[host], None, host)]

    with pytest.raises(ImagesMissing, match="take more than") as raised:
        await gather.gather(wanted, find, (), referrers=True)
    assert [problem.code for problem in raised.value.problems] == ["too_many"]
    assert (await gather.gather(wanted[:1], find, (), referrers=True)).images == 1
