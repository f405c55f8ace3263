"""What handlers tell: what is in flight, what arrived."""

from __future__ import annotations

import pytest

from mayfly.registry.coverage.contents import Contained, Contents
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.observer import AGAIN_AFTER, Observer
from mayfly.registry.coverage.pulls import Pulls
from mayfly.registry.http.errors import RangeInvalid
from mayfly.registry.lifecycle.activity import Activity
from tests.support.fakes import FakeClock, FakeContent, digest

REPO, MANIFEST, LAYER = "team/app", digest("manifest"), digest("layer")


def make(clock: FakeClock) -> Observer:
    content = FakeContent()
    content.manifests[REPO, MANIFEST] = Contents(blobs=(LAYER,))
    ledger = Ledger(None, clock)
    return Observer(
        Activity(clock.now),
        Pulls(clock.now, ledger.changed),
        ledger,
        Contained(content.contents),
        clock,
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_transfers_are_shown(clock: FakeClock) -> None:
    """A transfer is in the list exactly while it flows."""
    observer = make(clock)
    caller = observer.caller("", "a", "10.0.0.7")
    with observer.sending(caller, REPO, LAYER) as sending, sending.part(0, 9, 9):
        assert [str(t) for t in observer.transfers] == [f"pull of {REPO}@{LAYER} by a (10.0.0.7)"]
    with observer.receiving(caller, REPO):
        assert [str(t) for t in observer.transfers] == [f"push of {REPO} by a (10.0.0.7)"]
    assert not observer.transfers


def test_range_beyond_the_end_is_no_failure(clock: FakeClock) -> None:
    """A client that asks for more than there is finds out that it has everything."""
    observer = make(clock)
    caller = observer.caller("a", None, None)
    observer.manifest_served(
        caller, REPO, MANIFEST, observer.contained.of(REPO, MANIFEST), head=False, tag=None
    )
    with pytest.raises(RangeInvalid), observer.sending(caller, REPO, LAYER):
        raise RangeInvalid("", 9)
    assert not observer.ledger.wanted("a", {LAYER})


def test_empty_blob_arrives(clock: FakeClock) -> None:
    """A blob without bytes mends a failure by being answered."""
    observer = make(clock)
    caller = observer.caller("a", None, None)
    observer.manifest_served(
        caller, REPO, MANIFEST, observer.contained.of(REPO, MANIFEST), head=False, tag=None
    )
    observer.ledger.failed("a", REPO, LAYER)
    with observer.sending(caller, REPO, LAYER):
        pass
    assert not observer.ledger.wanted("a", {LAYER})
    assert observer.ledger.has_whole("a", LAYER)


async def test_asked_again(clock: FakeClock) -> None:
    """A pull of what a node has had for a while is told apart from the steps of one pull and from
    a try after a failure."""
    observer = make(clock)
    a, b = (observer.caller(name, None, None) for name in "ab")
    for caller in (a, b):
        observer.manifest_served(
            caller, REPO, MANIFEST, observer.contained.of(REPO, MANIFEST), head=True, tag="1"
        )
        observer.manifest_served(
            caller, REPO, MANIFEST, observer.contained.of(REPO, MANIFEST), head=False, tag=None
        )
        with observer.sending(caller, REPO, LAYER):
            pass
    observer.ledger.failed("b", REPO, LAYER)
    assert observer.ledger.asked_again() == {}
    await clock.tick(AGAIN_AFTER)
    for caller in (a, b):
        observer.manifest_served(
            caller, REPO, MANIFEST, observer.contained.of(REPO, MANIFEST), head=True, tag="1"
        )
    assert observer.ledger.asked_again() == {"a": 1}
