"""Coverage: does every node have every image of the upgrade?

A node has an image if its state (`states`) is at least as good as ``--accept`` requires:

- ``claimed``: a node that has the image already asks for no blob, so blobs alone would undercount.
  The requests that it makes instead are known for each container runtime (`runtimes`).
- ``served``: only bytes that reached the node count.
- ``proven``: only the node's own confirmation counts.

A tag stands for the image it points at now: when it moves, nodes with the old image lack the new.

If nodes are listed by name, each of them must have each image. If a number is given, that many
nodes must have all images.

A conclusion about a node is kept until a fact about the node is recorded or a tag moves, so a
query costs time for changes only. `Coverage.explore`, awaited before a query, reads manifests in a
worker thread and derives the states of nodes in turns with other tasks: ten thousand nodes with
five hundred images take seconds. An image that was not read yet is at no node.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mayfly.registry.clock import Clock, first_done
from mayfly.registry.coverage.facts import Facts, ProofSummary
from mayfly.registry.coverage.pulls import Pulls
from mayfly.registry.coverage.states import (
    ImageStates,
    ResolvedImage,
    State,
    accepted,
    unread_image,
)
from mayfly.registry.coverage.upgrade_lists import ListedImage, Nodes
from mayfly.registry.ending import EndKind, EndReason
from mayfly.registry.notification import Notification
from mayfly.registry.text import join_names
from mayfly.registry.threads import in_thread, with_pauses
from mayfly.storage.text import counted

_CHECK_SECONDS = 0.25
"""Between two checks of the condition while events come in, at least."""

_CHECK_SHARE = 0.02
"""The part of the event loop's time that the checks may take."""

_READ_SECONDS = 2.0
"""To read manifests; images that were not read in time are at no node."""

_NAMES_SHOWN = 10

MAX_CELLS = 1_000_000
"""States in a matrix: some 100 MiB, and 40 MiB of JSON."""

_NOT_ASKED_FOR = frozenset({State.MISSING, State.ABSENT})
"""States in which a node has not asked for an image."""


class Gap(NamedTuple):
    """An image that a node or the registry lacks, or a node that is missing.

    Attributes:
        image: as listed; None for a missing node.
        node: None if the registry lacks the image, or for a missing node.
    """

    image: str | None
    node: str | None
    state: State


@dataclass(frozen=True, slots=True)
class _Row:
    """The states of one node, image by image, and how long they hold.

    Attributes:
        states: in the order of the list.
        facts, pulls: versions of the node that the states were derived from.
        until: by the clock; states may change from then on without an event.
        covered: whether the node has every image.
        asked: whether it asked for one.
    """

    states: tuple[State, ...]
    facts: int
    pulls: int
    until: float
    covered: bool
    asked: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Coverage at one moment; belongs to no thread.

    Attributes:
        images: that must arrive, as listed.
        nodes: they must arrive at.
        accept: the weakest state in which a node counts as having an image.
        absent: images of the list that the registry does not hold.
        rows: node → its states, image by image; of the nodes named, or without names of those that
            asked for an image of the list.
        proofs: node → its last proof; nodes without one are left out.
    """

    images: tuple[str, ...]
    nodes: Nodes
    accept: State
    absent: tuple[str, ...]
    rows: Mapping[str, tuple[State, ...]]
    proofs: Mapping[str, ProofSummary] = field(default_factory=dict)

    @property
    def covered(self) -> list[str]:
        """The nodes that have every image."""
        enough = accepted(self.accept)
        return [node for node, row in self.rows.items() if enough.issuperset(row)]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return len(self.covered) >= self.nodes.count

    def matrix(self, most: int = MAX_CELLS) -> dict[str, dict[str, State]]:
        """Return image → node → the node's state with it.

        Args:
            most: cells; past that covered nodes are left out, and then the last ones.
        """
        chosen = list(self.rows)
        room = most // max(len(self.images), 1)
        if len(chosen) > room:
            covered = set(self.covered)
            chosen = sorted(chosen, key=covered.__contains__)[:room]
        return {
            image: {node: self.rows[node][i] for node in chosen}
            for i, image in enumerate(self.images)
        }

    def claimed(self) -> dict[str, int]:
        """Covered node → how many of its images rest on a claim alone; nodes without are left out.

        With a number of nodes, only that number count, those with the fewest claims.
        """
        counts = {node: self.rows[node].count(State.CLAIMED) for node in self.covered}
        chosen = set(sorted(counts, key=lambda node: counts[node])[: self.nodes.count])
        return {node: count for node, count in counts.items() if count and node in chosen}

    @property
    def gaps(self) -> int:
        """How many images known nodes lack, those absent aside; 0 if coverage is complete."""
        if self.complete:
            return 0
        short = set(State) - accepted(self.accept) - {State.ABSENT}
        return sum(row.count(state) for row in self.rows.values() for state in short)

    def missing(self) -> Iterator[Gap]:
        """Everything that keeps coverage from being complete."""
        if self.complete:
            return
        absent, enough = set(self.absent), accepted(self.accept)
        for i, image in enumerate(self.images):
            if image in absent:
                yield Gap(image, None, State.ABSENT)
                continue
            for node, row in self.rows.items():
                if row[i] not in enough:
                    yield Gap(image, node, row[i])
        for _ in range(self.nodes.count - len(self.rows)):
            yield Gap(None, None, State.MISSING)


class Coverage:
    """Computes which images each node has, and which are missing.

    The targets of tags, and the content of the images, are those that `explore` found last.

    Args:
        facts: about the nodes.
        pulls: that are under way.
        images: that must arrive.
        nodes: they must arrive at.
        tag_digest: repository and tag → digest; None if there is no such tag. Quick.
        states: how far a node is with an image.
        accept: the weakest state, of `states.RANKED`, in which a node counts as having an image.
    """

    def __init__(
        self,
        facts: Facts,
        pulls: Pulls,
        images: tuple[ListedImage, ...],
        nodes: Nodes,
        tag_digest: Callable[[str, str], str | None],
        states: ImageStates,
        accept: State = State.CLAIMED,
    ) -> None:
        self._facts = facts
        self._pulls = pulls
        self._images = images
        self._nodes = nodes
        self._tag_digest = tag_digest
        self._states = states
        self._accept = accept
        self._accepted = accepted(accept)
        self._targets: tuple[ResolvedImage | None, ...] = ()
        self._read: dict[tuple[str, str], ResolvedImage | None] = {}
        """Repository and digest → image, None where it is not there."""
        self._reading: asyncio.Future[None] | None = None
        self._read_until = 0.0
        self.spent = 0.0
        """Seconds that the last `explore` took, without those in which it waited for manifests."""
        self._rows: dict[str, _Row] = {}
        self._silent = self._derive(None)
        """The row of every node of which nothing is known."""
        self._lagging: str | None = None
        """A node that lacked something when it was looked at last."""
        self._take((unread_image("", ""),) * len(images))

    @property
    def wanted_nodes(self) -> int:
        """How many nodes must have every image."""
        return self._nodes.count

    @property
    def images(self) -> tuple[ListedImage, ...]:
        """The images that must arrive."""
        return self._images

    @property
    def targets(self) -> tuple[ResolvedImage | None, ...]:
        """The images as the registry held them at the last `explore`; None for one it lacks."""
        return self._targets

    @property
    def accept(self) -> State:
        """The weakest state in which a node counts as having an image."""
        return self._accept

    def complete(self) -> bool:
        """Whether nothing is missing."""
        if not all(self._targets):
            return False
        if not self._nodes.names:
            return self.covered_nodes() >= self._nodes.count
        # The one that lacked something still does, as a rule: the others need no look.
        first = [self._lagging] if self._lagging is not None else []
        for node in (*first, *self._nodes.names):
            if not self._row(node).covered:
                self._lagging = node
                return False
        return True

    def covered_nodes(self) -> int:
        """How many nodes have every image."""
        return sum(self._row(node).covered for node in self._candidates())

    def nodes(self) -> Iterator[str]:
        """Yield the nodes named; without names those that asked for an image of the list."""
        for node in self._candidates():
            if self._nodes.names or self._row(node).asked:
                yield node

    def is_covered(self, node: str) -> bool:
        """Whether a node has every image."""
        return self._row(node).covered

    def states(self, node: str) -> tuple[State, ...]:
        """Return the states of a node in the order of the list, the same object while they hold."""
        return self._row(node).states

    def lacking(self, node: str) -> dict[str, State]:
        """Return image → state, of the images that a node lacks."""
        pairs = zip(self._images, self._row(node).states, strict=True)
        return {image.text: state for image, state in pairs if state not in self._accepted}

    def snapshot(self) -> Snapshot:
        """Coverage as it is now."""
        pairs = zip(self._images, self._targets, strict=True)
        return Snapshot(
            tuple(image.text for image in self._images),
            self._nodes,
            self._accept,
            tuple(image.text for image, target in pairs if target is None),
            {node: self._row(node).states for node in self.nodes()},
            self._facts.proof_summaries(),
        )

    def read(self) -> None:
        """Slow. Read the images' manifests that are not known yet."""
        known, found = self._read, dict[tuple[str, str], ResolvedImage | None]()
        for image in self._images:
            for key in self._keys(image):
                target = known.get(key)
                if target is None or not target.complete:
                    target = self._states.resolve(*key)
                found[key] = target
                if target is not None:
                    break
        self._read = found

    async def explore(self) -> asyncio.Future[None] | None:
        """Read the targets of the tags, the manifests of the images, and the progress of each node.

        To be awaited before the questions, whose cost then grows with the changes since. Reading is
        done in a thread, and given up where it takes too long. The event loop is never held up for
        long.

        Returns:
            The reading that was given up: when it is done, more images are known. Else None.
        """
        late: asyncio.Future[None] | None = None
        began, waited = time.perf_counter(), 0.0
        for _ in range(2):
            await self.follow_tags()
            if all(target is not None and target.complete for target in self._targets):
                break
            # One that began before a tag moved does not know of it.
            joins = self._reading is not None and not self._reading.done()
            if self._reading is None or not joins:
                self._reading = in_thread(self.read)
                self._read_until = time.monotonic() + _READ_SECONDS
            left = max(self._read_until - time.monotonic(), 0)
            paused = time.perf_counter()
            await asyncio.wait([self._reading], timeout=left)
            waited += time.perf_counter() - paused
            late = None if self._reading.done() else self._reading
            await self.follow_tags()
            if not joins:
                break
        async for node in with_pauses(self._candidates()):
            self._row(node)
        self.spent = time.perf_counter() - began - waited
        return late

    async def follow_tags(self) -> None:
        """See where the tags point now, of images that were read."""
        self._take(tuple([self._target(image) async for image in with_pauses(self._images)]))

    def _target(self, image: ListedImage) -> ResolvedImage | None:
        """An image of the list as the registry holds it now."""
        for key in self._keys(image):
            target = self._read.get(key, unread_image(*key))
            if target is not None:
                return target
        return None

    def _keys(self, image: ListedImage) -> Iterator[tuple[str, str]]:
        """Where an image may be: repository and digest."""
        for repository in image.repositories():
            digest = image.digest
            if image.tag is not None:
                digest = self._tag_digest(repository, image.tag)
            if digest:
                yield repository, digest

    def _take(self, targets: tuple[ResolvedImage | None, ...]) -> None:
        """Continue with these images; conclusions of others are void."""
        if targets != self._targets:
            self._targets = targets
            self._rows.clear()
            self._silent = self._derive(None)

    def _candidates(self) -> Sequence[str]:
        """The nodes that may count."""
        return self._nodes.names or self._facts.nodes()

    def _row(self, node: str) -> _Row:
        version = self._facts.version(node)
        if not version:
            return self._silent
        row = self._rows.get(node)
        if (
            row is None
            or row.facts != version
            or row.pulls != self._pulls.version(node)
            or row.until <= self._pulls.now()
        ):
            row = self._rows[node] = self._derive(node)
        return row

    def _derive(self, node: str | None) -> _Row:
        """The row of a node as it is now; None for one of which nothing is known."""
        states: tuple[State, ...]
        if node is None:
            states = tuple(
                State.ABSENT if target is None else State.MISSING for target in self._targets
            )
            facts, pulls, until = 0, 0, math.inf
        else:
            states = tuple(self._states.of(node, target) for target in self._targets)
            facts, pulls = self._facts.version(node), self._pulls.version(node)
            until = self._pulls.steady_until(node)
        covered = self._accepted.issuperset(states)
        return _Row(states, facts, pulls, until, covered, not _NOT_ASKED_FOR.issuperset(states))


def absent_text(absent: Sequence[str], *, is_mirror: bool = False) -> str:
    """Return a sentence that names the images of the list that the registry lacks.

    Args:
        is_mirror: whether some may be fetched from an upstream.
    """
    shown = join_names(absent, _NAMES_SHOWN)
    remedy = "push it or correct the list"
    if is_mirror:
        remedy = f"it is fetched when it is pulled, if its upstream is mirrored; else {remedy}"
    return f"in --until-pulled, but not in the registry: {shown}; {remedy}"


def claims_text(claimed: Mapping[str, int]) -> str:
    """Return a sentence that names the nodes whose coverage rests on claims; "" without any.

    Args:
        claimed: see `Snapshot.claimed`.
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
        changed: notified of facts that may complete it.
        pulls: whose end may complete it.
        clock: to wait for that end.
    """

    def __init__(
        self, coverage: Coverage, changed: Notification, pulls: Pulls, clock: Clock
    ) -> None:
        self._coverage = coverage
        self._changed = changed
        self._pulls = pulls
        self._clock = clock

    async def wait(self) -> EndReason:
        while True:
            late = await self._coverage.explore()
            began = time.perf_counter()
            if self.holds():
                break
            spent = self._coverage.spent + time.perf_counter() - began
            pause = max(_CHECK_SECONDS, spent / _CHECK_SHARE)
            changed = [self._changed.next(), *([] if late is None else [late])]
            changes = self._pulls.changes_in()
            if changes is None:
                await first_done(*changed)
            else:
                await first_done(*changed, self._clock.sleep(changes))
            await self._clock.sleep(pause)
        return EndReason(EndKind.COVERED, self._text())

    def holds(self) -> bool:
        return self._coverage.complete()

    def _text(self) -> str:
        text = f"coverage is complete at {counted(self._coverage.wanted_nodes, 'node')}"
        claims = claims_text(self._coverage.snapshot().claimed())
        return f"{text}; {claims}" if claims else text
