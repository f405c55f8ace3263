"""What browsers are sent: everything, then what changed, whatever they missed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from mayfly.registry import threads
from mayfly.registry.page import feed as feeds
from mayfly.registry.page.feed import (
    COMMENT,
    MAX_STREAMS,
    MAX_STREAMS_OF_ONE,
    RETRY,
    RETRY_LATER,
    Feed,
)
from mayfly.registry.page.view import Failed, NodeView, Proof, Pulling, View
from tests.support.beside import TurnCounter, counting_turns
from tests.support.process import PATIENCE, until
from tests.support.views import view

Stream = AsyncGenerator[bytes, None]

CLIENT = "192.0.2.1"


class World:
    """A state that a test changes."""

    def __init__(self) -> None:
        self.view = view()
        self.looks = 0
        self.feed = Feed(self.look)

    async def look(self) -> View:
        self.looks += 1
        await asyncio.sleep(0)
        return self.view

    def node(self, name: str, made: NodeView | None) -> None:
        """Change a node, or remove it."""
        nodes = {**self.view.nodes}
        if made is None:
            del nodes[name]
        else:
            nodes[name] = made
        self.view = replace(self.view, nodes=nodes)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A state that is looked at often."""
    monkeypatch.setattr(feeds, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(feeds, "_FRESH_SECONDS", 0.0)
    return World()


def parsed(event: bytes) -> tuple[str, dict[str, Any]]:
    """The ID and the document of an event."""
    name, data, *rest = event.decode().split("\n")
    assert rest == ["", ""]
    return name.removeprefix("id: "), json.loads(data.removeprefix("data: "))


async def next_event(stream: Stream) -> tuple[str, dict[str, Any]]:
    """The next event that is no comment."""
    async with asyncio.timeout(PATIENCE):
        async for event in stream:
            if event not in (COMMENT, RETRY, RETRY_LATER):
                return parsed(event)
    raise AssertionError("the stream has ended")


async def test_everything_and_then_what_changed(world: World) -> None:
    """The first event is whole; others have only the sections and nodes that changed."""
    async with aclosing(world.feed.events(None, CLIENT)) as stream:
        _, first = await next_event(stream)
        assert first["whole"]
        assert first["run"]["covered"] == 1
        assert [one["name"] for one in first["served"]["images"]] == ["team/app:1", "team/web:1"]
        assert first["nodes"] == {"worker-1": {"states": "ss"}, "worker-2": {"states": "mm"}}
        proof = Proof(1, 2, 3, 4)
        world.node("worker-2", NodeView("uf", (Pulling(0, 5, 9),), (Failed(1, "why"),), proof))
        _, change = await next_event(stream)
        assert not change["whole"]
        assert change.keys() == {"whole", "now", "nodes"}
        assert change["nodes"] == {
            "worker-2": {
                "states": "uf",
                "pulling": [[0, 5, 9]],
                "failed": [[1, "why"]],
                "proof": [1, 2, 3, 4],
            }
        }
        world.node("worker-1", None)
        _, change = await next_event(stream)
        assert change["gone"] == ["worker-1"]


async def test_a_reader_that_returns_gets_what_it_missed(world: World) -> None:
    """By the last event's ID all changes since then come in one event; without, everything."""
    async with aclosing(world.feed.events(None, CLIENT)) as watching:
        async with aclosing(world.feed.events(None, CLIENT)) as stream:
            seen, _ = await next_event(stream)
        for states in ("ms", "sm", "ss"):
            world.node("worker-2", NodeView(states))
            await next_event(watching)
        async with aclosing(world.feed.events(seen, CLIENT)) as stream:
            _, missed = await next_event(stream)
            assert not missed["whole"]
            assert missed["nodes"] == {"worker-2": {"states": "ss"}}
        for unknown in ("", "x", "0.0", f"{seen}9", f"other.{seen.partition('.')[2]}", seen + "²"):
            async with aclosing(world.feed.events(unknown, CLIENT)) as stream:
                assert (await next_event(stream))[1]["whole"], unknown


async def test_a_slow_reader_gets_one_event_for_many_changes(world: World) -> None:
    """Nothing queues up for a stream that is not read."""
    async with (
        aclosing(world.feed.events(None, CLIENT)) as slow,
        aclosing(world.feed.events(None, CLIENT)) as quick,
    ):
        await next_event(slow)
        await next_event(quick)
        for number in range(5):
            world.view = view(bytes_out=number)
            await next_event(quick)
        _, change = await next_event(slow)
        assert change["run"]["bytes_out"] == 4


async def test_one_look_for_all(world: World) -> None:
    """All streams look as often as one, and a change is made into text once."""
    streams = [world.feed.events(None, str(n)) for n in range(MAX_STREAMS)]
    for stream in streams:
        await next_event(stream)
    world.node("worker-2", NodeView("ss"))
    events = []
    for stream in streams:
        async with asyncio.timeout(PATIENCE):
            events.append(await anext(stream))
    assert len({id(event) for event in events}) == 1
    for stream in streams:
        await stream.aclose()
    looks = world.looks
    await asyncio.sleep(0.1)
    assert world.looks == looks, "somebody looks although nobody reads"


async def test_draining_ends_streams_at_once(world: World) -> None:
    """Each gets the last changes; later ones get the state and their end."""
    async with aclosing(world.feed.events(None, CLIENT)) as stream:
        seen, _ = await next_event(stream)
        world.view = view(state="draining", ending="stop was asked for")
        world.feed.drain()
        _, last = await next_event(stream)
        assert last["run"]["state"] == "draining"
        assert [event async for event in stream] == []
    async with aclosing(world.feed.events(seen, CLIENT)) as stream:
        assert (await next_event(stream))[1]["run"]["state"] == "draining"
        assert [event async for event in stream] == []
    assert world.feed.streams == 0


@pytest.mark.parametrize(
    ("clients", "most"),
    [([str(n) for n in range(MAX_STREAMS)], MAX_STREAMS), ([CLIENT], MAX_STREAMS_OF_ONE)],
    ids=["altogether", "of one"],
)
async def test_streams_past_the_bounds_have_one_event(
    world: World, clients: list[str], most: int
) -> None:
    """Their browsers come back later and get what they missed; a place that is left is taken."""
    streams = [world.feed.events(None, clients[n % len(clients)]) for n in range(most)]
    for stream in streams:
        await next_event(stream)
    assert world.feed.streams == most
    found = [event async for event in world.feed.events(None, CLIENT)]
    assert found[0] == RETRY_LATER
    seen, first = parsed(found[1])
    assert (first["whole"], len(found)) == (True, 2)
    world.node("worker-2", NodeView("ss"))
    await next_event(streams[0])
    found = [event async for event in world.feed.events(seen, CLIENT)]
    assert parsed(found[1])[1]["nodes"] == {"worker-2": {"states": "ss"}}
    looks = world.looks
    for _ in range(20):
        assert len([event async for event in world.feed.events(seen, CLIENT)]) == 2
    assert world.looks <= looks + 1, "each looks by itself"
    if len(clients) == 1:
        async with aclosing(world.feed.events(None, "192.0.2.2")) as stream:
            assert await anext(stream) == RETRY, "another client has a place"
    await streams[0].aclose()
    async with aclosing(world.feed.events(None, CLIENT)) as stream:
        assert await anext(stream) == RETRY
    for stream in streams:
        await stream.aclose()
    assert world.feed.streams == 0


async def test_memory_of_events_that_are_being_sent_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that takes too long over an old one is cut; many may take long over the same one."""
    await world.feed._refresh()
    whole = len((await world.feed._event(feeds._ALL))[0])
    monkeypatch.setattr(feeds, "MAX_SENDING", int(3.5 * whole))
    cut: list[int] = []
    streams = []
    for number in range(6):
        world.node("worker-1", NodeView("sm", failed=(Failed(1, f"why {number}"),)))
        await world.feed._refresh()
        for copy in range(5):
            place = 5 * number + copy
            stream = world.feed.events(None, str(place), partial(cut.append, place))
            streams.append(stream)
            await next_event(stream)
        assert world.feed._sending.bytes <= 3.5 * whole
    assert cut == list(range(15)), "the oldest ones, of as many events as there is no room for"
    for stream in streams:
        await stream.aclose()
    assert world.feed._sending.bytes == 0
    assert not world.feed._sending._streams


@pytest.mark.parametrize("during_a_look", [False, True])
async def test_the_drain_is_seen_however_fresh_the_view_is(
    monkeypatch: pytest.MonkeyPatch, during_a_look: bool
) -> None:
    """The last event of a stream says that the server drains."""
    monkeypatch.setattr(feeds, "_FRESH_SECONDS", 1000.0)
    world = World()

    async def look() -> View:
        seen = world.view
        await asyncio.sleep(0)
        if during_a_look and not world.feed.draining:
            drain()
        return seen

    def drain() -> None:
        world.view = view(state="draining", ending="stop was asked for")
        world.feed.drain()

    world.feed = Feed(look)
    async with aclosing(world.feed.events(None, CLIENT)) as stream, asyncio.timeout(PATIENCE):
        last = await next_event(stream)
        if not during_a_look:
            drain()
        async for event in stream:
            last = parsed(event)
    assert last[1]["run"]["state"] == "draining"


async def test_pages_share_a_look() -> None:
    """Many loads at once look once, and the state is forgotten after the last of them."""
    world = World()
    views = await asyncio.gather(*(world.feed.view() for _ in range(20)))
    assert world.looks == 1
    assert {id(one) for one in views} == {id(world.view)}
    timer = world.feed._forgetting
    assert timer is not None
    await world.feed.view()
    assert timer.cancelled(), "each load leaves a timer behind"
    async with aclosing(world.feed.events(None, CLIENT)) as stream:
        await next_event(stream)
        await world.feed.view()
        assert world.feed._task is not None
        assert world.feed._forgetting is None


async def test_nodes_that_left_are_shown_to_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that can no longer be told which nodes left gets the whole state."""
    monkeypatch.setattr(feeds, "_MAX_GONE", 1)
    async with aclosing(world.feed.events(None, CLIENT)) as stream:
        seen, _ = await next_event(stream)
        world.view = view(nodes={})
        _, change = await next_event(stream)
        assert change["whole"]
        assert "nodes" not in change
        world.node("worker-3", NodeView("ss"))
        _, change = await next_event(stream)
        assert not change["whole"], "it is up to date again"
        async with aclosing(world.feed.events(seen, CLIENT)) as late:
            _, change = await next_event(late)
            assert change["whole"]
            assert change["nodes"].keys() == {"worker-3"}


async def test_a_stream_ends_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its reader has to authenticate again."""
    monkeypatch.setattr(feeds, "STREAM_SECONDS", 0.0)
    async with asyncio.timeout(PATIENCE):
        found = [event async for event in world.feed.events(None, CLIENT)]
    assert found[0] == RETRY
    assert parsed(found[1])[1]["whole"]
    assert len(found) == 2


async def test_a_quiet_stream_shows_that_it_lives(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment comes from time to time, by which a reader that left is noticed, too."""
    monkeypatch.setattr(feeds, "QUIET_SECONDS", 0.01)
    async with aclosing(world.feed.events(None, CLIENT)) as stream:
        await next_event(stream)
        async with asyncio.timeout(PATIENCE):
            assert await anext(stream) == COMMENT


async def test_a_failed_look_ends_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the next one brings what changed."""
    good = world.feed._look

    async def fail() -> View:
        world.feed._look = good
        raise OSError("disk")

    async with aclosing(world.feed.events(None, CLIENT)) as stream:
        await next_event(stream)
        world.feed._look = fail
        world.node("worker-2", NodeView("ss"))
        _, change = await next_event(stream)
        assert change["nodes"] == {"worker-2": {"states": "ss"}}
    assert "could not be brought up to date" in caplog.text


async def test_state_is_forgotten_when_nobody_looks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A little later, so that browsers which come back continue; then they get everything."""
    monkeypatch.setattr(feeds, "KEPT_SECONDS", 0.05)
    async with aclosing(world.feed.events(None, CLIENT)) as stream:
        seen, _ = await next_event(stream)
    world.node("worker-2", NodeView("ss"))
    async with aclosing(world.feed.events(seen, CLIENT)) as stream:
        assert not (await next_event(stream))[1]["whole"]
    await until(lambda: world.feed._view is None)
    async with aclosing(world.feed.events(seen, CLIENT)) as stream:
        assert (await next_event(stream))[1]["whole"]


def many(count: int, states: str) -> dict[str, NodeView]:
    """Nodes with these states."""
    return {f"worker-{number}": NodeView(states) for number in range(count)}


async def test_events_are_made_in_turns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many nodes and images, while others use the event loop; the document is the same."""
    monkeypatch.setattr(threads, "TURN_SECONDS", 0)
    monkeypatch.setattr(feeds, "_AT_ONCE", 7)
    names = [f"team/app-{number}:1" for number in range(100)]
    world.view = view(*names, nodes=many(200, "m" * 100))
    async with counting_turns() as turns, aclosing(world.feed.events(None, CLIENT)) as stream:
        _, first = await next_event(stream)
    assert turns.taken > (100 + 100 + 200) / 7
    assert first["served"] == json.loads(json.dumps(world.view.served))
    assert first["nodes"] == {name: {"states": "m" * 100} for name in world.view.nodes}


class Counted(Mapping[str, NodeView]):
    """Nodes; each look at one is a step."""

    def __init__(self, nodes: Mapping[str, NodeView], turns: TurnCounter) -> None:
        self._nodes = nodes
        self._turns = turns

    def __getitem__(self, name: str) -> NodeView:
        self._turns.steps += 1
        return self._nodes[name]

    def __iter__(self) -> Iterator[str]:
        for name in self._nodes:
            self._turns.steps += 1
            yield name

    def __len__(self) -> int:
        return len(self._nodes)


async def test_no_turn_is_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a turn of the event loop streams and polls look at few nodes, however many there are."""
    monkeypatch.setattr(threads, "TURN_SECONDS", 0)
    monkeypatch.setattr(feeds, "_AT_ONCE", 7)
    monkeypatch.setattr(feeds, "MAX_STREAMS", 1)

    async def poll(last_id: str | None) -> list[dict[str, Any]]:
        async with aclosing(world.feed.events(last_id, CLIENT)) as found:
            return [parsed(event)[1] async for event in found if event != RETRY_LATER]

    async with counting_turns() as turns, aclosing(world.feed.events(None, CLIENT)) as stream:
        world.view = view(nodes=Counted(many(500, "mm"), turns))
        seen, _ = await next_event(stream)
        (whole,) = await poll(None)
        changed = many(499, "sm") | many(400, "mm")
        world.view = view(nodes=Counted(changed, turns))
        at, _ = await next_event(stream)
        (some,) = await poll(seen)
        # Of another version, so that its event is none that was made already.
        world.view = view(nodes=Counted(changed | {"worker-7": NodeView("ss")}, turns))
        await next_event(stream)
        (one,) = await poll(at)
    assert [len(made["nodes"]) for made in (whole, some, one)] == [500, 99, 1]
    assert some["gone"] == ["worker-499"]
    assert 7 <= turns.most_steps < 3 * 7


async def test_state_in_use_is_not_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that takes long does not end in a state of which half is forgotten."""
    monkeypatch.setattr(feeds, "KEPT_SECONDS", 0.02)
    begun, go_on, forgotten = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def look() -> View:
        begun.set()
        await go_on.wait()
        return world.view

    feed = Feed(look, forgotten.set)
    feed._rest()
    looking = asyncio.create_task(feed.view())
    await begun.wait()
    await asyncio.sleep(0.1)
    assert not forgotten.is_set()
    go_on.set()
    await looking
    async with asyncio.timeout(PATIENCE):
        await forgotten.wait()


async def test_changes_while_an_event_is_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event has the state from before them, the next one has them: none is lost."""
    monkeypatch.setattr(threads, "TURN_SECONDS", 0)
    monkeypatch.setattr(feeds, "_AT_ONCE", 1)
    world.view = view(nodes=many(50, "mm"))
    async with aclosing(world.feed.events(None, CLIENT)) as stream:
        seen, _ = await next_event(stream)
    world.view = view(nodes=many(50, "sm"))
    await world.feed._refresh()
    making = asyncio.create_task(world.feed._event(int(seen.partition(".")[2])))
    await asyncio.sleep(0)
    left = many(50, "ss")
    del left["worker-49"]
    world.view = view(nodes=left)
    await world.feed._take(world.view)
    event, version = await making
    name, change = parsed(event)
    assert change["nodes"] == {name: {"states": "sm"} for name in many(50, "")}
    assert name.endswith(f".{version}")
    async with aclosing(world.feed.events(name, CLIENT)) as stream:
        _, rest = await next_event(stream)
    assert rest["nodes"] == {name: {"states": "ss"} for name in left}
    assert rest["gone"] == ["worker-49"]


async def test_slow_looks_come_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they take a small share of the time."""
    monkeypatch.setattr(feeds, "TICK_SECONDS", 0.001)
    monkeypatch.setattr(feeds, "_FRESH_SECONDS", 0.0)
    monkeypatch.setattr(feeds, "_SHARE", 0.1)
    world = World()

    async def look() -> View:
        world.looks += 1
        await asyncio.sleep(0.02)
        return world.view

    world.feed = Feed(look)
    begun = time.monotonic()
    async with aclosing(world.feed.events(None, CLIENT)) as stream:
        await next_event(stream)
        await asyncio.sleep(0.8)
    assert world.looks <= 3 + (time.monotonic() - begun) / 0.2


async def test_caches_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the views is told, too, when nobody has looked for a while."""
    monkeypatch.setattr(feeds, "KEPT_SECONDS", 0.01)
    forgotten = asyncio.Event()
    await Feed(World().look, forgotten.set).view()
    async with asyncio.timeout(PATIENCE):
        await forgotten.wait()
