"""The ledger's facts, and what coverage concludes from them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from pathlib import Path

import pytest

from mayfly.registry import threads
from mayfly.registry.activity import Activity
from mayfly.registry.control import report
from mayfly.registry.coverage import coverage as coverage_module
from mayfly.registry.coverage.coverage import Coverage, Covered, Gap
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.manifest_graph import ManifestGraph, ManifestRefs
from mayfly.registry.coverage.observer import Observer, Peer
from mayfly.registry.coverage.pulls import EXPECTATION_SECONDS, SETTLED_SECONDS, Pulls
from mayfly.registry.coverage.states import EMPTY_CONFIG, ResolvedImage, State
from mayfly.registry.coverage.upgrade_lists import ListedImage, Nodes, parse_image
from mayfly.registry.ending import EndKind
from mayfly.storage.errors import BlobUnknown
from tests.support.beside import counting_turns, run_what_is_ready
from tests.support.fakes import FakeClock, FakeStore, digest, prepare
from tests.support.process import PATIENCE

APP, WEB = "team/app", "library/web"
APP_1, APP_2 = digest("app1"), digest("app2")
WEB_INDEX, WEB_AMD, WEB_ARM = digest("webi"), digest("webamd"), digest("webarm")
CONFIG, LAYER_1, LAYER_2 = digest("config"), digest("l1"), digest("l2")
WEB_CONFIG, WEB_LAYER = digest("webconfig"), digest("weblayer")
CONTAINERD, DOCKER, CURL = "containerd/1.6.20", "docker/20.10.24 go/go1.19.8", "curl/8.5.0"


class Upgrade:
    """Two images, and nodes that pull and push them."""

    def __init__(self, ledger_file: Path | None, nodes: Nodes, clock: FakeClock) -> None:
        self.clock = clock
        self.content = FakeStore()
        self.content.tags = {(APP, "1"): APP_1, (WEB, "1"): WEB_INDEX}
        self.content.manifests = {
            (APP, APP_1): ManifestRefs(blobs=(CONFIG, LAYER_1, LAYER_2)),
            (APP, APP_2): ManifestRefs(blobs=(CONFIG, LAYER_1)),
            (WEB, WEB_INDEX): ManifestRefs(children=(WEB_AMD, WEB_ARM)),
            (WEB, WEB_AMD): ManifestRefs(blobs=(WEB_CONFIG, WEB_LAYER)),
            (WEB, WEB_ARM): ManifestRefs(blobs=(digest("armconfig"), digest("armlayer"))),
        }
        graph = ManifestGraph(self.content.refs)
        self.ledger = Ledger(ledger_file, clock)
        self.pulls = Pulls(clock.now, self.ledger.changed, self.ledger.interrupted())
        images = (parse_image("team/app:1"), parse_image("docker.io/library/web:1"))
        activity = Activity(clock.now)
        self.observer = Observer(activity, self.pulls, self.ledger, graph, clock)
        self._coverage = self.cover(images, nodes)

    @property
    def coverage(self) -> Coverage:
        """Return the coverage after reading the current images."""
        return explored(self._coverage)

    def cover(
        self, images: tuple[ListedImage, ...], nodes: Nodes, accept: State = State.CLAIMED
    ) -> Coverage:
        states = self.observer.states
        made = Coverage(
            self.ledger.facts, self.pulls, images, nodes, self.content.tag, states, accept
        )
        return explored(made)

    def caller(self, node: str, agent: str = CONTAINERD) -> Peer:
        return self.observer.peer("", node, None, agent)

    def manifest(
        self,
        node: str,
        repository: str,
        what: str,
        *,
        head: bool = False,
        tag: str | None = None,
        agent: str = CONTAINERD,
    ) -> None:
        caller = self.caller(node, agent)
        refs = self.observer.graph.of(repository, what)
        self.observer.manifest_served(caller, repository, what, refs, head=head, tag=tag)

    def blob(
        self,
        node: str,
        what: str,
        first: int = 0,
        count: int = 100,
        repository: str = APP,
        agent: str = CONTAINERD,
    ) -> None:
        prepare(self.observer, node, repository)
        sending = self.observer.sending(self.caller(node, agent), repository, what)
        with sending, sending.part(first, count, 100):
            sending.count(count)

    def blob_cut(self, node: str, what: str, first: int = 0, count: int = 50) -> None:
        """Some bytes arrive, then the connection breaks."""
        prepare(self.observer, node, APP)
        sending = self.observer.sending(self.caller(node), APP, what)
        with pytest.raises(ConnectionResetError), sending, sending.part(first, 100 - first, 100):
            sending.count(count)
            raise ConnectionResetError

    def target(self) -> ResolvedImage:
        target = self.observer.states.resolve(APP, APP_1)
        assert target is not None
        return target

    def cold(self, node: str) -> None:
        """A node that has nothing pulls both images, as containerd does."""
        self.manifest(node, APP, APP_1, head=True, tag="1")
        self.manifest(node, APP, APP_1)
        for blob in (CONFIG, LAYER_1, LAYER_2):
            self.blob(node, blob)
        self.manifest(node, WEB, WEB_INDEX, head=True, tag="1")
        self.manifest(node, WEB, WEB_INDEX)
        self.manifest(node, WEB, WEB_AMD)
        self.blob(node, WEB_CONFIG, repository=WEB)
        self.blob(node, WEB_LAYER, repository=WEB)

    def warm(self, node: str) -> None:
        """A node that has every image makes one HEAD for each."""
        self.manifest(node, APP, APP_1, head=True, tag="1")
        self.manifest(node, WEB, WEB_INDEX, head=True, tag="1")

    def state(self, node: str, image: str = "team/app:1") -> State:
        return self.coverage.snapshot().matrix()[image][node]


def explored(coverage: Coverage) -> Coverage:
    """Coverage once the images of now were read."""
    coverage.read()
    following = coverage.follow_tags()
    with contextlib.suppress(StopIteration):
        while True:
            following.send(None)
    return coverage


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def upgrade(clock: FakeClock) -> Upgrade:
    return Upgrade(None, Nodes(2, ("a", "b")), clock)


async def test_cold_pull(upgrade: Upgrade) -> None:
    """A node that fetched every blob has the image at once."""
    upgrade.cold("a")
    assert upgrade.state("a") is State.SERVED
    assert upgrade.state("a", "docker.io/library/web:1") is State.SERVED
    assert upgrade.state("b") is State.MISSING
    assert not upgrade.coverage.complete()


async def test_warm_pull(upgrade: Upgrade) -> None:
    """A runtime's HEAD claims the image if no other request follows for a while."""
    upgrade.warm("a")
    assert upgrade.state("a") is State.PULLING
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.CLAIMED
    assert upgrade.coverage.covered_nodes() == 1
    assert upgrade.coverage.snapshot().claimed() == {"a": 2}


@pytest.mark.parametrize(
    "agent", [CURL, "", "skopeo/1.9.3", "go-containerregistry/v0.20", "Renovate/37", "fluxcd/2"]
)
async def test_other_programs_claim_nothing(upgrade: Upgrade, agent: str) -> None:
    """Requests for a manifest by other programs never show that they have the image."""
    for head in (True, False, True):
        upgrade.manifest("a", APP, APP_1, head=head, tag="1", agent=agent)
    await upgrade.clock.tick(3600)
    assert upgrade.state("a") is State.INCOMPLETE


async def test_manifest_without_blobs(upgrade: Upgrade) -> None:
    """A GET of the manifest without further requests is not a pull, also after a claim."""
    upgrade.warm("a")
    await upgrade.clock.tick(SETTLED_SECONDS)
    upgrade.manifest("a", APP, APP_1)
    await upgrade.clock.tick(3600)
    assert upgrade.state("a") is State.INCOMPLETE


async def test_config_after_a_layer_that_failed(upgrade: Upgrade) -> None:
    """The config is asked for side by side with the layers, so it may arrive after one failed."""
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob_cut("a", LAYER_1)
    upgrade.blob("a", CONFIG)
    await upgrade.clock.tick(3600)
    assert upgrade.state("a") is State.FAILED
    # Asked for once more, with the layer had from elsewhere.
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob("a", CONFIG)
    await upgrade.clock.tick(3600)
    assert upgrade.state("a") is State.CLAIMED


async def test_child_of_a_claimed_index(upgrade: Upgrade) -> None:
    """A node that asks for a child of an index it has lacks that child."""
    image = "docker.io/library/web:1"
    upgrade.manifest("a", WEB, WEB_INDEX, head=True)
    upgrade.manifest("a", WEB, WEB_AMD)
    await upgrade.clock.tick(3600)
    assert upgrade.state("a", image) is State.INCOMPLETE
    upgrade.blob("a", WEB_CONFIG, repository=WEB)
    upgrade.blob("a", WEB_LAYER, repository=WEB)
    assert upgrade.state("a", image) is State.SERVED


@pytest.mark.parametrize(
    ("accept", "covered"), [(State.CLAIMED, 2), (State.SERVED, 1), (State.PROVEN, 0)]
)
async def test_accept(upgrade: Upgrade, accept: State, covered: int) -> None:
    """The weakest evidence that counts is the operator's choice."""
    images = upgrade.coverage.images
    coverage = upgrade.cover(images, Nodes(2, ("a", "b")), accept)
    upgrade.cold("a")
    upgrade.warm("b")
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert coverage.covered_nodes() == covered


async def test_partly_warm_pull(upgrade: Upgrade) -> None:
    """A node does not ask for layers it has; its pull is complete when it is silent."""
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob("a", CONFIG)
    upgrade.blob("a", LAYER_2)
    assert upgrade.state("a") is State.PULLING
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.SERVED


@pytest.mark.parametrize(
    ("agent", "state"),
    [
        (CONTAINERD, State.CLAIMED),
        (DOCKER, State.CLAIMED),
        ("containers/5.23.1 (github.com/containers/image)", State.CLAIMED),
        ("skopeo/1.9.3", State.INCOMPLETE),
    ],
)
async def test_config_alone(upgrade: Upgrade, agent: str, state: State) -> None:
    """A runtime that has the layers asks for the config alone; other programs read it to know what
    the image is."""
    upgrade.manifest("a", APP, APP_1, agent=agent)
    upgrade.blob("a", CONFIG, agent=agent)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is state
    upgrade.blob("a", LAYER_1, agent=agent)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.SERVED


@pytest.mark.parametrize(
    ("agent", "state"), [(CURL, State.INCOMPLETE), (CONTAINERD, State.CLAIMED)]
)
async def test_config_alone_of_an_image_that_shares_a_layer(
    upgrade: Upgrade, agent: str, state: State
) -> None:
    """A node that looks at an image does not have it by a layer that it got with another; it does
    by one of this image, or if it got all of them."""
    upgrade.cold("a")
    other, config, layer = digest("other"), digest("other config"), digest("other layer")
    upgrade.content.manifests[APP, other] = ManifestRefs(blobs=(config, LAYER_1, layer))
    upgrade.content.tags[APP, "1"] = other
    for _ in range(2):
        upgrade.manifest("a", APP, other, agent=agent)
        upgrade.blob("a", config, agent=agent)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is state
    upgrade.blob("a", layer, agent=agent)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.SERVED
    upgrade.content.manifests[APP, APP_2] = ManifestRefs(blobs=(digest("c2"), LAYER_1, LAYER_2))
    upgrade.content.tags[APP, "1"] = APP_2
    upgrade.manifest("a", APP, APP_2, agent=agent)
    upgrade.blob("a", digest("c2"), agent=agent)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.SERVED


async def test_docker_that_loaded_the_image(upgrade: Upgrade) -> None:
    """Docker asks only for the manifest of an image that it has from elsewhere."""
    for agent, state in ((DOCKER, State.CLAIMED), (CONTAINERD, State.INCOMPLETE)):
        node = agent.partition("/")[0]
        upgrade.manifest(node, APP, APP_1, head=True, tag="1", agent=agent)
        upgrade.manifest(node, APP, APP_1, agent=agent)
        await upgrade.clock.tick(SETTLED_SECONDS)
        caller = upgrade.caller(node)
        assert upgrade.observer.states.of(caller.node, upgrade.target()) is state


async def test_long_transfer_is_pulling(upgrade: Upgrade) -> None:
    """While a blob flows the node does not have the image, however long that takes."""
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob("a", CONFIG)
    sending = upgrade.observer.sending(upgrade.caller("a"), APP, LAYER_1)
    with sending, sending.part(0, 100, 100):
        await upgrade.clock.tick(3600)
        assert upgrade.state("a") is State.PULLING
        sending.count(100)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.SERVED


async def test_layer_that_waits_for_another(upgrade: Upgrade) -> None:
    """A blob is still expected while other blobs of the image are in flight."""
    upgrade.manifest("a", APP, APP_1)
    sending = upgrade.observer.sending(upgrade.caller("a"), APP, LAYER_1)
    with sending, sending.part(0, 100, 100):
        await upgrade.clock.tick(120)
        sending.count(100)
    assert upgrade.state("a") is State.PULLING
    upgrade.blob("a", LAYER_2)
    upgrade.blob("a", CONFIG)
    assert upgrade.state("a") is State.SERVED


async def test_failed_blob(upgrade: Upgrade) -> None:
    """A node lacks the image after an aborted transfer, until the blob is complete."""
    upgrade.cold("a")
    upgrade.blob_cut("a", LAYER_1)
    await upgrade.clock.tick(3600)
    assert upgrade.state("a") is State.FAILED
    upgrade.blob("a", LAYER_1, 50, 50)  # resumed by Range
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.SERVED


async def test_part_that_never_came(upgrade: Upgrade) -> None:
    """Of parts fetched in parallel, one that arrived does not show that another one did."""
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob("a", CONFIG)
    upgrade.blob_cut("a", LAYER_1, 0, 30)
    upgrade.blob("a", LAYER_1, 50, 50)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.FAILED
    upgrade.blob("a", LAYER_1, 30, 20)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.SERVED


async def test_claimed_after_failure(upgrade: Upgrade) -> None:
    """A node that got the blob elsewhere shows it by a HEAD with nothing after it; a failure after
    that withdraws the claim."""
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob_cut("a", LAYER_1)
    await upgrade.clock.tick(300)
    upgrade.manifest("a", APP, APP_1, head=True)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.CLAIMED
    upgrade.blob_cut("a", LAYER_2)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.FAILED


async def test_missing_blob_is_a_failure(upgrade: Upgrade) -> None:
    """A blob that the registry lacks counts as failed."""
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob("a", CONFIG)
    with pytest.raises(BlobUnknown), upgrade.observer.sending(upgrade.caller("a"), APP, LAYER_1):
        raise BlobUnknown("")
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.FAILED


async def test_corrupt_blob(upgrade: Upgrade) -> None:
    """No byte of corrupt content counts."""
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob("a", CONFIG)
    sending = upgrade.observer.sending(upgrade.caller("a"), APP, LAYER_1)
    with pytest.raises(ConnectionResetError), sending, sending.part(0, 100, 100):
        sending.count(99)
        sending.corrupt()
        raise ConnectionResetError
    upgrade.blob("a", LAYER_1, 99, 1)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.FAILED


async def test_failed_manifest(upgrade: Upgrade) -> None:
    """A manifest that cannot be served withdraws the claim of the HEAD before it."""
    upgrade.manifest("a", APP, APP_1, head=True)
    upgrade.observer.manifest_failed(upgrade.caller("a"), APP, APP_1)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.FAILED
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob("a", CONFIG)
    upgrade.blob("a", LAYER_1)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.SERVED


async def test_failure_of_another_image(upgrade: Upgrade) -> None:
    """A failed blob affects only the images that have it and the node that asked for it."""
    for node in ("a", "b"):
        upgrade.cold(node)
    upgrade.blob_cut("a", digest("of-something-else"))
    upgrade.blob_cut("b", LAYER_2)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert upgrade.state("a") is State.SERVED
    assert upgrade.state("b") is State.FAILED
    assert upgrade.state("b", "docker.io/library/web:1") is State.SERVED


async def test_shared_empty_config(upgrade: Upgrade) -> None:
    """Artifacts share the empty config, so their content must arrive."""
    one, two, content = digest("artifact1"), digest("artifact2"), digest("content")
    upgrade.content.manifests[APP, one] = ManifestRefs(blobs=(EMPTY_CONFIG, LAYER_1))
    upgrade.content.manifests[APP, two] = ManifestRefs(blobs=(EMPTY_CONFIG, content))
    upgrade.content.tags |= {(APP, "one"): one, (APP, "two"): two}
    images = (parse_image(f"{APP}:one"), parse_image(f"{APP}:two"))
    coverage = upgrade.cover(images, Nodes(1, ("a",)))
    upgrade.manifest("a", APP, one)
    upgrade.manifest("a", APP, two)
    upgrade.blob("a", EMPTY_CONFIG)
    upgrade.blob("a", LAYER_1)
    await upgrade.clock.tick(SETTLED_SECONDS)
    assert explored(coverage).snapshot().matrix() == {
        f"{APP}:one": {"a": State.SERVED},
        f"{APP}:two": {"a": State.INCOMPLETE},
    }


async def test_moved_tag(upgrade: Upgrade) -> None:
    """When a tag moves, nodes with the old image lack the new one, until it moves back."""
    upgrade.cold("a")
    upgrade.content.tags[APP, "1"] = APP_2
    assert upgrade.state("a") is State.MISSING
    upgrade.content.tags[APP, "1"] = APP_1
    assert upgrade.state("a") is State.SERVED


async def test_image_that_was_never_pushed(upgrade: Upgrade) -> None:
    """An image that the registry lacks is one gap, not one for every node."""
    del upgrade.content.tags[APP, "1"]
    upgrade.cold("a")
    upgrade.cold("b")
    assert list(upgrade.coverage.snapshot().missing()) == [Gap("team/app:1", None, State.ABSENT)]
    assert not upgrade.coverage.complete()


async def test_missing_names_image_and_node(upgrade: Upgrade) -> None:
    """The gaps name the node and the image it lacks."""
    upgrade.cold("a")
    upgrade.manifest("b", APP, APP_1, head=True)
    await upgrade.clock.tick(SETTLED_SECONDS)
    (gap,) = upgrade.coverage.snapshot().missing()
    assert (gap.image, gap.node) == ("docker.io/library/web:1", "b")


async def test_any_nodes(clock: FakeClock) -> None:
    """If a number is given, that many nodes must have every image; others do not count."""
    upgrade = Upgrade(None, Nodes(2), clock)
    assert list(upgrade.coverage.nodes()) == []
    upgrade.manifest("c", APP, APP_1)
    upgrade.cold("a")
    assert not upgrade.coverage.complete()
    assert list(upgrade.coverage.nodes()) == ["c", "a"]
    upgrade.cold("b")
    assert upgrade.coverage.complete()
    assert list(upgrade.coverage.snapshot().missing()) == []


async def test_any_nodes_missing(clock: FakeClock) -> None:
    """Nodes that have not been seen yet are gaps."""
    upgrade = Upgrade(None, Nodes(2), clock)
    upgrade.cold("a")
    assert list(upgrade.coverage.snapshot().missing()) == [Gap(None, None, State.MISSING)]


async def test_image_by_digest(clock: FakeClock) -> None:
    """An image listed by digest is found under any of its repository names."""
    upgrade = Upgrade(None, Nodes(1, ("a",)), clock)
    pinned = parse_image(f"docker.io/team/app@{APP_2}")
    coverage = upgrade.cover((pinned,), Nodes(1, ("a",)))
    assert not coverage.complete()
    upgrade.manifest("a", APP, APP_2)
    upgrade.blob("a", CONFIG)
    await clock.tick(SETTLED_SECONDS)
    assert coverage.complete()


async def test_condition(upgrade: Upgrade) -> None:
    """Coverage ends the server when the last node is done, not while more requests are expected."""
    condition = Covered(upgrade.coverage, upgrade.ledger.changed, upgrade.pulls, upgrade.clock)
    task = asyncio.create_task(condition.wait())
    upgrade.cold("a")
    await upgrade.clock.tick(3600)
    assert not task.done()
    upgrade.warm("b")
    await upgrade.clock.tick(SETTLED_SECONDS - 1)
    assert not task.done()
    await upgrade.clock.tick(2)
    assert (await task).kind is EndKind.COVERED


async def test_condition_waits_for_a_transfer(upgrade: Upgrade) -> None:
    """A transfer in flight at the last node holds coverage back until it ended."""
    condition = Covered(upgrade.coverage, upgrade.ledger.changed, upgrade.pulls, upgrade.clock)
    task = asyncio.create_task(condition.wait())
    upgrade.cold("a")
    upgrade.warm("b")
    sending = upgrade.observer.sending(upgrade.caller("b"), APP, LAYER_1)
    with sending, sending.part(0, 100, 100):
        await upgrade.clock.tick(3600)
        assert not task.done()
        sending.count(100)
    await upgrade.clock.tick(SETTLED_SECONDS + 1)
    await run_what_is_ready()
    assert task.done()
    assert (await task).text.endswith("not served by this registry: b (2)")


async def test_condition_waits_for_a_late_reading(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart, images that take long to read complete it without another fact."""
    monkeypatch.setattr(coverage_module, "_READ_SECONDS", 0.01)
    file = tmp_path / "coverage.jsonl"
    before = Upgrade(file, Nodes(1, ("a",)), clock)
    before.cold("a")
    before.ledger.close()
    await clock.tick(3600)
    after = Upgrade(file, Nodes(1, ("a",)), clock)
    store, may_read = FakeStore(), threading.Event()
    store.tags, store.manifests = after.content.tags, after.content.manifests

    def refs(repository: str, digest: str) -> ManifestRefs | None:
        may_read.wait(PATIENCE)
        return store.refs(repository, digest)

    graph = ManifestGraph(refs)
    observer = Observer(Activity(clock.now), after.pulls, after.ledger, graph, clock)
    images = (parse_image("team/app:1"), parse_image("docker.io/library/web:1"))
    cold = Coverage(
        after.ledger.facts, after.pulls, images, Nodes(1, ("a",)), store.tag, observer.states
    )
    condition = Covered(cold, after.ledger.changed, after.pulls, clock)
    task = asyncio.create_task(condition.wait())
    await asyncio.sleep(0.1)
    assert not task.done()
    may_read.set()
    for _ in range(100):
        await asyncio.sleep(0.01)
        await clock.tick(1)
        if task.done():
            break
    assert (await task).kind is EndKind.COVERED
    after.ledger.close()


async def test_survives_a_restart(tmp_path: Path, clock: FakeClock) -> None:
    """Transfers confirmed before a kill count after it, and so do failures."""
    file = tmp_path / "coverage.jsonl"
    before = Upgrade(file, Nodes(2, ("a", "b")), clock)
    before.cold("a")
    before.cold("b")
    before.blob_cut("b", LAYER_1)
    # No close: nothing of the dying process runs.
    after = Upgrade(file, Nodes(2, ("a", "b")), clock)
    await clock.tick(SETTLED_SECONDS)
    assert after.state("a") is State.SERVED
    assert after.state("b") is State.FAILED
    after.blob("b", LAYER_1)
    again = Upgrade(file, Nodes(2, ("a", "b")), clock)
    assert again.coverage.complete()
    for upgrade in (before, after, again):
        upgrade.ledger.close()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
async def test_killed_between_two_requests(tmp_path: Path, clock: FakeClock, steps: int) -> None:
    """A node whose pull a kill cut has the image only if it makes no request for 10 minutes, or
    after its next requests; one with all blobs, or settled before the kill, has it at once."""
    file = tmp_path / "coverage.jsonl"
    nodes = Nodes(2, ("a", "b"))
    before = Upgrade(file, nodes, clock)
    before.warm("b")
    await clock.tick(SETTLED_SECONDS + 2)
    before.manifest("a", APP, APP_1, head=True, tag="1")
    requests = (
        functools.partial(before.manifest, "a", APP, APP_1),
        *(functools.partial(before.blob, "a", blob) for blob in (CONFIG, LAYER_1, LAYER_2)),
    )
    for request in requests[: steps - 1]:
        request()
    # Twice: a server may be killed again before the node has come back.
    Upgrade(file, nodes, clock).ledger.close()
    await clock.tick(60)
    after = Upgrade(file, nodes, clock)
    assert after.state("b") is State.CLAIMED
    expected = {1: State.PULLING, 2: State.INCOMPLETE, 5: State.SERVED}
    assert after.state("a") is expected.get(steps, State.PULLING)
    changes = after.pulls.changes_in()
    assert changes is not None and changes < EXPECTATION_SECONDS - 59
    await clock.tick(changes)
    silent = {1: State.CLAIMED, 2: State.INCOMPLETE, 3: State.CLAIMED}
    assert after.state("a") is silent.get(steps, State.SERVED)
    again = Upgrade(file, nodes, clock)
    again.manifest("a", APP, APP_1, head=True, tag="1")
    await clock.tick(SETTLED_SECONDS)
    assert again.state("a") is (State.SERVED if steps > 3 else State.CLAIMED)
    for upgrade in (before, after, again):
        upgrade.ledger.close()


@pytest.mark.parametrize("is_silent", [True, False])
async def test_killed_once_a_pull_had_ended(
    tmp_path: Path, clock: FakeClock, is_silent: bool
) -> None:
    """A node that was silent for long enough before the kill still has the image after it."""
    file = tmp_path / "coverage.jsonl"
    nodes = Nodes(1, ("a",))
    before = Upgrade(file, nodes, clock)
    before.manifest("a", APP, APP_1, head=True, tag="1")
    before.manifest("a", APP, APP_1)
    before.blob("a", CONFIG)
    await clock.tick(SETTLED_SECONDS if is_silent else SETTLED_SECONDS - 1)
    before.observer.note_settled()
    concluded = before.state("a")
    # Twice: the new file of a start has it, too.
    Upgrade(file, nodes, clock).ledger.close()
    after = Upgrade(file, nodes, clock)
    assert after.state("a") is concluded is (State.CLAIMED if is_silent else State.PULLING)
    after.manifest("a", APP, APP_1)
    after.blob_cut("a", LAYER_1)
    again = Upgrade(file, nodes, clock)
    await clock.tick(SETTLED_SECONDS)
    assert again.state("a") is State.FAILED
    for upgrade in (before, after, again):
        upgrade.ledger.close()


async def test_others_get_turns(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """A look at many nodes is in turns with the requests; the questions after it derive nothing."""
    monkeypatch.setattr(threads, "TURN_SECONDS", 0)
    names = tuple(f"node-{number}" for number in range(200))
    upgrade = Upgrade(None, Nodes(200, names), clock)
    coverage = upgrade.coverage
    for name in names[:100]:
        upgrade.cold(name)
    states, derived = upgrade.observer.states, 0
    derive = states.of

    def of(node: str, target: ResolvedImage | None) -> State:
        nonlocal derived
        derived += 1
        return derive(node, target)

    monkeypatch.setattr(states, "of", of)
    async with counting_turns() as turns:
        await coverage.explore()
    assert turns.taken >= 200
    # Silent nodes share a row.
    assert derived == 2 * 100
    assert (coverage.covered_nodes(), coverage.complete()) == (100, False)
    assert len(coverage.snapshot().covered) == 100
    assert derived == 2 * 100
    upgrade.cold(names[100])
    assert coverage.covered_nodes() == 101
    assert derived == 2 * 101


async def test_matrix_has_a_bound(clock: FakeClock) -> None:
    """Past it covered nodes are left out first."""
    upgrade = Upgrade(None, Nodes(3, ("a", "b", "c")), clock)
    upgrade.cold("a")
    found = upgrade.coverage.snapshot()
    assert [list(row) for row in found.matrix(most=5).values()] == [["b", "c"]] * 2
    assert [list(row) for row in found.matrix(most=6).values()] == [["a", "b", "c"]] * 2


async def test_record_has_a_bound(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """What is left out of the gaps is counted."""
    monkeypatch.setattr(report, "MAX_GAPS", 3)
    upgrade = Upgrade(None, Nodes(3, ("a", "b", "c")), clock)
    upgrade.cold("a")
    record = report.coverage_record(upgrade.coverage.snapshot(), int)
    assert (len(record["missing"]), record["missing_left_out"]) == (3, 1)
