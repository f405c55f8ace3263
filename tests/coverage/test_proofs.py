"""Proofs: what a node says of itself, read strictly, bound to a nonce, kept, and bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.coverage import fact_limits, proofs
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.proofs import (
    MAX_BODY,
    MAX_IMAGES,
    NONCE_SECONDS,
    Nonces,
    ProofInvalid,
    ProvenImage,
    parse_proof,
)
from mayfly.registry.coverage.states import State
from mayfly.registry.coverage.upgrade_lists import Nodes
from tests.coverage.test_coverage import (
    APP,
    APP_1,
    APP_2,
    CONFIG,
    LAYER_1,
    WEB,
    WEB_AMD,
    WEB_CONFIG,
    WEB_INDEX,
    WEB_LAYER,
    Upgrade,
)
from tests.support.fakes import FakeClock

ENTRY: dict[str, Any] = {
    "image": "docker.io/library/web:1",
    "digest": WEB_AMD,
    "runtime": "containerd",
    "time": 1_700_000_000,
    "pinned": True,
    "free": 12345,
}


def document(*images: dict[str, Any], **more: Any) -> bytes:
    """A proof as a node posts it."""
    return json.dumps({"version": 1, "nonce": "n", "images": [*images], **more}).encode()


def had(digest: str, *, pinned: bool = False, free: int = 10) -> ProvenImage:
    """An image that a node says it has."""
    return ProvenImage(digest, "containerd", 0, pinned, free)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def prove(upgrade: Upgrade, node: str, *images: ProvenImage) -> None:
    """A node's proof."""
    await upgrade.observer.proved(upgrade.caller(node), images)


def states(upgrade: Upgrade, node: str) -> tuple[State, ...]:
    """The node's states with the two images of the upgrade."""
    return upgrade.coverage.snapshot().rows[node]


def test_proof_is_read() -> None:
    """Each field of a proof is taken over."""
    read = parse_proof(document(ENTRY))
    assert read.nonce == "n"
    assert read.images == (ProvenImage(WEB_AMD, "containerd", 1_700_000_000, True, 12345),)
    assert parse_proof(document()).images == ()


def test_of_one_image_in_two_runtimes_the_pinned_one_counts() -> None:
    """Garbage collection of one runtime does not remove what another one keeps."""
    both = document(ENTRY | {"pinned": False, "runtime": "docker"}, ENTRY)
    assert [image.runtime for image in parse_proof(both).images] == ["containerd"]
    both = document(ENTRY, ENTRY | {"pinned": False, "runtime": "docker"})
    assert [image.runtime for image in parse_proof(both).images] == ["containerd"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"version": 1, "nonce": "n"}',
        document(more=1),
        document() + b"x",
        document(version=True),
        document(version=2),
        document(nonce=1),
        document(nonce="n" * 1000),
        document(images={}),
        document(ENTRY | {"more": 1}),
        document({key: ENTRY[key] for key in ENTRY if key != "free"}),
        document(*[ENTRY | {"digest": 5}]),
        document(ENTRY | {"digest": "sha256:short"}),
        document(ENTRY | {"digest": "md5:" + "0" * 32}),
        document(ENTRY | {"digest": WEB_AMD + "\n"}),
        document(ENTRY | {"runtime": "rkt"}),
        document(ENTRY | {"runtime": ["docker"]}),
        document(ENTRY | {"pinned": 1}),
        document(ENTRY | {"pinned": "true"}),
        document(ENTRY | {"time": -1}),
        document(ENTRY | {"time": True}),
        document(ENTRY | {"time": 1.5}),
        document(ENTRY | {"free": 2**63}),
        document(ENTRY | {"free": None}),
        document(ENTRY | {"image": "x" * 1000}),
        document(ENTRY | {"image": None}),
        document(*[5]),  # type: ignore[arg-type]
        b" " * (MAX_BODY + 1),
        document(*[ENTRY] * (MAX_IMAGES + 1)),
    ],
)
def test_other_documents_are_refused(body: bytes) -> None:
    """Neither a field too many nor one too few, and every value within its bounds."""
    with pytest.raises(ProofInvalid):
        parse_proof(body)


def test_largest_proof_fits() -> None:
    """A proof with the most images, each with a long name, is within the bound of bytes."""
    entry = ENTRY | {"image": "x" * 150}
    assert len(document(*[entry] * MAX_IMAGES)) <= MAX_BODY


async def test_nonce_is_good_once_for_its_node_and_not_for_long() -> None:
    """Another node's, a spent one, an old one and an invented one are no nonces."""
    clock = FakeClock()
    nonces = Nonces(clock)
    mine, theirs = nonces.issue("a"), nonces.issue("b")
    assert not nonces.spend("a", theirs)
    assert not nonces.spend("a", "invented")
    assert nonces.spend("a", mine)
    assert not nonces.spend("a", mine)
    assert nonces.spend("b", theirs)
    late = nonces.issue("a")
    await clock.tick(NONCE_SECONDS)
    assert not nonces.spend("a", late)


def test_nonces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that asks for many has the last ones; of many nodes the last have theirs."""
    monkeypatch.setattr(proofs, "_MAX_NODES", 3)
    nonces = Nonces(FakeClock())
    many = [nonces.issue("a") for _ in range(10)]
    assert [nonces.spend("a", nonce) for nonce in many] == [False] * 6 + [True] * 4
    of_nodes = {node: nonces.issue(node) for node in "abcdef"}
    assert [nonces.spend(node, nonce) for node, nonce in of_nodes.items()] == [False] * 3 + [
        True
    ] * 3


async def test_image_present_before(clock: FakeClock) -> None:
    """A proof for an image of which nothing was served is the node's word alone, and counts."""
    upgrade = Upgrade(None, Nodes(1), clock)
    await prove(upgrade, "a", had(APP_1))
    assert list(upgrade.coverage.nodes()) == ["a"]
    assert states(upgrade, "a") == (State.PRESENT_BEFORE, State.MISSING)
    # A claim adds nothing to it.
    upgrade.manifest("a", APP, APP_1, head=True, tag="1")
    await clock.tick(60)
    assert states(upgrade, "a") == (State.PRESENT_BEFORE, State.MISSING)


@pytest.mark.parametrize("name", [WEB_INDEX, WEB_AMD, WEB_CONFIG])
async def test_any_digest_of_an_image_names_it(clock: FakeClock, name: str) -> None:
    """Docker knows an image by its config, containerd by its index, CRI-O by its manifest."""
    upgrade = Upgrade(None, Nodes(1), clock)
    await prove(upgrade, "a", had(name))
    assert states(upgrade, "a") == (State.MISSING, State.PRESENT_BEFORE)


async def test_a_layer_is_no_name_of_an_image(clock: FakeClock) -> None:
    """Digests of layers, and of images outside the list, prove nothing."""
    upgrade = Upgrade(None, Nodes(1, ("a",)), clock)
    await prove(upgrade, "a", had(WEB_LAYER), had(LAYER_1), had(APP_2))
    assert states(upgrade, "a") == (State.MISSING, State.MISSING)


async def test_served_and_confirmed_is_proven(clock: FakeClock) -> None:
    """What this registry served and the node confirms is proven, and alone complete."""
    upgrade = Upgrade(None, Nodes(1), clock)
    for image in (APP_1,):
        upgrade.manifest("a", APP, image)
    for blob in (CONFIG, LAYER_1):
        upgrade.blob("a", blob)
    strict = upgrade.cover(upgrade.coverage.images, Nodes(1), State.PROVEN)
    assert strict.covered_nodes() == 0
    await prove(upgrade, "a", had(APP_1), had(WEB_CONFIG))
    assert states(upgrade, "a") == (State.PROVEN, State.PRESENT_BEFORE)
    strict = upgrade.cover(upgrade.coverage.images, Nodes(1), State.PROVEN)
    assert strict.complete()
    assert strict.snapshot().gaps == 0


async def test_shared_layers_alone_are_not_the_image(clock: FakeClock) -> None:
    """A layer that came with another image does not make an image one that was served."""
    upgrade = Upgrade(None, Nodes(1), clock)
    upgrade.manifest("a", APP, APP_1, head=True, tag="1")
    upgrade.manifest("a", APP, APP_2)
    upgrade.blob("a", LAYER_1)
    await prove(upgrade, "a", had(APP_1))
    assert states(upgrade, "a")[0] is State.PRESENT_BEFORE


async def test_content_asked_for_later_is_content_that_is_lacking(clock: FakeClock) -> None:
    """A proof is void once the node asks for content that does not arrive, until the next one."""
    upgrade = Upgrade(None, Nodes(1), clock)
    await prove(upgrade, "a", had(APP_1))
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob_cut("a", CONFIG)
    await clock.tick(1000)
    assert states(upgrade, "a")[0] is State.FAILED
    await prove(upgrade, "a", had(APP_1))
    assert states(upgrade, "a")[0] is State.PRESENT_BEFORE


async def test_a_proof_replaces_the_one_before(clock: FakeClock) -> None:
    """An image that the node no longer names is no longer proven."""
    upgrade = Upgrade(None, Nodes(1), clock)
    await prove(upgrade, "a", had(APP_1, pinned=True, free=7), had(WEB_INDEX))
    assert upgrade.coverage.complete()
    await prove(upgrade, "a", had(WEB_INDEX, free=9))
    assert states(upgrade, "a") == (State.MISSING, State.PRESENT_BEFORE)
    summary = upgrade.coverage.snapshot().proofs["a"]
    assert (summary.images, summary.pinned, summary.free) == (1, 0, 9)
    await prove(upgrade, "a")
    assert upgrade.coverage.snapshot().proofs == {}
    assert upgrade.ledger.facts.limits.count == 0


async def test_moved_tag(clock: FakeClock) -> None:
    """A proof of the old image says nothing of the one that its tag points at now."""
    upgrade = Upgrade(None, Nodes(1, ("a",)), clock)
    await prove(upgrade, "a", had(APP_1))
    upgrade.content.tags[APP, "1"] = APP_2
    assert states(upgrade, "a")[0] is State.MISSING


async def test_proofs_survive_a_kill(tmp_path: Path, clock: FakeClock) -> None:
    """What was said is in the file when the answer is sent, and still in order after a restart."""
    file = tmp_path / "ledger"
    before = Upgrade(file, Nodes(1), clock)
    await prove(before, "a", had(APP_1, pinned=True), had(APP_2))
    await prove(before, "a", had(APP_1, pinned=True, free=5), had(WEB_INDEX))
    before.manifest("a", WEB, WEB_INDEX)
    before.observer.ledger.failed("a", WEB, WEB_AMD)
    for _ in range(3):  # each start writes the facts anew
        after = Upgrade(file, Nodes(1), clock)
        assert states(after, "a") == (State.PRESENT_BEFORE, State.FAILED)
        summary = after.coverage.snapshot().proofs["a"]
        assert (summary.images, summary.pinned) == (2, 1)
        after.ledger.close()


async def test_proofs_are_bounded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: FakeClock
) -> None:
    """All nodes together have a bound; what is dropped makes room; the file does not grow."""
    monkeypatch.setattr(fact_limits, "MAX_PROVEN", 10)
    ledger = Ledger(tmp_path / "ledger", clock)
    names = ["sha256:" + f"{number:064x}" for number in range(12)]
    await ledger.proved("a", [had(name) for name in names])
    assert len(ledger.facts.proofs("a")) == 10
    notices = ledger.facts.limits.reached.all()
    assert notices == [{"code": "record_full_proofs", "most": 10}]
    for _ in range(500):
        await ledger.proved("a", [had(names[0])])
    await ledger.proved("b", [had(name) for name in names])
    assert len(ledger.facts.proofs("b")) == 9
    assert (tmp_path / "ledger").stat().st_size < 1_000_000
