"""Requests that a draining registry serves, and the end of the drain."""

from __future__ import annotations

import asyncio

import pytest

from mayfly.registry.activity import Activity
from mayfly.registry.api.parse import parse
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.manifest_graph import ManifestGraph, ManifestRefs
from mayfly.registry.coverage.observer import Observer
from mayfly.registry.coverage.pulls import SETTLED_SECONDS, Pulls
from mayfly.registry.ending import EndKind, EndReason, Latch
from mayfly.registry.errors import Draining
from mayfly.registry.lifecycle.drain import Drain, Drained
from tests.support.beside import run_what_is_ready
from tests.support.fakes import FakeClock, FakeStore, digest

REPO = "team/app"
INDEX, CHILD, OTHER, LAYER = digest("index"), digest("child"), digest("other"), digest("layer")


class Server:
    """The parts that a drain looks at."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        content = FakeStore()
        content.manifests = {
            (REPO, INDEX): ManifestRefs(children=(CHILD,)),
            (REPO, CHILD): ManifestRefs(blobs=(LAYER,)),
        }
        self.activity = Activity(self.clock.now)
        ledger = Ledger(None, self.clock)
        self.pulls = Pulls(self.clock.now, ledger.changed)
        graph = ManifestGraph(content.refs)
        self.observer = Observer(self.activity, self.pulls, ledger, graph, self.clock)
        self.drain = Drain(self.activity, self.pulls, self.observer.transfers, self.clock)
        self.second = Latch()

    def serve(self, node: str, what: str, *, head: bool = False) -> None:
        caller = self.observer.peer(node, None, None)
        self.observer.manifest_served(
            caller, REPO, what, self.observer.graph.of(REPO, what), head=head, tag=None
        )

    def admits(self, node: str, method: str, path: str) -> bool:
        request = parse(method, path, "")
        try:
            self.drain.admit(node, request.route.step, request.repository, request.digest)
        except Draining:
            return False
        return True

    def finish(self, limit: float = 60) -> asyncio.Task[Drained]:
        return asyncio.create_task(self.drain.finish(limit, self.second))


@pytest.fixture
async def server() -> Server:
    return Server()


async def test_before_the_drain(server: Server) -> None:
    """Without a drain every request is admitted."""
    assert server.admits("a", "GET", f"/v2/{REPO}/manifests/1")
    assert server.admits("a", "POST", f"/v2/{REPO}/blobs/uploads/")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_new_pulls_are_refused(server: Server, method: str) -> None:
    """A tag begins a pull, and so does a digest that is not part of a pull of the node."""
    server.serve("a", INDEX)
    server.drain.begin()
    assert not server.admits("a", method, f"/v2/{REPO}/manifests/1")
    assert not server.admits("a", method, f"/v2/{REPO}/manifests/{OTHER}")
    assert not server.admits("b", method, f"/v2/{REPO}/manifests/{INDEX}")
    assert not server.admits("a", method, f"/v2/team/other/manifests/{INDEX}")


async def test_pulls_under_way_go_on(server: Server) -> None:
    """A node that got the manifest may fetch it again, its children, and every blob."""
    server.serve("a", INDEX, head=True)
    server.drain.begin()
    assert server.admits("a", "GET", f"/v2/{REPO}/manifests/{INDEX}")
    server.serve("a", INDEX)
    assert server.admits("a", "GET", f"/v2/{REPO}/manifests/{CHILD}")
    assert server.admits("a", "GET", f"/v2/{REPO}/blobs/{LAYER}")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/"),
        ("GET", "/livez"),
        ("POST", "/auth/token"),
        ("GET", f"/v2/{REPO}/tags/list"),
        ("DELETE", f"/v2/{REPO}/manifests/1"),
    ],
)
async def test_what_is_no_pull_is_served(server: Server, method: str, path: str) -> None:
    """Pings, probes and listings begin nothing."""
    server.drain.begin()
    assert server.admits("a", method, path)


async def test_what_has_no_step_is_refused(server: Server) -> None:
    """A route without a step is refused while draining."""
    server.drain.admit("a", None, REPO, None)
    server.drain.begin()
    with pytest.raises(Draining):
        server.drain.admit("a", None, REPO, None)


async def test_pushes(server: Server) -> None:
    """A push under way continues; a new or abandoned one is refused."""
    upload = f"/v2/{REPO}/blobs/uploads/"
    with server.observer.track_push(server.observer.peer("a", None, None), REPO):
        pass
    server.drain.begin()
    assert server.admits("a", "POST", upload)
    assert server.admits("a", "PUT", f"/v2/{REPO}/manifests/1")
    assert not server.admits("b", "POST", upload)
    await server.clock.tick(SETTLED_SECONDS)
    assert not server.admits("a", "POST", upload)


async def test_push_that_ended(server: Server) -> None:
    """The manifest that gets the tag ends a push; the children of an index do not."""
    caller = server.observer.peer("a", None, None)
    server.observer.manifest_pushed(caller, REPO, CHILD, ())
    assert server.pulls.is_pushing("a")
    server.observer.manifest_pushed(caller, REPO, INDEX, ("1",))
    assert not server.pulls.is_pushing("a")
    server.drain.begin()
    assert await server.finish() == Drained()


async def test_idle_exit_refuses_nobody(server: Server) -> None:
    """A client that comes at the last moment of an idle exit is served."""
    server.drain.begin(refuse=False)
    assert server.drain.active
    assert server.admits("a", "GET", f"/v2/{REPO}/manifests/1")


async def test_nothing_to_drain(server: Server) -> None:
    """With nothing under way the drain ends at once."""
    server.drain.begin()
    assert await server.finish() == Drained()


async def test_finished_pull_is_not_waited_for(server: Server) -> None:
    """A node that fetched the last blob it needed a moment ago is done."""
    server.serve("a", INDEX)
    server.serve("a", CHILD)
    caller = server.observer.peer("a", None, None)
    with server.observer.sending(caller, REPO, LAYER) as sending, sending.part(0, 9, 9):
        pass
    assert await server.finish() == Drained()


async def test_waits_for_a_transfer(server: Server) -> None:
    """A transfer under way may finish, if it takes less than the limit."""
    server.activity.begin()
    drained = server.finish(60)
    await server.clock.tick(59)
    assert not drained.done()
    server.activity.end()
    await run_what_is_ready()
    assert await drained == Drained()


async def test_waits_for_the_next_blob(server: Server) -> None:
    """The drain does not end between two blobs of a pull."""
    server.serve("a", INDEX)
    server.serve("a", CHILD)
    drained = server.finish(60)
    await server.clock.tick(SETTLED_SECONDS - 1)
    server.activity.begin()
    await server.clock.tick(30)
    server.activity.end()
    await run_what_is_ready()
    assert await drained == Drained()


async def test_aborts_at_the_limit(server: Server) -> None:
    """Transfers that remain at the limit are named."""
    caller = server.observer.peer("a", None, "10.0.0.7")
    server.activity.begin()
    with (
        pytest.raises(ConnectionResetError),
        server.observer.sending(caller, REPO, LAYER) as sending,
        sending.part(0, 9, 9),
    ):
        drained = server.finish(60)
        await server.clock.tick(60)
        (transfer,) = (await drained).aborted
        # A user that is not listed as a node counts by its address.
        assert str(transfer) == f"pull of {REPO}@{LAYER} by 10.0.0.7"
        raise ConnectionResetError


async def test_aborts_a_request_without_a_transfer(server: Server) -> None:
    """A request that is not a transfer is aborted too, and counted."""
    server.activity.begin()
    drained = server.finish(0)
    await run_what_is_ready()
    assert await drained == Drained((), None, 1)
    assert not (await drained).complete


async def test_expected_requests_are_not_aborted(server: Server) -> None:
    """At the limit, requests that were only expected do not count as aborted."""
    server.serve("a", INDEX)
    drained = server.finish(2)
    await server.clock.tick(2)
    assert await drained == Drained()


async def test_second_signal(server: Server) -> None:
    """A second signal ends the drain at once."""
    server.activity.begin()
    drained = server.finish(60)
    await server.clock.tick(1)
    server.second.set(EndReason(EndKind.SIGNAL, "SIGTERM again", 143))
    await run_what_is_ready()
    assert await drained == Drained((), 143, 1)
