"""Pulls and pushes under way."""

from __future__ import annotations

import pytest

from mayfly.registry.coverage import pulls as pulls_module
from mayfly.registry.coverage.contents import NO_CONTENTS, Contained, Contents
from mayfly.registry.coverage.pulls import PATIENCE, SETTLED, Pulls
from mayfly.registry.lifecycle.activity import Pulse
from tests.support.fakes import FakeClock, digest

REPO, IMAGE, LAYER = "team/app", digest("image"), digest("layer")
CONTENTS = Contents(blobs=(LAYER,))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pulls(clock: FakeClock) -> Pulls:
    return Pulls(clock.now, Pulse())


async def test_patience(clock: FakeClock, pulls: Pulls) -> None:
    """A node that pulls other things all day is not for ever expected to fetch a blob it has."""
    pulls.manifest("a", REPO, IMAGE, CONTENTS, head=False)
    passed = 0.0
    while passed < PATIENCE:
        assert pulls.busy("a", {LAYER})
        await clock.tick(SETTLED - 1)
        passed += SETTLED - 1
        pulls.manifest("a", "team/other", digest("o"), NO_CONTENTS, head=False)
    assert not pulls.busy("a", {LAYER})


async def test_settles_in(clock: FakeClock, pulls: Pulls) -> None:
    """The time until nothing more is expected is that of the node that was active last."""
    assert pulls.settles_in() is None
    pulls.manifest("a", REPO, IMAGE, CONTENTS, head=False)
    await clock.tick(2)
    pulls.push("b")
    assert pulls.settles_in() == SETTLED
    await clock.tick(SETTLED - 1)
    assert pulls.settles_in() == 1
    await clock.tick(1)
    assert pulls.settles_in() is None


def test_two_transfers_of_one_blob(pulls: Pulls) -> None:
    """The blob flows until the last of them ended."""
    pulls.blob_begun("a", LAYER)
    pulls.blob_begun("a", LAYER)
    pulls.blob_ended("a", LAYER, whole=True)
    assert pulls.busy("a", {LAYER})
    pulls.blob_ended("a", LAYER, whole=True)
    assert not pulls.busy("a", {LAYER})


def test_nodes_are_bounded(pulls: Pulls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses that a client makes up do not fill the memory."""
    monkeypatch.setattr(pulls_module, "MAX_NODES", 2)
    for i in range(10):
        pulls.manifest(f"n{i}", REPO, IMAGE, CONTENTS, head=False)
        pulls.blob_begun(f"n{i}", LAYER)
        pulls.blob_ended(f"n{i}", LAYER, whole=True)
    assert not pulls.knows("n5", REPO, IMAGE)
    assert pulls.knows("n1", REPO, IMAGE)


def test_contents_below() -> None:
    """All that is under an index is found once, loops and deep nests included."""
    tree = {
        digest("top"): Contents(children=(digest("mid"), digest("top"))),
        digest("mid"): Contents(children=(digest("top"), digest("leaf"))),
        digest("leaf"): Contents(blobs=(LAYER,)),
    }
    contained = Contained(lambda repository, wanted: tree.get(wanted))
    below = contained.below(REPO, digest("top"))
    assert below == {digest("top"), digest("mid"), digest("leaf"), LAYER}
    assert contained.below(REPO, digest("unknown")) == {digest("unknown")}
