"""Which bytes of a blob have arrived, against models that count every byte."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from mayfly.registry.coverage import arrival as arrivals
from mayfly.registry.coverage.arrival import ACK_SLACK, MAX_INTERVALS, MAX_PARTS, Arrival, Intervals

SIZE = 60


@given(st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=40))
def test_union(added: list[tuple[int, int]]) -> None:
    """The union has exactly the bytes of its intervals, which are disjoint and in order."""
    union, model = Intervals(), set[int]()
    for first, end in added:
        assert union.add(first, end)
        model.update(range(first, end))
    held = [*union]
    assert {byte for first, end in held for byte in range(first, end)} == model
    assert union.total() == len(model)
    assert all(first < end for first, end in held)
    assert all(end < first for (_, end), (first, _) in itertools.pairwise(held))
    for size in range(SIZE):
        assert union.covers(size) == set(range(size)).issubset(model)


def test_intervals_are_bounded() -> None:
    """Parts beyond the bound do not count, except those that join existing ones."""
    union = Intervals()
    for i in range(MAX_INTERVALS + 100):
        assert union.add(2 * i, 2 * i + 1) == (i < MAX_INTERVALS)
    assert len(union) == MAX_INTERVALS
    assert union.add(0, 4 * MAX_INTERVALS)
    assert len(union) == 1


def test_parts_are_bounded() -> None:
    """A blob of more parts than are kept apart still becomes complete."""
    size, part = 8 * MAX_PARTS, 4
    arrival = Arrival(size)
    for first in range(0, size, part):
        begun = arrival.begin(first)
        arrival.end(begun, first + part + 1, first + part + 1)
    assert not arrival.in_flight
    assert len(arrival._ended) == MAX_PARTS
    assert arrival.complete


@dataclass
class _Response:
    """A response to a client of the model: what it reads is the prefix of what was sent."""

    first: int
    end: int
    read: int
    part: arrivals.Part = field(repr=False)


class HonestClient(RuleBasedStateMachine):
    """A client that fetches a blob in parts, drops connections, is interrupted, and resumes.

    It keeps what it has read. The server learns of each end how far the client's host acknowledged
    (at least what was read, less what was lost on the way; at most what was sent), and never is
    told what was read. When the client has everything, the server must say so. And it counts no
    byte that did not reach the client's host, but for the slack behind what was acknowledged.
    """

    @initialize(size=st.integers(1, SIZE), slack=st.integers(0, 6))
    def start(self, size: int, slack: int) -> None:
        self.before = arrivals.ACK_SLACK
        arrivals.ACK_SLACK = slack
        self.slack = slack
        self.size = size
        self.arrival = Arrival(size)
        self.has: set[int] = set()
        self.reached: set[int] = set()
        self.open: list[_Response] = []

    def teardown(self) -> None:
        if hasattr(self, "before"):
            arrivals.ACK_SLACK = self.before

    def _wanted(self) -> list[tuple[int, int]]:
        """Return the bytes that the client lacks and does not fetch, as intervals."""
        taken = self.has | {b for one in self.open for b in range(one.first, one.end)}
        free = [byte for byte in range(self.size) if byte not in taken]
        found: list[tuple[int, int]] = []
        for byte in free:
            if found and found[-1][1] == byte:
                found[-1] = found[-1][0], byte + 1
            else:
                found.append((byte, byte + 1))
        return found

    @precondition(lambda self: self._wanted())
    @rule(data=st.data(), length=st.integers(1, SIZE))
    def ask(self, data: st.DataObject, length: int) -> None:
        """Ask from the first byte of a gap on, by an open-ended range, for a part of the gap."""
        first, end = data.draw(st.sampled_from(self._wanted()))
        end = min(end, first + length)
        self.open.append(_Response(first, end, 0, self.arrival.begin(first)))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Read some bytes of a part, then drop the connection; more bytes were sent than read."""
        one = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        read = data.draw(st.integers(one.first, one.end))
        sent = data.draw(st.integers(read, self.size))
        # Of a response that was read to its end nothing is left in the client's host, and closing
        # acknowledges all of it.
        lag = 0 if read == self.size else self.slack
        acked = data.draw(st.integers(max(one.first, read - lag), sent))
        self.has.update(range(one.first, read))
        self.reached.update(range(one.first, max(read, min(sent, acked + self.slack))))
        self.arrival.end(one.part, acked, sent)

    @precondition(lambda self: self.open)
    @rule()
    def kill(self) -> None:
        """Kill the server: the client has an unknown part of each transfer under way."""
        for one in self.open:
            read = one.first
            self.has.update(range(one.first, read))
        self.open.clear()
        self.arrival.lose_ends()

    @rule()
    def rest(self) -> None:
        """Nothing happens."""

    @invariant()
    def says_nothing_that_is_not_so(self) -> None:
        if not hasattr(self, "arrival"):
            return
        counted = {byte for first, end in self.arrival.parts() for byte in range(first, end)}
        assert counted <= self.reached

    @invariant()
    def says_so_when_all_is_there(self) -> None:
        if hasattr(self, "arrival") and not self.open and len(self.has) == self.size:
            assert self.arrival.complete, (self.arrival._ended, self.size)


TestHonestClient = HonestClient.TestCase
TestHonestClient.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)


@given(st.data(), st.integers(2, SIZE))
@settings(max_examples=100, deadline=None)
def test_resumed_after_kills(data: st.DataObject, size: int) -> None:
    """A client that resumes has all of a blob, however often the server was killed, and at any
    offset."""
    arrival, stood = Arrival(size), 0
    while stood < size:
        arrival.begin(stood)
        at = data.draw(st.integers(stood, size - 1))
        arrival.lose_ends()
        if at == stood or data.draw(st.booleans()):
            part = arrival.begin(at)
            arrival.end(part, size, size)
            at = size
        stood = at
    assert arrival.complete


def test_killed_while_a_range_was_sent() -> None:
    """Bytes after a range do not count as sent by it, whatever the client asks for after a kill."""
    size = 100
    for after, whole in ((9, True), (10, True), (11, False), (99, False)):
        arrival = Arrival(size)
        arrival.begin(0, 10)
        arrival.lose_ends()
        arrival.end(arrival.begin(after), size, size)
        assert arrival.complete is whole


def test_killed_before_much_was_sent() -> None:
    """Bytes beyond those that the server had sent do not count after a kill."""
    size = 100
    for reached, slot, after, whole in (
        ([0, 50], 1, 50, True),
        ([0, 50], 1, 51, False),
        ([0, 50], 0, 1, False),
        ([0, 50], 2, 1, False),
        ([0, 50], None, 99, True),
    ):
        arrival = Arrival(size)
        arrival.begin(0).slot = slot
        arrival.lose_ends(reached)
        arrival.end(arrival.begin(after), size, size)
        assert arrival.complete is whole


def test_never_more_than_the_slack() -> None:
    """A gap larger than the slack of acknowledgements keeps a blob incomplete."""
    size = 10 * ACK_SLACK
    for gap, whole in ((ACK_SLACK, True), (ACK_SLACK + 1, False)):
        arrival = Arrival(size)
        first, second = arrival.begin(0), arrival.begin(5 * ACK_SLACK)
        arrival.end(second, size, size)
        arrival.end(first, 5 * ACK_SLACK - gap, size)
        assert arrival.complete is whole


@pytest.mark.parametrize("anew", [True, False])
def test_from_the_beginning(anew: bool) -> None:
    """A client that starts over after a while has kept nothing; of parallel requests, the first may
    only be late."""
    arrival = Arrival(10)
    arrival.end(arrival.begin(5), 10, 10)
    arrival.end(arrival.begin(0, restart=anew), 5, 5)
    assert arrival.complete is not anew
