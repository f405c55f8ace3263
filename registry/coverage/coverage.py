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
query costs time for changes only. `Coverage.explore` reads manifests in a worker thread before a
query; an image that was not read yet is at no node.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mayfly.registry.clock import Clock, first_done
from mayfly.registry.coverage.facts import Facts
from mayfly.registry.coverage.images import ListedImage, Nodes
from mayfly.registry.coverage.pulls import Pulls
from mayfly.registry.coverage.states import (
    ImageStates,
    ResolvedImage,
    State,
    accepted,
    unread_image,
)
from mayfly.registry.ending import EndKind, EndReason
from mayfly.registry.notification import Notification
from mayfly.registry.text import join_names
from mayfly.registry.threads import in_thread

_CHECK_SECONDS = 0.25
"""Between two checks of the condition while events come in, at least."""

_CHECK_SHARE = 0.02
"""Of the event loop's time, which the checks may take."""

_READ_SECONDS = 2.0
"""To read manifests; images that were not read in time are at no node."""

_NAMES_SHOWN = 10

_NOT_ASKED_FOR = frozenset({State.MISSING, State.ABSENT})
"""ImageStates in which a node has not asked for an image."""


class Gap(NamedTuple):
    """An image that a node or the registry lacks, or a node that is missing.

    Attributes:
        image: as listed; None for a missing node.
        node: None if the registry lacks the image, or for a missing node.
    """

    image: str | None
    node: str | None
    state: State


@dataclass(slots=True)
class _Row:
    """The states of one node with each image, and the versions they were derived from."""

    basis: tuple[int, int, int]
    states: tuple[State, ...]


class Coverage:
    """Says which nodes have which images, and which are missing.

    Args:
        facts: about the nodes.
        pulls: under way.
        images: that must arrive.
        nodes: that must have them.
        tag_digest: repository and tag → digest; None if there is no such tag. Quick.
        states: of nodes with images.
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
        self.accept = accept
        self._accepted = accepted(accept)
        self._targets: tuple[ResolvedImage | None, ...] = ()
        self._targets_version = 0
        self._read: dict[tuple[str, str], ResolvedImage | None] = {}
        """Repository and digest → image, None where it is not there."""
        self._reading: asyncio.Future[None] | None = None
        self._read_until = 0.0
        self._rows: dict[str, _Row] = {}

    @property
    def wanted_nodes(self) -> int:
        """Number of nodes that must have every image."""
        return self._nodes.count

    @property
    def declared(self) -> tuple[str, ...]:
        """Names of the nodes that must have every image; empty if a number is given."""
        return self._nodes.names

    @property
    def images(self) -> tuple[ListedImage, ...]:
        """The images that must arrive."""
        return self._images

    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.covered_nodes() >= self._nodes.count

    def covered_nodes(self) -> int:
        """Return the number of nodes that have every image."""
        self._refresh()
        if not all(self._targets):
            return 0
        return sum(self._is_covered(node) for node in self._known_nodes())

    def nodes(self) -> list[str]:
        """Return the nodes named; without names those that asked for an image of the list."""
        self._refresh()
        return self._known_nodes()

    def matrix(self) -> dict[str, dict[str, State]]:
        """ListedImage → node → how far the node is with it."""
        self._refresh()
        rows = {node: self._row(node) for node in self._known_nodes()}
        return {
            image.text: {node: states[i] for node, states in rows.items()}
            for i, image in enumerate(self._images)
        }

    def absent(self) -> list[str]:
        """Return the images of the list that the registry lacks now."""
        self._refresh()
        pairs = zip(self._images, self._targets, strict=True)
        return [image.text for image, target in pairs if target is None]

    def claimed(self) -> dict[str, int]:
        """Return covered node → number of its images that rest on a claim alone, if there are any.

        If a number of nodes is given, only that many count, those with the fewest claims.
        """
        self._refresh()
        counts = {
            node: self._row(node).count(State.CLAIMED)
            for node in self._known_nodes()
            if self._is_covered(node)
        }
        chosen = sorted(counts, key=lambda node: counts[node])[: self._nodes.count]
        return {node: counts[node] for node in counts if counts[node] and node in set(chosen)}

    def missing(self) -> list[Gap]:
        """Return everything that keeps coverage from being complete."""
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
        """Read the manifests of images that were not read yet. Slow."""
        known, found = self._read, dict[tuple[str, str], ResolvedImage | None]()
        for image in self._images:
            for key in self._candidates(image):
                target = known.get(key)
                if target is None or not target.complete:
                    target = self._states.resolve(*key)
                found[key] = target
                if target is not None:
                    break
        self._read = found

    async def explore(self) -> None:
        """Call `read` in a thread before a query; continue without it if it takes too long."""
        for _ in range(2):
            if not self._unread():
                return
            # A reading that began before a tag moved has read the old image.
            joins = self._reading is not None and not self._reading.done()
            if self._reading is None or not joins:
                self._reading = in_thread(self.read)
                self._read_until = time.monotonic() + _READ_SECONDS
            left = max(self._read_until - time.monotonic(), 0)
            await asyncio.wait([self._reading], timeout=left)
            if not joins:
                return

    def resolve(self, image: ListedImage) -> ResolvedImage | None:
        """Return an image of the list as the registry holds it now."""
        for key in self._candidates(image):
            target = self._read.get(key, unread_image(*key))
            if target is not None:
                return target
        return None

    def _candidates(self, image: ListedImage) -> Iterator[tuple[str, str]]:
        """Yield the repositories and digests under which an image may be stored."""
        for repository in image.repositories():
            digest = image.digest
            if image.tag is not None:
                digest = self._tag_digest(repository, image.tag)
            if digest:
                yield repository, digest

    def _unread(self) -> bool:
        targets = (self.resolve(image) for image in self._images)
        return not all(target is not None and target.complete for target in targets)

    def _refresh(self) -> None:
        """Resolve the tags again."""
        targets = tuple(self.resolve(image) for image in self._images)
        if targets != self._targets:
            self._targets = targets
            self._targets_version += 1
            self._rows.clear()

    def _known_nodes(self) -> list[str]:
        if self._nodes.names:
            return list(self._nodes.names)
        return [
            node for node in self._facts.nodes() if not _NOT_ASKED_FOR.issuperset(self._row(node))
        ]

    def _is_covered(self, node: str) -> bool:
        return self._accepted.issuperset(self._row(node))

    def _row(self, node: str) -> tuple[State, ...]:
        basis = self._targets_version, self._facts.version(node), self._pulls.version(node)
        row = self._rows.get(node)
        if row is None or row.basis != basis or State.PULLING in row.states:
            found = tuple(self._states.of(node, target) for target in self._targets)
            row = self._rows[node] = _Row(basis, found)
        return row.states


def absent_text(absent: Sequence[str]) -> str:
    """Return a sentence that names the images of the list that the registry lacks."""
    shown = join_names(absent, _NAMES_SHOWN)
    return f"in --until-pulled, but not in the registry: {shown}; push it or correct the list"


def claims_text(claimed: Mapping[str, int]) -> str:
    """Return a sentence that names the nodes whose coverage rests on claims; "" without any.

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
            await self._coverage.explore()
            began = time.perf_counter()
            if self.holds():
                break
            pause = max(_CHECK_SECONDS, (time.perf_counter() - began) / _CHECK_SHARE)
            changed = self._changed.next()
            settles = self._pulls.settles_in()
            if settles is None:
                await first_done(changed)
            else:
                await first_done(changed, self._clock.sleep(settles))
            await self._clock.sleep(pause)
        return EndReason(EndKind.COVERED, self._text())

    def holds(self) -> bool:
        return self._coverage.complete()

    def _text(self) -> str:
        text = f"coverage is complete at {self._coverage.wanted_nodes} nodes"
        claims = claims_text(self._coverage.claimed())
        return f"{text}; {claims}" if claims else text
