"""States after any sequence of events, with the server killed between any two of them."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mayfly.registry.activity import Activity
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.manifest_graph import ManifestGraph, ManifestRefs
from mayfly.registry.coverage.observer import Observer
from mayfly.registry.coverage.pulls import Pulls
from mayfly.registry.coverage.states import State
from tests.support.fakes import FakeClock, FakeStore, digest, prepare

INDEX, IMAGE, OTHER = digest("index"), digest("image"), digest("other")
CONFIG, LAYER = digest("config"), digest("layer")
SIZE = 4
AGENTS = ("containerd/1.6.20", "docker/20.10.24", "containers/5.23.1", "curl/8")

EVENTS = st.one_of(
    st.tuples(
        st.just("manifest"),
        st.sampled_from((INDEX, IMAGE, OTHER)),
        st.booleans(),
        st.sampled_from(AGENTS),
    ),
    st.tuples(
        st.just("blob"),
        st.sampled_from((CONFIG, LAYER)),
        st.integers(0, SIZE - 1),
        st.integers(0, SIZE),
        st.sampled_from(AGENTS),
    ),
    st.tuples(st.just("refused"), st.sampled_from((CONFIG, LAYER, IMAGE))),
    st.tuples(st.just("kill")),
)


class Node:
    """One node's requests to a server that keeps facts, in a file if there is one."""

    def __init__(self, file: Path | None) -> None:
        self.clock = FakeClock()
        self._file = file
        self._content = FakeStore()
        self._content.manifests = {
            ("r", INDEX): ManifestRefs(children=(IMAGE,)),
            ("r", IMAGE): ManifestRefs(blobs=(CONFIG, LAYER)),
            ("r", OTHER): ManifestRefs(blobs=(digest("c2"), LAYER)),
        }
        self.start()

    def start(self) -> None:
        """Start a server from the file; nothing of the previous one still runs."""
        self.ledger = Ledger(self._file, self.clock)
        graph = ManifestGraph(self._content.refs)
        activity = Activity(self.clock.now)
        pulls = Pulls(self.clock.now, self.ledger.changed)
        self.observer = Observer(activity, pulls, self.ledger, graph, self.clock)

    def happen(self, event: tuple[object, ...]) -> None:
        observer = self.observer
        prepare(observer, "n", "r")
        match event:
            case ("manifest", str(what), bool(head), str(agent)):
                caller = observer.peer("", "n", None, agent)
                refs = observer.graph.of("r", what)
                observer.manifest_served(caller, "r", what, refs, head=head, tag=None)
            case ("blob", str(what), int(first), int(count), str(agent)):
                count = min(count, SIZE - first)
                caller = observer.peer("", "n", None, agent)
                sending = observer.sending(caller, "r", what)
                with (
                    contextlib.suppress(ConnectionError),
                    sending,
                    sending.part(first, SIZE - first, SIZE),
                ):
                    sending.count(count)
                    if first + count < SIZE:
                        raise ConnectionResetError
            case ("refused", str(what)):
                caller = observer.peer("", "n", None)
                if what == IMAGE:
                    observer.manifest_failed(caller, "r", what)
                else:
                    with contextlib.suppress(OSError), observer.sending(caller, "r", what):
                        raise OSError

    def states(self) -> list[State]:
        """Return the state with each image after a quiet time."""
        quiet = Pulls(self.clock.now, self.ledger.changed)
        states = type(self.observer.states)(self.ledger.facts, quiet, self.observer.graph)
        return [states.of("n", states.resolve("r", one)) for one in (INDEX, IMAGE, OTHER)]


ASKED_AGAIN = [
    ("manifest", IMAGE, False, AGENTS[0]),
    *(("blob", CONFIG, first, count, AGENTS[0]) for first, count in ((1, 1), (2, 2))),
    ("kill",),
    ("blob", CONFIG, 1, 1, AGENTS[0]),
    ("kill",),
    ("blob", CONFIG, 0, 1, AGENTS[0]),
]
"""One part of a blob is asked for again after a kill, not the part that follows it."""


@given(st.lists(EVENTS, max_size=25))
@example(ASKED_AGAIN)
@settings(max_examples=150, deadline=None)
def test_a_kill_changes_nothing(events: list[tuple[object, ...]]) -> None:
    """A server that is killed between two events draws the same conclusions as one that is not, and
    counts the same bytes and retries."""
    with tempfile.TemporaryDirectory() as directory:
        killed, living = Node(Path(directory) / "coverage.jsonl"), Node(None)
        for event in events:
            if event == ("kill",):
                killed.start()
            else:
                killed.happen(event)
                living.happen(event)
            assert killed.states() == living.states()
            for key, pull in living.ledger.facts.pulls("n").items():
                other = killed.ledger.facts.pulls("n")[key]
                assert (other.bytes, other.retries) == (pull.bytes, pull.retries)
        killed.ledger.close()


@given(st.lists(EVENTS, max_size=25))
@settings(max_examples=150, deadline=None)
def test_what_states_need(events: list[tuple[object, ...]]) -> None:
    """No sequence makes a node served without all bytes of config and layer, or claimed without a
    runtime's request after the last thing that went wrong."""
    node = Node(None)
    sent: dict[str, set[int]] = {CONFIG: set(), LAYER: set()}
    claims = False
    for event in events:
        asked = node.ledger.facts.pull("n", "r", IMAGE) or node.ledger.facts.pull("n", "r", INDEX)
        node.happen(event)
        match event:
            case ("manifest", str(), bool(head), str(agent)):
                claims |= agent != "curl/8" and (head or agent.startswith("docker"))
            case ("blob", str(what), int(first), int(count), str(agent)):
                sent[what].update(range(first, min(first + count, SIZE)))
                claims |= agent != "curl/8" and what == CONFIG
        state = node.states()[1]
        if state is State.SERVED:
            assert all(len(found) == SIZE for found in sent.values())
        if state is State.CLAIMED:
            assert claims
        if event[0] == "refused" and asked is not None:
            assert state in (State.FAILED, State.MISSING)
