"""The ledger's facts, and what coverage concludes from them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from registry.lifetime.activity import Activity
from registry.lifetime.conditions import Kind
from registry.lifetime.contents import Contained, Contents
from registry.lifetime.coverage import Coverage, Covered, State
from registry.lifetime.images import Nodes, parse_image
from registry.lifetime.ledger import Ledger
from registry.lifetime.observer import Observer
from registry.lifetime.pulls import SETTLED, Pulls
from storage.errors import BlobUnknown
from tests.lifetime.fakes import FakeClock, FakeContent, digest, settle

APP, WEB = "team/app", "library/web"
APP_1, APP_2 = digest("app1"), digest("app2")
WEB_INDEX, WEB_AMD, WEB_ARM = digest("webi"), digest("webamd"), digest("webarm")
CONFIG, LAYER_1, LAYER_2 = digest("config"), digest("l1"), digest("l2")
WEB_LAYER = digest("weblayer")


class Upgrade:
    """Two images, and nodes that a test lets do things to them."""

    def __init__(self, ledger_file: Path | None, nodes: Nodes, clock: FakeClock) -> None:
        self.clock = clock
        self.content = FakeContent()
        self.content.tags = {(APP, "1"): APP_1, (WEB, "1"): WEB_INDEX}
        self.content.manifests = {
            (APP, APP_1): Contents(blobs=(CONFIG, LAYER_1, LAYER_2)),
            (APP, APP_2): Contents(blobs=(CONFIG, LAYER_1)),
            (WEB, WEB_INDEX): Contents(children=(WEB_AMD, WEB_ARM)),
            (WEB, WEB_AMD): Contents(blobs=(WEB_LAYER,)),
            (WEB, WEB_ARM): Contents(blobs=(digest("armlayer"),)),
        }
        contained = Contained(self.content.contents)
        self.ledger = Ledger(ledger_file, clock)
        self.pulls = Pulls(clock.now, self.ledger.changed)
        images = (parse_image("team/app:1"), parse_image("docker.io/library/web:1"))
        self.coverage = Coverage(
            self.ledger, self.pulls, images, nodes, self.content.tag, contained
        )
        activity = Activity(clock.now)
        named = frozenset(nodes.names)
        self.observer = Observer(activity, self.pulls, self.ledger, contained, clock, named=named)

    def manifest(
        self, node: str, repository: str, what: str, *, head: bool = False, tag: str | None = None
    ) -> None:
        caller = self.observer.caller(node, None, "10.0.0.1")
        self.observer.manifest_served(caller, repository, what, head=head, tag=tag)

    def blob(self, node: str, what: str, first: int = 0, count: int = 100) -> None:
        caller = self.observer.caller(node, None, "10.0.0.1")
        with self.observer.sending(caller, APP, what) as sending, sending.part(first, count, 100):
            pass

    def blob_cut(self, node: str, what: str, first: int = 0, count: int = 100) -> None:
        with pytest.raises(ConnectionResetError):
            caller = self.observer.caller(node, None, "10.0.0.1")
            with (
                self.observer.sending(caller, APP, what) as sending,
                sending.part(first, count, 100),
            ):
                raise ConnectionResetError

    def cold(self, node: str) -> None:
        """A node that has nothing pulls both images, as containerd does."""
        self.manifest(node, APP, APP_1, head=True, tag="1")
        self.manifest(node, APP, APP_1)
        for blob in (CONFIG, LAYER_1, LAYER_2):
            self.blob(node, blob)
        self.manifest(node, WEB, WEB_INDEX, head=True, tag="1")
        self.manifest(node, WEB, WEB_INDEX)
        self.manifest(node, WEB, WEB_AMD)
        self.blob(node, WEB_LAYER)

    def warm(self, node: str) -> None:
        """A node that has everything makes a HEAD for each image, and that is all."""
        self.manifest(node, APP, APP_1, head=True, tag="1")
        self.manifest(node, WEB, WEB_INDEX, head=True, tag="1")

    def state(self, node: str, image: str = "team/app:1") -> State:
        return self.coverage.matrix()[image][node]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def upgrade(clock: FakeClock) -> Upgrade:
    return Upgrade(None, Nodes(2, ("a", "b")), clock)


async def test_cold_pull(upgrade: Upgrade) -> None:
    """A node that fetched all there is to fetch has it at that moment."""
    upgrade.cold("a")
    assert upgrade.state("a") is State.HAS
    assert upgrade.state("a", "docker.io/library/web:1") is State.HAS
    assert upgrade.state("b") is State.MISSING
    assert not upgrade.coverage.complete()


async def test_warm_pull(upgrade: Upgrade) -> None:
    """A HEAD alone counts, once nothing followed it; blob bytes would count such a node out."""
    upgrade.warm("a")
    assert upgrade.state("a") is State.PULLING
    await upgrade.clock.tick(SETTLED)
    assert upgrade.state("a") is State.HAS
    assert upgrade.coverage.covered_nodes() == 1


async def test_partly_warm_pull(upgrade: Upgrade) -> None:
    """Layers that a node has are never asked for; the pull is over when the node is silent."""
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob("a", CONFIG)
    assert upgrade.state("a") is State.PULLING
    await upgrade.clock.tick(SETTLED)
    assert upgrade.state("a") is State.HAS


async def test_long_transfer_is_pulling(upgrade: Upgrade) -> None:
    """While a blob flows the node does not have the image, however long that takes."""
    upgrade.manifest("a", APP, APP_1)
    caller = upgrade.observer.caller("a", None, None)
    with upgrade.observer.sending(caller, APP, LAYER_1) as sending, sending.part(0, 100, 100):
        await upgrade.clock.tick(3600)
        assert upgrade.state("a") is State.PULLING
    await upgrade.clock.tick(SETTLED)
    assert upgrade.state("a") is State.HAS


async def test_layer_that_waits_for_another(upgrade: Upgrade) -> None:
    """A blob not asked for yet is expected while others of the image still flow."""
    upgrade.manifest("a", APP, APP_1)
    caller = upgrade.observer.caller("a", None, None)
    with upgrade.observer.sending(caller, APP, LAYER_1) as sending, sending.part(0, 100, 100):
        await upgrade.clock.tick(120)
    assert upgrade.state("a") is State.PULLING
    upgrade.blob("a", LAYER_2)
    upgrade.blob("a", CONFIG)
    assert upgrade.state("a") is State.HAS


async def test_failed_blob(upgrade: Upgrade) -> None:
    """A blob that was cut takes the image away again, until its end has arrived."""
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob_cut("a", LAYER_1)
    await upgrade.clock.tick(3600)
    assert upgrade.state("a") is State.FAILED
    upgrade.blob("a", LAYER_1, 40, 60)  # resumed by Range
    await upgrade.clock.tick(SETTLED)
    assert upgrade.state("a") is State.HAS


async def test_failed_chunk_is_not_mended_by_another(upgrade: Upgrade) -> None:
    """Of chunks fetched side by side, one that arrived says nothing of one that did not."""
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob_cut("a", LAYER_1, 0, 50)
    upgrade.blob("a", LAYER_1, 50, 50)
    assert upgrade.state("a") is State.FAILED
    upgrade.blob("a", LAYER_1, 20, 30)
    await upgrade.clock.tick(SETTLED)
    assert upgrade.state("a") is State.HAS


async def test_confirmed_after_failure(upgrade: Upgrade) -> None:
    """A node that got the blob elsewhere shows it by a HEAD with nothing after it."""
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob_cut("a", LAYER_1)
    await upgrade.clock.tick(300)
    upgrade.manifest("a", APP, APP_1, head=True)
    await upgrade.clock.tick(SETTLED)
    assert upgrade.state("a") is State.HAS


async def test_missing_blob_is_a_failure(upgrade: Upgrade) -> None:
    """A blob that the registry lacks did not arrive either."""
    upgrade.manifest("a", APP, APP_1)
    caller = upgrade.observer.caller("a", None, None)
    with pytest.raises(BlobUnknown), upgrade.observer.sending(caller, APP, LAYER_1):
        raise BlobUnknown("")
    await upgrade.clock.tick(SETTLED)
    assert upgrade.state("a") is State.FAILED


async def test_failure_of_another_image(upgrade: Upgrade) -> None:
    """A failed blob counts for the images that have it, and for the node it failed at."""
    for node in ("a", "b"):
        upgrade.cold(node)
    upgrade.blob_cut("a", digest("of-something-else"))
    upgrade.blob_cut("b", LAYER_2)
    await upgrade.clock.tick(SETTLED)
    assert upgrade.state("a") is State.HAS
    assert upgrade.state("b") is State.FAILED
    assert upgrade.state("b", "docker.io/library/web:1") is State.HAS


async def test_index_without_a_child(upgrade: Upgrade) -> None:
    """A node whose platform is not in the index fetches it by GET and goes no further."""
    upgrade.manifest("a", WEB, WEB_INDEX, head=True)
    upgrade.manifest("a", WEB, WEB_INDEX)
    await upgrade.clock.tick(3600)
    assert upgrade.state("a", "docker.io/library/web:1") is State.INDEX_ONLY
    upgrade.manifest("a", WEB, WEB_ARM)
    await upgrade.clock.tick(3600)
    assert upgrade.state("a", "docker.io/library/web:1") is State.HAS


async def test_moved_tag(upgrade: Upgrade) -> None:
    """When a tag moves, those who got the old image lack the new; when it moves back, not."""
    upgrade.cold("a")
    upgrade.content.tags[APP, "1"] = APP_2
    assert upgrade.state("a") is State.MISSING
    upgrade.content.tags[APP, "1"] = APP_1
    assert upgrade.state("a") is State.HAS


async def test_image_that_was_never_pushed(upgrade: Upgrade) -> None:
    """What is not in the registry is said to be so, once and not for every node."""
    del upgrade.content.tags[APP, "1"]
    upgrade.cold("a")
    upgrade.cold("b")
    assert [str(gap) for gap in upgrade.coverage.missing()] == ["team/app:1 (not in the registry)"]
    assert not upgrade.coverage.complete()


async def test_missing_names_image_and_node(upgrade: Upgrade) -> None:
    """The gaps say which node lacks which image."""
    upgrade.cold("a")
    upgrade.manifest("b", APP, APP_1, head=True)
    await upgrade.clock.tick(SETTLED)
    assert [str(gap) for gap in upgrade.coverage.missing()] == ["docker.io/library/web:1 at b"]


async def test_any_nodes(clock: FakeClock) -> None:
    """With a number, so many nodes must have everything; more that have some do not matter."""
    upgrade = Upgrade(None, Nodes(2), clock)
    assert upgrade.coverage.nodes() == []
    upgrade.manifest("c", APP, APP_1)
    upgrade.cold("a")
    assert not upgrade.coverage.complete()
    assert upgrade.coverage.nodes() == ["c", "a"]
    upgrade.cold("b")
    assert upgrade.coverage.complete()
    assert upgrade.coverage.missing() == []


async def test_any_nodes_missing(clock: FakeClock) -> None:
    """Nodes that nobody has heard of are counted among what is missing."""
    upgrade = Upgrade(None, Nodes(2), clock)
    upgrade.cold("a")
    assert [str(g) for g in upgrade.coverage.missing()] == ["a further node with every image"]


async def test_image_by_digest(clock: FakeClock) -> None:
    """An image listed by digest is the manifest itself, under whichever name it lies here."""
    upgrade = Upgrade(None, Nodes(1, ("a",)), clock)
    pinned = parse_image(f"docker.io/team/app@{APP_2}")
    contained = Contained(upgrade.content.contents)
    coverage = Coverage(
        upgrade.ledger, upgrade.pulls, (pinned,), Nodes(1, ("a",)), upgrade.content.tag, contained
    )
    assert not coverage.complete()
    upgrade.manifest("a", APP, APP_2)
    await clock.tick(SETTLED)
    assert coverage.complete()


async def test_condition(upgrade: Upgrade) -> None:
    """Coverage ends the server when the last node is through, not while it is about to go on."""
    condition = Covered(upgrade.coverage, upgrade.ledger, upgrade.pulls, upgrade.clock)
    task = asyncio.create_task(condition.wait())
    upgrade.cold("a")
    await upgrade.clock.tick(3600)
    assert not task.done()
    upgrade.warm("b")
    await upgrade.clock.tick(SETTLED - 1)
    assert not task.done()
    await upgrade.clock.tick(2)
    assert (await task).kind is Kind.COVERED


async def test_condition_waits_for_a_transfer(upgrade: Upgrade) -> None:
    """A transfer in flight at the last node holds coverage back until it ended."""
    condition = Covered(upgrade.coverage, upgrade.ledger, upgrade.pulls, upgrade.clock)
    task = asyncio.create_task(condition.wait())
    upgrade.cold("a")
    upgrade.warm("b")
    caller = upgrade.observer.caller("b", None, None)
    with upgrade.observer.sending(caller, APP, LAYER_1) as sending, sending.part(0, 100, 100):
        await upgrade.clock.tick(3600)
        assert not task.done()
    await upgrade.clock.tick(SETTLED + 1)
    await settle()
    assert task.done()


async def test_survives_a_restart(tmp_path: Path, clock: FakeClock) -> None:
    """What was confirmed before a kill counts after it, and what failed still does."""
    file = tmp_path / "coverage.jsonl"
    before = Upgrade(file, Nodes(2, ("a", "b")), clock)
    before.cold("a")
    before.cold("b")
    before.blob_cut("b", LAYER_1)
    # No close: nothing of the dying process runs.
    after = Upgrade(file, Nodes(2, ("a", "b")), clock)
    await clock.tick(SETTLED)
    assert after.state("a") is State.HAS
    assert after.state("b") is State.FAILED
    after.blob("b", LAYER_1)
    again = Upgrade(file, Nodes(2, ("a", "b")), clock)
    assert again.coverage.complete()
    for upgrade in (before, after, again):
        upgrade.ledger.close()
