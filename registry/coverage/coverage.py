"""Coverage: does every node have every image of the upgrade?

A node has an image when its state (`states`) is as good as ``--accept`` asks for:

- ``claimed``: a node that has the image already asks for no blob, so that blobs alone would
  undercount. What it asks for instead is known for each container runtime (`runtimes`).
- ``served``: only bytes that reached the node count.
- ``proven``: only the node's own answer counts.

A tag stands for what it points at now: when it moves, those who got the old image lack the new.

With names of nodes given, each of them must have each image. With a number, so many nodes must
have all of them; which, nobody said.

What was concluded of a node holds until something happens at that node or a tag moves, so a look
at the whole costs what changed since the last. What the images are made of is read in a worker
thread, `Coverage.explore`, before the questions; an image that was not read yet is at no node.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mayfly.registry.clock import Clock, first_done
from mayfly.registry.coverage.images import Image, Nodes
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.pulls import Pulls
from mayfly.registry.coverage.states import State, States, Target, accepted, unread
from mayfly.registry.lifecycle.conditions import Kind, Reason
from mayfly.registry.text import join_names
from mayfly.registry.threads import in_thread

_LOOK_EVERY = 0.25
"""Seconds between two looks at the whole while events come in, at least."""

_LOOKS_SHARE = 0.02
"""Of the event loop's time, spent on them at most."""

_READ_SECONDS = 2.0
"""For what images are made of; those that were not read in time are at no node as yet."""

_NAMES_SHOWN = 10

_NOTHING = frozenset({State.MISSING, State.ABSENT})
"""States in which a node has not asked for an image."""


@dataclass(frozen=True, slots=True)
class Gap:
    """One thing that is missing.

    Attributes:
        image: as listed; None where it is a whole node.
        node: None where it is the registry that lacks the image, or where any node would do.
    """

    image: str | None
    node: str | None
    state: State


@dataclass(slots=True)
class _Row:
    """The states of one node, image by image, and the versions they were derived from."""

    basis: tuple[int, int, int]
    states: tuple[State, ...]


class Coverage:
    """Says what is covered and what is missing.

    Args:
        ledger: of what happened.
        pulls: that are under way.
        images: that must arrive.
        nodes: they must arrive at.
        resolve: repository and tag → digest, None if there is no such tag; quick.
        states: how far a node is with an image.
        accept: the weakest state, of `states.RANKED`, in which a node counts as having an image.

    Attributes:
        accept: as given.
    """

    def __init__(
        self,
        ledger: Ledger,
        pulls: Pulls,
        images: tuple[Image, ...],
        nodes: Nodes,
        resolve: Callable[[str, str], str | None],
        states: States,
        accept: State = State.CLAIMED,
    ) -> None:
        self._ledger = ledger
        self._pulls = pulls
        self._images = images
        self._nodes = nodes
        self._resolve = resolve
        self._states = states
        self.accept = accept
        self._accepted = accepted(accept)
        self._targets: tuple[Target | None, ...] = ()
        self._targets_version = 0
        self._read: dict[tuple[str, str], Target | None] = {}
        """Repository and digest → image, None where it is not there."""
        self._reading: asyncio.Future[None] | None = None
        self._read_until = 0.0
        self._rows: dict[str, _Row] = {}

    @property
    def wanted_nodes(self) -> int:
        """How many nodes must have every image."""
        return self._nodes.count

    @property
    def declared(self) -> tuple[str, ...]:
        """Names of the nodes that must have every image, where names are given."""
        return self._nodes.names

    @property
    def images(self) -> tuple[Image, ...]:
        """The images that must arrive."""
        return self._images

    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.covered_nodes() >= self._nodes.count

    def covered_nodes(self) -> int:
        """How many nodes have every image."""
        self._look()
        if not all(self._targets):
            return 0
        return sum(self._is_covered(node) for node in self._known_nodes())

    def nodes(self) -> list[str]:
        """The nodes named; without names those that asked for an image of the list."""
        self._look()
        return self._known_nodes()

    def matrix(self) -> dict[str, dict[str, State]]:
        """Image → node → how far the node is with it."""
        self._look()
        rows = {node: self._row(node) for node in self._known_nodes()}
        return {
            image.text: {node: states[i] for node, states in rows.items()}
            for i, image in enumerate(self._images)
        }

    def absent(self) -> list[str]:
        """Images of the list that the registry does not hold now."""
        self._look()
        pairs = zip(self._images, self._targets, strict=True)
        return [image.text for image, target in pairs if target is None]

    def claimed(self) -> dict[str, int]:
        """Covered node → how many of its images rest on a claim alone; nodes without are left out.

        With a number of nodes, only so many count, those with the fewest claims.
        """
        self._look()
        counts = {
            node: self._row(node).count(State.CLAIMED)
            for node in self._known_nodes()
            if self._is_covered(node)
        }
        chosen = sorted(counts, key=lambda node: counts[node])[: self._nodes.count]
        return {node: counts[node] for node in counts if counts[node] and node in set(chosen)}

    def missing(self) -> list[Gap]:
        """Everything that keeps coverage from being complete."""
        if self.complete():
            return []
        nodes = self._known_nodes()
        gaps = []
        for i, (image, target) in enumerate(zip(self._images, self._targets, strict=True)):
            if target is None:
                gaps.append(Gap(image.text, None, State.ABSENT))
                continue
            states = {node: self._row(node)[i] for node in nodes}
            gaps += [Gap(image.text, n, s) for n, s in states.items() if s not in self._accepted]
        gaps += [Gap(None, None, State.MISSING)] * max(0, self._nodes.count - len(nodes))
        return gaps

    def read(self) -> None:
        """Slow. See what the images are made of, where that is not known yet."""
        known, found = self._read, dict[tuple[str, str], Target | None]()
        for image in self._images:
            for key in self._places(image):
                target = known.get(key)
                if target is None or not target.complete:
                    target = self._states.target(*key)
                found[key] = target
                if target is not None:
                    break
        self._read = found

    async def explore(self) -> None:
        """`read` in a thread, before the questions; go on without where it takes too long."""
        for _ in range(2):
            if not self._unread():
                return
            # One that began before a tag moved does not know of it.
            joins = self._reading is not None and not self._reading.done()
            if self._reading is None or not joins:
                self._reading = in_thread(self.read)
                self._read_until = time.monotonic() + _READ_SECONDS
            left = max(self._read_until - time.monotonic(), 0)
            await asyncio.wait([self._reading], timeout=left)
            if not joins:
                return

    def target(self, image: Image) -> Target | None:
        """An image of the list as the registry holds it now."""
        for key in self._places(image):
            target = self._read.get(key, unread(*key))
            if target is not None:
                return target
        return None

    def _places(self, image: Image) -> Iterator[tuple[str, str]]:
        """Where an image may be: repository and digest."""
        for repository in image.repositories():
            digest = image.digest
            if image.tag is not None:
                digest = self._resolve(repository, image.tag)
            if digest:
                yield repository, digest

    def _unread(self) -> bool:
        targets = (self.target(image) for image in self._images)
        return not all(target is not None and target.complete for target in targets)

    def _look(self) -> None:
        """See where the tags point now."""
        targets = tuple(self.target(image) for image in self._images)
        if targets != self._targets:
            self._targets = targets
            self._targets_version += 1
            self._rows.clear()

    def _known_nodes(self) -> list[str]:
        if self._nodes.names:
            return list(self._nodes.names)
        return [node for node in self._ledger.nodes() if not _NOTHING.issuperset(self._row(node))]

    def _is_covered(self, node: str) -> bool:
        return self._accepted.issuperset(self._row(node))

    def _row(self, node: str) -> tuple[State, ...]:
        basis = self._targets_version, self._ledger.version(node), self._pulls.version(node)
        row = self._rows.get(node)
        if row is None or row.basis != basis or State.PULLING in row.states:
            found = tuple(self._states.of(node, target) for target in self._targets)
            row = self._rows[node] = _Row(basis, found)
        return row.states


def absent_text(absent: Sequence[str]) -> str:
    """A sentence that says which images of the list the registry does not hold."""
    shown = join_names(absent, _NAMES_SHOWN)
    return f"in --until-pulled, but not in the registry: {shown}; push it or correct the list"


def claims_text(claimed: Mapping[str, int]) -> str:
    """A sentence that says which nodes' coverage rests on claims; "" where none does.

    Args:
        claimed: see `Coverage.claimed`.
    """
    if not claimed:
        return ""
    names = [f"{node} ({count})" for node, count in sorted(claimed.items())]
    nodes = join_names(names, _NAMES_SHOWN, "nodes")
    return f"images claimed by the node's runtime, not served by this registry: {nodes}"


class Covered:
    """The condition that coverage is complete.

    Args:
        coverage: to be complete.
        ledger: whose changes may complete it.
        pulls: whose end may complete it.
        clock: to wait for that end.
    """

    def __init__(self, coverage: Coverage, ledger: Ledger, pulls: Pulls, clock: Clock) -> None:
        self._coverage = coverage
        self._ledger = ledger
        self._pulls = pulls
        self._clock = clock

    async def wait(self) -> Reason:
        while True:
            await self._coverage.explore()
            began = time.perf_counter()
            if self.holds():
                break
            pause = max(_LOOK_EVERY, (time.perf_counter() - began) / _LOOKS_SHARE)
            changed = self._ledger.changed.next()
            settles = self._pulls.settles_in()
            if settles is None:
                await first_done(changed)
            else:
                await first_done(changed, self._clock.sleep(settles))
            await self._clock.sleep(pause)
        return Reason(Kind.COVERED, self._text())

    def holds(self) -> bool:
        return self._coverage.complete()

    def _text(self) -> str:
        text = f"coverage is complete at {self._coverage.wanted_nodes} nodes"
        claims = claims_text(self._coverage.claimed())
        return f"{text}; {claims}" if claims else text
