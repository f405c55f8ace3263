"""The observer: transfers in flight, and their arrival."""

from __future__ import annotations

import pytest

from mayfly.registry.activity import Activity
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.manifest_graph import ManifestGraph, ManifestRefs
from mayfly.registry.coverage.observer import NEW_PULL_SECONDS, Observer
from mayfly.registry.coverage.pulls import SETTLED_SECONDS, Pulls
from mayfly.registry.coverage.states import State
from mayfly.registry.http.errors import RangeInvalid
from tests.support.fakes import FakeClock, FakeStore, digest

REPO, MANIFEST, LAYER = "team/app", digest("manifest"), digest("layer")


def make(clock: FakeClock) -> Observer:
    content = FakeStore()
    content.manifests[REPO, MANIFEST] = ManifestRefs(blobs=(LAYER,))
    ledger = Ledger(None, clock)
    return Observer(
        Activity(clock.now),
        Pulls(clock.now, ledger.changed),
        ledger,
        ManifestGraph(content.refs),
        clock,
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_transfers_are_shown(clock: FakeClock) -> None:
    """A transfer is listed exactly while it is under way."""
    observer = make(clock)
    caller = observer.peer("", "a", "10.0.0.7")
    with observer.sending(caller, REPO, LAYER) as sending, sending.part(0, 9, 9):
        assert [str(t) for t in observer.transfers] == [f"pull of {REPO}@{LAYER} by a (10.0.0.7)"]
    with observer.track_push(caller, REPO):
        assert [str(t) for t in observer.transfers] == [f"push of {REPO} by a (10.0.0.7)"]
    assert not observer.transfers


def test_range_beyond_the_end_is_no_failure(clock: FakeClock) -> None:
    """A request for a range beyond the end is not a failure."""
    observer = make(clock)
    caller = observer.peer("a", None, None)
    observer.manifest_served(
        caller, REPO, MANIFEST, observer.graph.of(REPO, MANIFEST), head=False, tag=None
    )
    with pytest.raises(RangeInvalid), observer.sending(caller, REPO, LAYER):
        raise RangeInvalid("", 9)
    assert not observer.ledger.facts.last_pending("a", {LAYER})


async def test_blob_that_a_client_waits_for(clock: FakeClock) -> None:
    """A node fetches a blob from its request on, also while the registry has none of it to send; if
    the client leaves before the first byte, the node lacks it, unless it had all of it."""
    observer = make(clock)
    caller = observer.peer("a", None, None)
    refs = observer.graph.of(REPO, MANIFEST)
    observer.manifest_served(caller, REPO, MANIFEST, refs, head=False, tag=None)
    with pytest.raises(ConnectionResetError), observer.sending(caller, REPO, LAYER):
        await clock.tick(2 * SETTLED_SECONDS)
        assert observer.pulls.is_fetching("a", {LAYER})
        raise ConnectionResetError
    assert observer.ledger.facts.last_pending("a", {LAYER})
    await clock.tick(SETTLED_SECONDS)
    assert not observer.pulls.is_fetching("a", {LAYER})
    with observer.sending(caller, REPO, LAYER) as sending, sending.part(0, 9, 9):
        sending.count(9)
    with pytest.raises(ConnectionResetError), observer.sending(caller, REPO, LAYER):
        raise ConnectionResetError
    assert observer.ledger.facts.has_blob("a", LAYER)
    assert not observer.ledger.facts.last_pending("a", {LAYER})


async def test_manifest_that_a_client_waits_for(clock: FakeClock) -> None:
    """A HEAD claims no image while a GET after it waits, nor if the client leaves meanwhile."""
    observer = make(clock)
    caller = observer.peer("a", None, None, "containerd/2.1.9")
    refs = observer.graph.of(REPO, MANIFEST)
    observer.manifest_served(caller, REPO, MANIFEST, refs, head=True, tag="1")
    image = observer.states.resolve(REPO, MANIFEST)
    with pytest.raises(ConnectionResetError), observer.asking(caller, REPO, MANIFEST):
        await clock.tick(2 * SETTLED_SECONDS)
        assert observer.states.of("a", image) is State.PULLING
        raise ConnectionResetError
    await clock.tick(SETTLED_SECONDS)
    assert observer.states.of("a", image) is State.FAILED
    with observer.asking(caller, REPO, digest("of no pull")):
        assert not observer.pulls.is_fetching("a", {digest("of no pull")})


def test_empty_blob_arrives(clock: FakeClock) -> None:
    """An empty blob is complete once it is answered."""
    observer = make(clock)
    caller = observer.peer("a", None, None)
    observer.manifest_served(
        caller, REPO, MANIFEST, observer.graph.of(REPO, MANIFEST), head=False, tag=None
    )
    observer.ledger.failed("a", REPO, LAYER)
    with observer.sending(caller, REPO, LAYER):
        pass
    assert not observer.ledger.facts.last_pending("a", {LAYER})
    assert observer.ledger.facts.has_blob("a", LAYER)


async def test_asked_again(clock: FakeClock) -> None:
    """A new pull of an image that a node has had for a while is neither a step of the same pull nor
    a retry after a failure."""
    observer = make(clock)
    a, b = (observer.peer(name, None, None) for name in "ab")
    for caller in (a, b):
        observer.manifest_served(
            caller, REPO, MANIFEST, observer.graph.of(REPO, MANIFEST), head=True, tag="1"
        )
        observer.manifest_served(
            caller, REPO, MANIFEST, observer.graph.of(REPO, MANIFEST), head=False, tag=None
        )
        with observer.sending(caller, REPO, LAYER):
            pass
    observer.ledger.failed("b", REPO, LAYER)
    assert observer.ledger.facts.asked_again() == {}
    await clock.tick(NEW_PULL_SECONDS)
    for caller in (a, b):
        observer.manifest_served(
            caller, REPO, MANIFEST, observer.graph.of(REPO, MANIFEST), head=True, tag="1"
        )
    assert observer.ledger.facts.asked_again() == {"a": 1}
