"""Coverage: does every node have every image of the upgrade?

A node *has* an image when it was served the manifest the image's name stands for now, no blob of
it failed to arrive after that, and it is not in the middle of fetching it:

- Blobs alone would undercount: a node that has the layers, or the whole image, never asks for them.
- A HEAD is as good as a GET: a node that has the image asks no more than that.
- An index that was fetched by GET counts once one of its children was served to the node, now or
  before: a node whose platform is not in the index gets that far too.
- A tag stands for what it points at now. When it moves, those who got the old image lack the new.

With names of nodes given, each of them must have each image. With a number, so many nodes must
have all of them; which, nobody said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from registry.lifetime.clock import Clock, first_done
from registry.lifetime.conditions import Kind, Reason
from registry.lifetime.contents import Contained
from registry.lifetime.images import Image, Nodes
from registry.lifetime.ledger import Confirmation, Ledger
from registry.lifetime.pulls import Pulls

_LOOK_EVERY = 0.25
"""Seconds between two looks at the whole while events come in: 100 nodes with 100 images take
some 30 ms to go through."""


class State(StrEnum):
    """How far a node is with an image."""

    HAS = "has"
    PULLING = "pulling"
    INDEX_ONLY = "index only"
    FAILED = "failed"
    MISSING = "missing"
    NOT_HERE = "not in the registry"


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

    def __str__(self) -> str:
        if self.image is None:
            return "a further node with every image"
        return f"{self.image} at {self.node}" if self.node else f"{self.image} ({self.state})"


@dataclass(frozen=True, slots=True)
class _Target:
    """An image as the registry holds it now."""

    repository: str
    digest: str
    children: tuple[str, ...]
    below: frozenset[str]


Targets = dict[Image, _Target | None]


class Coverage:
    """Says what is covered and what is missing.

    Args:
        ledger: of what happened.
        pulls: that are under way.
        images: that must arrive.
        nodes: they must arrive at.
        resolve: repository and tag → digest, None if there is no such tag; quick.
        contained: what manifests refer to.
    """

    def __init__(
        self,
        ledger: Ledger,
        pulls: Pulls,
        images: tuple[Image, ...],
        nodes: Nodes,
        resolve: Callable[[str, str], str | None],
        contained: Contained,
    ) -> None:
        self._ledger = ledger
        self._pulls = pulls
        self._images = images
        self._nodes = nodes
        self._resolve = resolve
        self._contained = contained

    @property
    def wanted_nodes(self) -> int:
        """How many nodes must have every image."""
        return self._nodes.count

    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.covered_nodes() >= self._nodes.count

    def covered_nodes(self) -> int:
        """How many nodes have every image."""
        targets = self._targets()
        if not all(targets.values()):
            return 0
        return sum(
            all(self._state(node, target) is State.HAS for target in targets.values())
            for node in self._nodes_of(targets)
        )

    def nodes(self) -> list[str]:
        """The nodes named; without names those that were served an image of the list."""
        return self._nodes_of(self._targets())

    def matrix(self) -> dict[str, dict[str, State]]:
        """Image → node → how far the node is with it."""
        targets = self._targets()
        nodes = self._nodes_of(targets)
        return {
            image.text: {node: self._state(node, target) for node in nodes}
            for image, target in targets.items()
        }

    def missing(self) -> list[Gap]:
        """Everything that keeps coverage from being complete."""
        if self.complete():
            return []
        targets = self._targets()
        nodes = self._nodes_of(targets)
        gaps = []
        for image, target in targets.items():
            if target is None:
                gaps.append(Gap(image.text, None, State.NOT_HERE))
                continue
            states = {node: self._state(node, target) for node in nodes}
            gaps += [Gap(image.text, n, s) for n, s in states.items() if s is not State.HAS]
        gaps += [Gap(None, None, State.MISSING)] * max(0, self._nodes.count - len(nodes))
        return gaps

    def _targets(self) -> Targets:
        return {image: self._target(image) for image in self._images}

    def _target(self, image: Image) -> _Target | None:
        for repository in image.repositories():
            digest = image.digest
            if image.tag is not None:
                digest = self._resolve(repository, image.tag)
            contents = self._contained.find(repository, digest) if digest else None
            if digest is not None and contents is not None:
                below = self._contained.below(repository, digest)
                return _Target(repository, digest, contents.children, below)
        return None

    def _nodes_of(self, targets: Targets) -> list[str]:
        if self._nodes.names:
            return list(self._nodes.names)
        return [
            node
            for node in self._ledger.nodes()
            if any(target and self._confirmed(node, target) for target in targets.values())
        ]

    def _confirmed(self, node: str, target: _Target) -> Confirmation | None:
        return self._ledger.confirmation(node, target.repository, target.digest)

    def _state(self, node: str, target: _Target | None) -> State:
        if target is None:
            return State.NOT_HERE
        confirmed = self._confirmed(node, target)
        if confirmed is None:
            return State.MISSING
        children = [
            found
            for child in target.children
            if (found := self._ledger.confirmation(node, target.repository, child))
        ]
        since = max(one.order for one in (confirmed, *children))
        if self._ledger.failed_after(since, node, target.repository, target.below):
            return State.FAILED
        if self._pulls.busy(node, target.below):
            return State.PULLING
        if target.children and not children and not confirmed.head:
            return State.INDEX_ONLY
        return State.HAS


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
        while not self.holds():
            changed = self._ledger.changed.next()
            settles = self._pulls.settles_in()
            if settles is None:
                await first_done(changed)
            else:
                await first_done(changed, self._clock.sleep(settles))
            await self._clock.sleep(_LOOK_EVERY)
        return Reason(Kind.COVERED, f"coverage is complete at {self._coverage.wanted_nodes} nodes")

    def holds(self) -> bool:
        return self._coverage.complete()
