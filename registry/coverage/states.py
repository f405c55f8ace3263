"""How far a node is with an image, concluded from the ledger's facts.

    missing     the node never asked for it
    pulling     it is fetching something of it, or asked for something of it a moment ago
    incomplete  it asked for the manifest, and too little else to have the image by that
    failed      something of it that the node asked for did not arrive whole
    claimed     a container runtime made the request that it makes when it has the image
    served      the config, a layer, and every blob that the node asked for reached it whole
    proven      the node itself answered that it has the image
    absent      the registry does not hold it

docs/lifetime.md defines each exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from mayfly.registry.coverage.contents import Contained, Contents
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.pulls import Pulls

EMPTY_CONFIG = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
"""Digest of ``{}``, which all manifests without a config of their own name (image-spec,
manifest.md, "Guidance for an Empty Descriptor"). That a node has it says nothing."""

_MAX_LEAVES = 200
"""Images of one index that are looked at; the largest real indexes name some dozens."""


class State(StrEnum):
    """How far a node is with an image."""

    MISSING = "missing"
    PULLING = "pulling"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CLAIMED = "claimed"
    SERVED = "served"
    PROVEN = "proven"
    ABSENT = "absent"


RANKED = (State.CLAIMED, State.SERVED, State.PROVEN)
"""States in which a node counts as having an image, the weakest evidence first."""


def accepted(weakest: State) -> frozenset[State]:
    """The states that are at least as good as one of `RANKED`."""
    return frozenset(RANKED[RANKED.index(weakest) :])


@dataclass(frozen=True, slots=True)
class Target:
    """An image as the registry holds it now.

    Attributes:
        leaves: the blobs of each manifest under it that has some, it itself among them.
        manifests: every manifest under it but itself.
        below: its own digest, and that of everything under it.
        complete: whether all of it was read, so that it stays as it is for good.
    """

    repository: str
    digest: str
    leaves: tuple[tuple[str, ...], ...]
    manifests: tuple[str, ...]
    below: frozenset[str]
    complete: bool


class States:
    """Says how far nodes are with images.

    Args:
        ledger: of what happened.
        pulls: that are under way.
        contained: what manifests refer to.
    """

    def __init__(self, ledger: Ledger, pulls: Pulls, contained: Contained) -> None:
        self._ledger = ledger
        self._pulls = pulls
        self._contained = contained

    def target(self, repository: str, digest: str) -> Target | None:
        """Slow. An image by the digest of its manifest or index; None if it is not there."""
        if self._contained.find(repository, digest) is None:
            return None
        below = self._contained.below(repository, digest)
        found = _target(repository, digest, self._contained.find, below)
        whole = found.complete and self._contained.known_below(repository, digest) is not None
        return replace(found, complete=whole)

    def known_target(self, repository: str, digest: str) -> Target | None:
        """Quick. The same, None if some of it is not in memory."""
        below = self._contained.known_below(repository, digest)
        if below is None:
            return None
        found = _target(repository, digest, self._contained.known, below)
        return found if found.complete else None

    def of(self, node: str, target: Target | None) -> State:
        """How far a node is with an image."""
        if target is None:
            return State.ABSENT
        ledger, repository = self._ledger, target.repository
        pull = ledger.pull(node, repository, target.digest)
        if pull is None:
            return State.MISSING
        if self._pulls.busy(node, target.below):
            return State.PULLING
        if not target.below:
            return State.INCOMPLETE
        wanted = ledger.wanted(node, target.below)
        if not wanted and any(self._is_served(node, blobs) for blobs in target.leaves):
            return State.SERVED
        asked = [pull]
        for manifest in target.manifests:
            found = ledger.pull(node, repository, manifest)
            if found is not None:
                asked.append(found)
        claim = max(one.claim for one in asked)
        # A manifest asked for by GET after the claim is one that the node lacked.
        if claim > wanted and claim >= max(one.got for one in asked):
            return State.CLAIMED
        return State.FAILED if wanted else State.INCOMPLETE

    def _is_served(self, node: str, blobs: tuple[str, ...]) -> bool:
        config, *layers = blobs
        if not self._ledger.has_whole(node, config):
            return False
        needed = all if config == EMPTY_CONFIG else any
        # Programs that only inspect an image read the config alone.
        return not layers or needed(self._ledger.has_whole(node, layer) for layer in layers)


def unread(repository: str, digest: str) -> Target:
    """An image of which nothing was read yet, so that no node is known to have it."""
    return Target(repository, digest, (), (), frozenset(), complete=False)


def _target(
    repository: str,
    digest: str,
    find: Callable[[str, str], Contents | None],
    below: frozenset[str],
) -> Target:
    found = {digest: None}
    leaves: list[tuple[str, ...]] = []
    waiting, complete = [digest], True
    while waiting and len(found) <= _MAX_LEAVES:
        contents = find(repository, waiting.pop())
        if contents is None:
            complete = False
            continue
        if contents.blobs:
            leaves.append(contents.blobs)
        new = [child for child in contents.children if child not in found]
        found.update(dict.fromkeys(new))
        waiting += dict.fromkeys(new)
    return Target(repository, digest, tuple(leaves), tuple(found)[1:], below, complete)
