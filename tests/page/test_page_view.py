"""Views of the page, as the server makes them: of each node its states, progress and faults."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from mayfly.registry import text, threads
from mayfly.registry.control import page_view
from mayfly.registry.control.page_view import PageView
from mayfly.registry.coverage.coverage import Coverage
from mayfly.registry.coverage.proofs import ProvenImage
from mayfly.registry.coverage.pulls import SETTLED_SECONDS
from mayfly.registry.coverage.upgrade_lists import Nodes, parse_image
from mayfly.registry.page.view import MAX_LISTED, NodeView, Proof
from tests.coverage.test_coverage import (
    APP,
    APP_1,
    APP_2,
    CONFIG,
    LAYER_1,
    LAYER_2,
    WEB,
    WEB_AMD,
    WEB_ARM,
    WEB_CONFIG,
    WEB_INDEX,
    WEB_LAYER,
    Upgrade,
)
from tests.support.beside import counting_turns
from tests.support.fakes import FakeClock, FakeStore, digest, prepare
from tests.support.lifecycle_hooks import lifecycle_hooks

REFUSED = {"user": "a\nb", "address": "192.0.2.1", "requests": 1}
APP_IMAGE, WEB_IMAGE = "team/app:1", "docker.io/library/web:1"


class Shown:
    """Views of an upgrade of two images, of blobs of 100 bytes each.

    Args:
        nodes: that must have both.
    """

    def __init__(self, nodes: Nodes, **changed: Any) -> None:
        self.upgrade = Upgrade(None, nodes, FakeClock())
        observer, content = self.upgrade.observer, self.upgrade.content
        content.sizes = _hundred_each(content)  # type: ignore[method-assign]
        self.coverage = self.upgrade.cover((parse_image(APP_IMAGE), parse_image(WEB_IMAGE)), nodes)
        self.views = PageView(
            lambda: status(**changed), observer, self.coverage, content, self.upgrade.clock
        )

    async def node(self, name: str) -> NodeView:
        """The view of a node now."""
        return (await self.views.look()).nodes[name]


def _hundred_each(content: FakeStore) -> Any:
    def sizes(repository: str, one: str) -> dict[str, int]:
        refs = content.manifests.get((repository, one))
        return dict.fromkeys(refs.blobs if refs is not None else (), 100)

    return sizes


def status(**changed: Any) -> dict[str, Any]:
    """What the page needs of the state of a server."""
    made: dict[str, Any] = dict.fromkeys(("state", "ending", "url", "version"), "text")
    made |= {"started_unix": 0.0, "bytes_in": 0, "bytes_out": 0}
    return made | {"ends": [], "corrupt": [], "warnings": [], "denied": []} | changed


def page(store: FakeStore, **changed: Any) -> PageView:
    """Views of a server that waits for no nodes."""
    observer = lifecycle_hooks().observer
    return PageView(lambda: status(**changed), observer, None, store, FakeClock())


@pytest.fixture
def shown() -> Shown:
    """An upgrade of the nodes a and b."""
    return Shown(Nodes(2, ("a", "b")))


async def test_only_what_is_shown_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a list as long as clients made it the first entries."""
    seen = []

    def escaped(document: Any) -> Any:
        seen.append(len(document["denied"]))
        return text.escaped(document)

    monkeypatch.setattr("mayfly.registry.control.page_view.escaped", escaped)
    made = await page(FakeStore(), denied=[REFUSED] * 10 * MAX_LISTED).look()
    assert seen == [MAX_LISTED]
    assert len(made.run["denied"]) == MAX_LISTED
    assert "\n" not in made.run["denied"][0]["user"]


async def test_states_and_numbers(shown: Shown) -> None:
    """A letter for each image, in the order of the list; nodes with all of them are counted."""
    shown.upgrade.cold("a")
    view = await shown.views.look()
    assert {name: node.states for name, node in view.nodes.items()} == {"a": "ss", "b": "mm"}
    assert (view.run["wanted"], view.run["covered"], view.run["accept"]) == (2, 1, "claimed")
    images = view.served["images"]
    assert [(one["name"], one["digest"], one["size"]) for one in images] == [
        (APP_IMAGE, APP_1, 300),
        (WEB_IMAGE, WEB_INDEX, 400),
    ]
    assert len(view.served["layers"]) == 7


async def test_progress_counts_what_arrives(shown: Shown) -> None:
    """Blobs that are there, what is left of one that broke off, and what flows now."""
    upgrade = shown.upgrade
    upgrade.manifest("a", APP, APP_1)
    assert (await shown.node("a")).pulling == ((0, 0, 300),)
    upgrade.blob("a", CONFIG)
    assert (await shown.node("a")).pulling == ((0, 100, 300),)
    upgrade.blob_cut("a", LAYER_1, count=50)
    assert (await shown.node("a")).pulling == ((0, 150, 300),)
    prepare(upgrade.observer, "a", APP)
    sending = upgrade.observer.sending(upgrade.caller("a"), APP, LAYER_2)
    with sending, sending.part(0, 100, 100):
        sending.count(30)
        assert (await shown.node("a")).pulling == ((0, 180, 300),)
        sending.count(70)
        assert (await shown.node("a")).pulling == ((0, 250, 300),)
        assert (await shown.node("b")).pulling == (), "another node pulls nothing"
    upgrade.blob("a", LAYER_1, first=50, count=50)
    assert (await shown.node("a")).states[0] == "s"
    assert (await shown.node("a")).pulling == ()


async def test_progress_of_an_index_is_that_of_its_image(shown: Shown) -> None:
    """A node pulls the image of its own platform: the others are no part of the total."""
    upgrade = shown.upgrade
    upgrade.manifest("a", WEB, WEB_INDEX)
    upgrade.manifest("a", WEB, WEB_AMD)
    upgrade.blob("a", WEB_CONFIG, repository=WEB)
    assert (await shown.node("a")).pulling == ((1, 100, 200),)
    upgrade.manifest("b", WEB, WEB_INDEX)
    upgrade.manifest("b", WEB, WEB_ARM)
    upgrade.blob("b", digest("armconfig"), repository=WEB)
    assert (await shown.node("b")).pulling == ((1, 100, 200),)
    upgrade.blob("b", digest("armlayer"), repository=WEB)
    upgrade.blob("a", WEB_LAYER, repository=WEB)
    assert [node.states for node in (await shown.views.look()).nodes.values()] == ["ms", "ms"]


async def test_a_pull_of_unknown_size(shown: Shown) -> None:
    """Before the sizes are read the total is 0, which no bar is drawn of."""
    upgrade = shown.upgrade
    upgrade.content.sizes = lambda repository, digest: {}  # type: ignore[method-assign]
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob("a", CONFIG)
    assert (await shown.node("a")).pulling == ((0, 0, 0),)


async def test_reasons_of_failures(shown: Shown) -> None:
    """Which content broke off and where, or was refused."""
    upgrade = shown.upgrade
    upgrade.manifest("a", APP, APP_1)
    upgrade.blob("a", CONFIG)
    upgrade.blob_cut("a", LAYER_1, count=50)
    await upgrade.clock.tick(10 * SETTLED_SECONDS)
    node = await shown.node("a")
    assert node.states[0] == "f"
    assert node.failed == ((0, f"{LAYER_1} stopped at 50 B of 100 B"),)
    upgrade.manifest("b", APP, APP_1)
    prepare(upgrade.observer, "b", APP)
    with pytest.raises(OSError), upgrade.observer.sending(upgrade.caller("b"), APP, LAYER_2):
        raise OSError("the disk is broken")
    await upgrade.clock.tick(10 * SETTLED_SECONDS)
    assert (await shown.node("b")).failed == ((0, f"{LAYER_2} was refused or could not be read"),)
    upgrade.blob("b", LAYER_2)
    upgrade.blob("b", CONFIG)
    assert (await shown.node("b")).failed == ()


async def test_a_proof_is_shown(shown: Shown) -> None:
    """With its time, and what the node said; a new one takes its place."""
    upgrade = shown.upgrade
    upgrade.cold("a")
    images = [ProvenImage(APP_1, "containerd", 1, True, 5000)]
    await upgrade.observer.proved(upgrade.caller("a"), images)
    node = await shown.node("a")
    assert node.states == "ps"
    assert node.proof == Proof(int(upgrade.clock.wall()), 1, 1, 5000)
    await upgrade.clock.tick(60)
    images = [ProvenImage(one, "containerd", 1, False, 7000) for one in (APP_1, WEB_AMD)]
    await upgrade.observer.proved(upgrade.caller("a"), images)
    assert (await shown.node("a")).proof == Proof(int(upgrade.clock.wall()), 2, 0, 7000)


async def test_a_proof_without_a_list_of_images() -> None:
    """A new one takes the place of an old one there, too, where all nodes have the same states."""
    shown = Shown(Nodes(2, ("a", "b")))
    shown.views = PageView(
        status, shown.upgrade.observer, shown.upgrade.cover((), Nodes(2, ("a", "b"))), FakeStore(),
        shown.upgrade.clock,
    )  # fmt: skip
    for pinned in (False, True):
        images = [ProvenImage(APP_1, "containerd", 1, pinned, 5000)]
        await shown.upgrade.observer.proved(shown.upgrade.caller("a"), images)
        proof = (await shown.node("a")).proof
        assert proof is not None and proof.pinned == pinned
        await shown.upgrade.clock.tick(60)


async def test_a_tag_that_moves(shown: Shown) -> None:
    """Its nodes lack the new image, and the image shown is the new one."""
    upgrade = shown.upgrade
    upgrade.cold("a")
    assert (await shown.node("a")).states == "ss"
    upgrade.content.tags[APP, "1"] = APP_2
    view = await shown.views.look()
    assert view.nodes["a"].states == "ms"
    assert view.served["images"][0]["digest"] == APP_2
    del upgrade.content.tags[APP, "1"]
    view = await shown.views.look()
    assert view.nodes["a"].states == "as"
    assert view.served["images"][0] == {
        "name": APP_IMAGE, "digest": None, "size": None, "layers": [],
    }  # fmt: skip


async def test_nodes_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have everything are left out first, and all are counted."""
    monkeypatch.setattr(page_view, "MAX_CELLS", 4)
    shown = Shown(Nodes(4, ("a", "b", "c", "d")))
    for name in ("a", "b"):
        shown.upgrade.cold(name)
    view = await shown.views.look()
    assert list(view.nodes) == ["c", "d"]
    assert (view.run["nodes_left_out"], view.run["covered"]) == (2, 2)


async def test_names_are_one_line(shown: Shown) -> None:
    """Whatever a node is called."""
    shown = Shown(Nodes(1, ("a\x1b[2J\nb",)))
    (name,) = (await shown.views.look()).nodes
    assert name.isprintable()


async def test_nothing_is_made_again(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of a node holds until a fact about it is recorded, but for moving bytes."""
    made = []
    of_node = PageView._node

    def count(self: PageView, name: str, *args: Any) -> NodeView:
        made.append(name)
        return of_node(self, name, *args)

    monkeypatch.setattr(PageView, "_node", count)
    shown.upgrade.cold("a")
    first = await shown.views.look()
    second = await shown.views.look()
    assert made == ["a", "b"]
    assert second.nodes["a"] is first.nodes["a"]
    assert second.served is first.served
    shown.upgrade.manifest("b", APP, APP_1)
    await shown.views.look()
    await shown.views.look()
    assert made == ["a", "b", "b", "b"], "its bytes may have moved"
    shown.views.forget()
    assert not shown.views._made and not shown.views._blobs
    await shown.views.look()
    assert made[4:] == ["a", "b"]


async def test_others_get_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A view of many nodes is made in turns with the requests."""
    monkeypatch.setattr(threads, "TURN_SECONDS", 0)
    names = tuple(f"node-{number}" for number in range(200))
    shown = Shown(Nodes(200, names))
    for name in names[:100]:
        shown.upgrade.cold(name)
    await Coverage.explore(shown.coverage)
    monkeypatch.setattr(shown.coverage, "explore", _nothing)
    async with counting_turns() as turns:
        view = await shown.views.look()
    assert view.run["covered"] == 100
    assert turns.taken >= 2 * len(names)


async def test_no_turn_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few nodes are looked at in one turn of the event loop, also where no list names them."""
    monkeypatch.setattr(threads, "TURN_SECONDS", 0)
    shown = Shown(Nodes(1))
    names = [f"node-{number}" for number in range(200)]
    for name in names:
        shown.upgrade.cold(name)
    row = Coverage._row
    async with counting_turns() as turns:

        def counted(self: Coverage, node: str) -> Any:
            turns.steps += 1
            return row(self, node)

        monkeypatch.setattr(Coverage, "_row", counted)
        view = await shown.views.look()
    assert list(view.nodes) == names
    assert 0 < turns.most_steps < 10


async def test_what_the_page_made_is_freed() -> None:
    """Also the coverage that it made itself, which has a row for each node."""
    store = FakeStore()
    store.tags["team/app", "1"] = APP_1
    views = page(store)
    await views.look()
    assert views._coverage is not None
    made = weakref.ref(views._coverage)
    views.forget()
    gc.collect()
    assert made() is None
    assert [image["name"] for image in (await views.look()).served["images"]] == ["team/app:1"]


async def _nothing() -> None:
    """In place of a look at the coverage."""
