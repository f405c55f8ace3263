"""The state of a node with an image, concluded from the facts.

    missing     the node never asked for it
    pulling     it fetches content of the image, or asked for some a moment ago, or just before the
                server was killed
    incomplete  it asked for the manifest, and for too little else to have the image
    failed      content of the image that the node asked for did not arrive completely
    claimed     its container runtime made the requests of a node that has the image
    served      the config, a layer, and every blob that it asked for reached it completely
    proven      it was served content of the image, and says that it has all of it
    present before  it says that it has the image, whose content was not served to it
    absent      the registry lacks the image

docs/lifetime.md defines each exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from typing import NamedTuple

from mayfly.registry.coverage.facts import Facts, Pull
from mayfly.registry.coverage.manifest_graph import ManifestGraph, ManifestRefs
from mayfly.registry.coverage.pulls import Pulls

EMPTY_CONFIG = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
"""Digest of ``{}``, which all manifests without a config of their own name (image-spec,
manifest.md, "Guidance for an Empty Descriptor"). That a node has it shows nothing."""

_MAX_LEAVES = 200
"""Images of one index that are visited; the largest real indexes name some dozens."""


class State(StrEnum):
    """The state of a node with an image."""

    MISSING = "missing"
    PULLING = "pulling"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CLAIMED = "claimed"
    SERVED = "served"
    PROVEN = "proven"
    PRESENT_BEFORE = "present before"
    ABSENT = "absent"


RANKED = (State.CLAIMED, State.SERVED, State.PROVEN)
"""Evidence that a node has an image, the weakest first."""


def accepted(weakest: State) -> frozenset[State]:
    """Return the states that are at least as good as one of `RANKED`.

    `State.PRESENT_BEFORE` is as good as `State.PROVEN`: also the node's own word.
    """
    return frozenset((*RANKED[RANKED.index(weakest) :], State.PRESENT_BEFORE))


HAS_IMAGE = accepted(State.CLAIMED)
"""States in which a node counts as having an image."""


def stated(images: Mapping[str, State]) -> list[str]:
    """Images that a node lacks, each with its state unless the node never asked for it."""
    return [
        image if state is State.MISSING else f"{image} ({state})" for image, state in images.items()
    ]


class ResolvedImage(NamedTuple):
    """An image as the registry holds it now.

    Attributes:
        leaves: the blobs of each manifest of the image that has some.
        manifests: every manifest under it, without itself.
        closure: digests of the image and of everything under it.
        names: digests by which runtimes know the image: its own, those of manifests and configs.
        complete: whether all of it was read; then it never changes.
    """

    repository: str
    digest: str
    leaves: tuple[tuple[str, ...], ...]
    manifests: tuple[str, ...]
    closure: frozenset[str]
    names: frozenset[str]
    complete: bool


class ImageStates:
    """Concludes the states of nodes with images.

    Args:
        facts: about the nodes.
        pulls: under way.
        graph: references of manifests.
    """

    def __init__(self, facts: Facts, pulls: Pulls, graph: ManifestGraph) -> None:
        self._facts = facts
        self._pulls = pulls
        self._graph = graph

    def resolve(self, repository: str, digest: str) -> ResolvedImage | None:
        """Return an image by its digest; None if the registry lacks it. May read."""
        if self._graph.find(repository, digest) is None:
            return None
        closure = self._graph.closure(repository, digest)
        found = _resolved(repository, digest, self._graph.find, closure)
        complete = found.complete and self._graph.cached_closure(repository, digest) is not None
        return found._replace(complete=complete)

    def resolve_cached(self, repository: str, digest: str) -> ResolvedImage | None:
        """Return an image by its digest; None if some of it is not in memory. Quick."""
        closure = self._graph.cached_closure(repository, digest)
        if closure is None:
            return None
        found = _resolved(repository, digest, self._graph.cached, closure)
        return found if found.complete else None

    def of(self, node: str, image: ResolvedImage | None) -> State:
        """Return the state of a node with an image."""
        if image is None:
            return State.ABSENT
        facts, repository = self._facts, image.repository
        pull = facts.pull(node, repository, image.digest)
        proof = self._last_proof(node, image)
        # Content that the node asked for after its proof is content that it lacks.
        if proof > facts.last_pending(node, image.closure):
            delivered = any(self._is_delivered(node, blobs) for blobs in image.leaves)
            return State.PROVEN if delivered else State.PRESENT_BEFORE
        if pull is None:
            return State.MISSING
        if self._pulls.is_fetching(node, image.closure):
            return State.PULLING
        if not image.closure:
            return State.INCOMPLETE
        state = self._concluded(node, image, pull)
        is_interrupted = self._pulls.is_interrupted(node, (image.digest, *image.manifests))
        if is_interrupted and state in HAS_IMAGE and not self._is_complete(node, image):
            return State.PULLING
        return state

    def _concluded(self, node: str, image: ResolvedImage, pull: Pull) -> State:
        """Return the state that follows from a node's requests, once it makes no more of them."""
        facts, repository = self._facts, image.repository
        asked = [pull]
        for manifest in image.manifests:
            found = facts.pull(node, repository, manifest)
            if found is not None:
                asked.append(found)
        pending = facts.last_pending(node, image.closure)
        own = {blob for one in asked for blob in one.blobs}
        if not pending and any(self._is_served(node, blobs, own) for blobs in image.leaves):
            return State.SERVED
        claim = max(one.claim for one in asked)
        # The node lacked a manifest that it asked for by GET after the claim.
        if claim > pending and claim >= max(one.got for one in asked):
            return State.CLAIMED
        return State.FAILED if pending else State.INCOMPLETE

    def _last_proof(self, node: str, image: ResolvedImage) -> int:
        """Return the order of the node's last proof that it has the image; 0 without one."""
        proofs = self._facts.proofs(node)
        if not proofs:
            return 0
        return max((proofs[name].order for name in image.names if name in proofs), default=0)

    def _is_delivered(self, node: str, blobs: tuple[str, ...]) -> bool:
        """Whether content reached the node that is this image's and not only shared layers."""
        config, *layers = blobs
        if config != EMPTY_CONFIG:
            return self._facts.has_blob(node, config)
        return any(self._facts.has_blob(node, layer) for layer in layers)

    def _is_complete(self, node: str, image: ResolvedImage) -> bool:
        """Whether every blob of one of the image's manifests reached the node."""
        return any(
            all(self._facts.has_blob(node, blob) for blob in blobs) for blobs in image.leaves
        )

    def _is_served(self, node: str, blobs: tuple[str, ...], own: Collection[str]) -> bool:
        """Whether a node got all that it lacked of a manifest with these blobs.

        Args:
            own: blobs that it got as those of this image.
        """
        config, *layers = blobs
        if not self._facts.has_blob(node, config):
            return False
        if all(self._facts.has_blob(node, layer) for layer in layers):
            return True
        # Programs that only inspect an image read the config alone, also where the node has got
        # layers of it with other images.
        return config != EMPTY_CONFIG and any(
            layer in own and self._facts.has_blob(node, layer) for layer in layers
        )


def unread_image(repository: str, digest: str) -> ResolvedImage:
    """Return an image whose manifests were not read yet, so that no node is known to have it."""
    none = frozenset[str]()
    return ResolvedImage(repository, digest, (), (), none, none, complete=False)


def _resolved(
    repository: str,
    digest: str,
    find: Callable[[str, str], ManifestRefs | None],
    closure: frozenset[str],
) -> ResolvedImage:
    found = {digest: None}
    leaves: list[tuple[str, ...]] = []
    waiting, complete = [digest], True
    while waiting and len(found) <= _MAX_LEAVES:
        refs = find(repository, waiting.pop())
        if refs is None:
            complete = False
            continue
        if refs.blobs:
            leaves.append(refs.blobs)
        new = [child for child in refs.children if child not in found]
        found.update(dict.fromkeys(new))
        waiting += dict.fromkeys(new)
    configs = {blobs[0] for blobs in leaves} - {EMPTY_CONFIG}
    return ResolvedImage(
        repository,
        digest,
        tuple(leaves),
        tuple(found)[1:],
        closure,
        frozenset((*found, *configs)),
        complete,
    )
