"""Pulls and pushes under way."""

from __future__ import annotations

import pytest

from mayfly.registry.coverage import pulls as pulls_module
from mayfly.registry.coverage.manifest_graph import NO_REFS, ManifestGraph, ManifestRefs
from mayfly.registry.coverage.pulls import EXPECTATION_SECONDS, SETTLED_SECONDS, Pulls
from mayfly.registry.notification import Notification
from tests.support.fakes import FakeClock, digest

REPO, IMAGE, LAYER = "team/app", digest("image"), digest("layer")
CONTENTS = ManifestRefs(blobs=(LAYER,))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pulls(clock: FakeClock) -> Pulls:
    return Pulls(clock.now, Notification())


async def test_patience(clock: FakeClock, pulls: Pulls) -> None:
    """A node that pulls other content is no longer expected to fetch a blob after a while."""
    pulls.manifest("a", REPO, IMAGE, CONTENTS, head=False)
    passed = 0.0
    while passed < EXPECTATION_SECONDS:
        assert pulls.is_fetching("a", {LAYER})
        await clock.tick(SETTLED_SECONDS - 1)
        passed += SETTLED_SECONDS - 1
        pulls.manifest("a", "team/other", digest("o"), NO_REFS, head=False)
    assert not pulls.is_fetching("a", {LAYER})


async def test_settles_in(clock: FakeClock, pulls: Pulls) -> None:
    """The most recently active node decides how long requests are expected."""
    assert pulls.settles_in() is None
    pulls.manifest("a", REPO, IMAGE, CONTENTS, head=False)
    await clock.tick(2)
    pulls.push("b")
    assert pulls.settles_in() == SETTLED_SECONDS
    await clock.tick(SETTLED_SECONDS - 1)
    assert pulls.settles_in() == 1
    await clock.tick(1)
    assert pulls.settles_in() is None


def test_two_transfers_of_one_blob(pulls: Pulls) -> None:
    """A blob is in flight until its last transfer has ended."""
    pulls.fetch_begun("a", LAYER)
    pulls.fetch_begun("a", LAYER)
    pulls.fetch_ended("a", LAYER, complete=True)
    assert pulls.is_fetching("a", {LAYER})
    pulls.fetch_ended("a", LAYER, complete=True)
    assert not pulls.is_fetching("a", {LAYER})


def test_nodes_are_bounded(pulls: Pulls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up addresses do not fill the memory."""
    monkeypatch.setattr(pulls_module, "MAX_NODES", 2)
    for i in range(10):
        pulls.manifest(f"n{i}", REPO, IMAGE, CONTENTS, head=False)
        pulls.fetch_begun(f"n{i}", LAYER)
        pulls.fetch_ended(f"n{i}", LAYER, complete=True)
    assert not pulls.has_begun("n5", REPO, IMAGE)
    assert pulls.has_begun("n1", REPO, IMAGE)


def test_contents_below() -> None:
    """The closure of an index has each digest once, also with loops and deep nesting."""
    tree = {
        digest("top"): ManifestRefs(children=(digest("mid"), digest("top"))),
        digest("mid"): ManifestRefs(children=(digest("top"), digest("leaf"))),
        digest("leaf"): ManifestRefs(blobs=(LAYER,)),
    }
    graph = ManifestGraph(lambda repository, wanted: tree.get(wanted))
    below = graph.closure(REPO, digest("top"))
    assert below == {digest("top"), digest("mid"), digest("leaf"), LAYER}
    assert graph.closure(REPO, digest("unknown")) == {digest("unknown")}
