"""The facts of one upgrade in memory: which node was served which manifest and which bytes.

A fact is an event that only the node itself can cause: it asked for a manifest, bytes of a blob
reached it, a blob did not, it pushed a manifest, it said that it has an image. Facts are kept in
the order of their last occurrence, since a failure counts only after a claim. `states` draws
conclusions from them.

Facts come as `Entry`, new ones from the `ledger` and old ones from its file, and both take the same
way: `Facts.apply`. `fact_entries` turns the facts back into entries.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from mayfly.registry.coverage.arrival import Arrival, Part
from mayfly.registry.coverage.fact_limits import FactLimits
from mayfly.registry.coverage.ledger_file import Entry
from mayfly.registry.coverage.pulls import EXPECTATION_SECONDS, SETTLED_SECONDS
from mayfly.registry.coverage.sent_offsets import SentOffsets

RESTART_AFTER = 5
"""Seconds without an event of a blob after which a request for its first byte starts over."""

_BLOBS_KEPT = 2
"""Blobs of one pull; see `Pull`."""

Key = tuple[str, str]
"""Repository and digest."""


@dataclass(slots=True)
class Pull:
    """The requests of one node for one manifest.

    Attributes:
        first: time of the first request; see `Ledger.unix`.
        last: time of the last request, or of the last transfer of content below the manifest.
        got: order of the last GET; 0 without one.
        claim: order of the last request that claims that the node has the image; 0 without one.
        bytes: of blobs below the manifest that reached the node since the first request; bytes that
            were sent twice count twice.
        retries: number of repeated requests for a blob whose transfer had ended early.
        again: whether the manifest was asked for again after the node had the image.
        interrupted: until when the node is expected to ask for the manifest again, since a kill of
            the server may have cut this pull between two requests; 0 if none did. See
            `Ledger.unix`.
        blobs: the first two below the manifest that arrived since the first request: one of them is
            a layer.
    """

    first: int
    last: int
    got: int = 0
    claim: int = 0
    bytes: int = 0
    retries: int = 0
    again: bool = False
    interrupted: int = 0
    blobs: tuple[str, ...] = ()

    def arrived(self, digest: str) -> None:
        """Note that a blob has arrived."""
        if digest not in self.blobs and len(self.blobs) < _BLOBS_KEPT:
            self.blobs = (*self.blobs, digest)


@dataclass(slots=True)
class Pending:
    """Content that a node asked for and lacks in part; refused content has no ``arrival``."""

    repository: str
    order: int
    time: int
    arrival: Arrival | None = None


class Proven(NamedTuple):
    """An image that a node said it has.

    Attributes:
        order: of the proof.
        time: of the proof; see `Ledger.unix`.
        runtime, checked, pinned, free: see `proofs.ProvenImage`.
    """

    order: int
    time: int
    runtime: str
    checked: int
    pinned: bool
    free: int


@dataclass(slots=True)
class ProofSummary:
    """The images that a node said it has.

    Attributes:
        time: of the last proof; see `Ledger.unix`.
        images: number of them.
        pinned: number of those that kubelet's garbage collection spares.
        free: bytes left for images, as the node said last.
    """

    time: int = 0
    images: int = 0
    pinned: int = 0
    free: int = 0

    def count(self, proven: Proven, number: int) -> None:
        """Count an image (1), or count it no longer (-1)."""
        self.images += number
        self.pinned += number * proven.pinned
        if number > 0:
            self.time, self.free = proven.time, proven.free


@dataclass(slots=True)
class NodeFacts:
    """The facts about one node.

    Attributes:
        pulls: its requests for manifests.
        blobs: complete blob → repository it was asked for in.
        pending: content that did not arrive completely.
        proofs: digest of an index, manifest or config → the node's last statement of it.
        proof: of all of them, as a summary.
        others: number of facts outside the list.
        is_settled: whether its pulls had ended after its last fact; a kill then cuts none.
        version: changes with every fact.
    """

    name: str
    pulls: dict[Key, Pull] = field(default_factory=dict)
    blobs: dict[str, str] = field(default_factory=dict)
    pending: dict[str, Pending] = field(default_factory=dict)
    proofs: dict[str, Proven] = field(default_factory=dict)
    proof: ProofSummary = field(default_factory=ProofSummary)
    others: int = 0
    is_settled: bool = False
    version: int = 0

    def pulls_of(self, repository: str, images: Iterable[str]) -> list[Pull]:
        """Return the node's pulls of some manifests."""
        keys = ((repository, image) for image in images)
        return [self.pulls[key] for key in keys if key in self.pulls]

    def last(self) -> int:
        """Return the time of the node's last request for content, or end of a transfer."""
        times = [pull.last for pull in self.pulls.values()]
        times += [pending.time for pending in self.pending.values()]
        return max(times, default=0)

    def is_news(self, key: Key, *, got: bool, claims: bool) -> bool:
        """Whether a request for a manifest changes a conclusion.

        Args:
            got: by GET; otherwise by HEAD.
            claims: whether the request claims that the node has the image.
        """
        pull = self.pulls.get(key)
        if pull is None or key[1] in self.pending:
            return True
        if got:
            # After a claim it shows that the node lacks the image after all; after content that did
            # not arrive, that another pull begins.
            return pull.got < max(pull.claim, 1) or bool(self.pending)
        return claims and (pull.claim <= pull.got or bool(self.pending))


@dataclass(slots=True, eq=False)
class Flow:
    """A transfer of a blob to a node that is under way.

    Attributes:
        first: offset of its first byte.
        images: digests of the manifests above the blob.
        pulls: the node's pulls of these.
        bytes: sent so far.
        offsets, slot: keep the end of the sent bytes for a kill; None if nothing does.
    """

    node: str
    key: Key
    first: int
    images: list[str]
    pulls: list[Pull] = field(default_factory=list)
    part: Part | None = None
    bytes: int = 0
    offsets: SentOffsets | None = None
    slot: int | None = None

    def count(self, sent: int) -> None:
        """Count more bytes as sent."""
        self.bytes += sent
        for pull in self.pulls:
            pull.bytes += sent

    def ahead(self, end: int) -> None:
        """Note that up to ``end`` bytes may soon have been sent; for any thread, one at a time."""
        if self.offsets is not None and self.slot is not None:
            self.offsets.set(self.slot, self.first + end)


class Facts:
    """The facts of one upgrade.

    Args:
        is_listed: whether a node and a repository are of the list.
        declared: names of `--nodes`.

    Attributes:
        by_node: facts of each node.
        pushes: manifest → node that pushed it → time.
        tag_names: manifest → tags by which it was pushed or asked for.
        limits: counts the facts.
    """

    def __init__(
        self,
        is_listed: Callable[[str, str], bool] = lambda node, repository: False,
        declared: Collection[str] = (),
    ) -> None:
        self.by_node: dict[str, NodeFacts] = {}
        self.pushes: dict[Key, dict[str, int]] = {}
        self.tag_names: dict[Key, dict[str, None]] = {}
        self.limits = FactLimits(is_listed, declared)
        self._order = 0

    def nodes(self) -> list[str]:
        """Return every node that was served a manifest, or said which images it has."""
        return [node for node, facts in self.by_node.items() if facts.pulls or facts.proofs]

    def version(self, node: str) -> int:
        """Return a number that changes with every fact of a node."""
        facts = self.by_node.get(node)
        return 0 if facts is None else facts.version

    def pull(self, node: str, repository: str, digest: str) -> Pull | None:
        """Return the requests of a node for a manifest; None without any."""
        facts = self.by_node.get(node)
        return None if facts is None else facts.pulls.get((repository, digest))

    def pulls(self, node: str) -> Mapping[Key, Pull]:
        """Return all manifests that a node asked for."""
        facts = self.by_node.get(node)
        return {} if facts is None else facts.pulls

    def proofs(self, node: str) -> Mapping[str, Proven]:
        """Return the proofs of a node, by the digest of an index, manifest or config."""
        facts = self.by_node.get(node)
        return {} if facts is None else facts.proofs

    def proof_summaries(self) -> dict[str, ProofSummary]:
        """Return a copy of the summary of each node that said which images it has."""
        return {node: replace(facts.proof) for node, facts in self.by_node.items() if facts.proofs}

    def has_blob(self, node: str, digest: str) -> bool:
        """Whether every byte of a blob has reached a node, and it has not asked for it since."""
        facts = self.by_node.get(node)
        return facts is not None and digest in facts.blobs

    def last_pending(self, node: str, digests: Collection[str]) -> int:
        """Return the order of the last fact about pending content among ``digests``, or 0."""
        facts = self.by_node.get(node)
        if facts is None or not facts.pending:
            return 0
        pending = facts.pending
        if len(pending) < len(digests):
            found = [one.order for digest, one in pending.items() if digest in digests]
        else:
            found = [pending[digest].order for digest in digests if digest in pending]
        return max(found, default=0)

    def pushers(self) -> dict[Key, list[str]]:
        """Return the manifests pushed, each with the nodes that pushed it."""
        return {key: list(nodes) for key, nodes in self.pushes.items()}

    def pullers(self) -> dict[Key, list[str]]:
        """Return the manifests served, each with the nodes that it was served to."""
        found: dict[Key, list[str]] = {}
        for node, facts in self.by_node.items():
            for key in facts.pulls:
                found.setdefault(key, []).append(node)
        return found

    def asked_again(self) -> dict[str, int]:
        """Return node → number of manifests it asked for again after it had the image."""
        counts = {
            node: sum(pull.again for pull in facts.pulls.values())
            for node, facts in self.by_node.items()
        }
        return {node: count for node, count in counts.items() if count}

    def tags(self, repository: str, digest: str) -> list[str]:
        """Return the tags by which a manifest was pushed or asked for."""
        return list(self.tag_names.get((repository, digest), ()))

    def apply(self, entry: Entry, flow: Flow | None = None) -> bool:
        """Add a fact.

        Args:
            entry: the fact.
            flow: of a transfer that begins or ends now; None for old facts.

        Returns:
            Whether there was room for it.

        Raises:
            KeyError, TypeError, ValueError: the entry is not a fact.
        """
        node, key = str(entry["node"]), (str(entry["repository"]), str(entry["digest"]))
        facts = self.by_node.get(node) or NodeFacts(node)
        self._order += 1
        match entry["fact"]:
            case "asked" | "pull":
                done = self._asked(facts, key, entry, bool(entry["got"]), bool(entry["claims"]))
            case "has":  # of an older version
                done = self._asked(facts, key, entry, not entry["head"], claims=False)
            case "again":
                facts.pulls[key].again = done = True
            case "begun":
                done = self._begun(facts, key, entry, flow)
            case "ended":
                done = self._ended(facts, key, entry, flow)
            case "partly":
                done = self._partly(facts, key, entry)
            case "failed":
                done = self._failed(facts, key, entry)
            case "mended":  # of an older version
                done = self._drop_pending(facts, key[1])
            case "whole":
                done = all(self._complete(facts, key[0], str(one)) for one in entry["digests"])
            case "proved":
                done = self._proved(facts, key[1], entry)
            case "unproved":
                done = self._drop_proof(facts, key[1])
                self.limits.release_proofs(int(done))
            case "pushed":
                done = self._pushed(facts, key, int(entry["time"]))
            case "settled":
                done = True
            case "named":
                done = all(self._named(facts, key, str(tag)) for tag in entry["tags"])
            case _:
                raise ValueError
        if done and (facts.pulls or facts.pending or facts.proofs):
            self.by_node[node] = facts
        facts.is_settled = entry["fact"] == "settled"
        facts.version += 1
        return done

    def lose_transfers(self, reached: Sequence[int]) -> None:
        """End all transfers under way, since the server was killed; see `Arrival.lose_ends`."""
        for facts in self.by_node.values():
            for pending in facts.pending.values():
                if pending.arrival is not None:
                    pending.arrival.lose_ends(reached)

    def interrupt_pulls(self, now: int) -> None:
        """Expect nodes to repeat the pulls that may have been under way when the server was killed.

        The last fact of all is the earliest time of the kill. By then a node had settled that had
        been silent for longer than `SETTLED_SECONDS`, and so had older pulls of the others. Where
        no other node was active, `NodeFacts.is_settled` shows it.

        Args:
            now: Unix seconds.
        """
        killed = max((facts.last() for facts in self.by_node.values()), default=0)
        for facts in self.by_node.values():
            if facts.is_settled or facts.last() < killed - SETTLED_SECONDS - 1:
                continue
            for pull in facts.pulls.values():
                if not pull.interrupted and pull.last > killed - EXPECTATION_SECONDS:
                    pull.interrupted = now + int(EXPECTATION_SECONDS)

    def _asked(self, facts: NodeFacts, key: Key, entry: Entry, got: bool, claims: bool) -> bool:
        time = int(entry["time"])
        pull = facts.pulls.get(key)
        if pull is None:
            if not self._take_room(facts, key[0]):
                return False
            pull = facts.pulls[key] = Pull(time, time)
        pull.last, pull.interrupted = time, int(entry.get("interrupted", 0))
        if got:
            pull.got = self._order
            self._drop_pending(facts, key[1])
        if claims:
            pull.claim = self._order
        if entry["fact"] == "pull":
            pull.first, pull.bytes = int(entry["first"]), int(entry["bytes"])
            pull.retries, pull.again = int(entry["retries"]), bool(entry["again"])
            pull.blobs = tuple(map(str, entry.get("blobs", ())))
        return True

    def _begun(self, facts: NodeFacts, key: Key, entry: Entry, flow: Flow | None) -> bool:
        repository, digest = key
        time, first, size = int(entry["time"]), int(entry["first"]), int(entry["size"])
        pulls = facts.pulls_of(repository, entry["of"])
        pending = facts.pending.get(digest)
        if pending is None:
            prefix = 0
            if digest in facts.blobs:
                # It had the blob, and lacks at least the bytes it asks for now.
                repository, prefix = facts.blobs.pop(digest), first
            elif not self._take_room(facts, repository):
                return False
            pending = facts.pending[digest] = Pending(repository, self._order, time)
            pending.arrival = Arrival(size, prefix)
        elif pending.arrival is None or pending.arrival.is_interrupted():
            for pull in pulls:
                pull.retries += 1
        if pending.arrival is None:
            pending.arrival = Arrival(size)
        limit = int(entry.get("limit", size))
        part = pending.arrival.begin(first, limit, restart=time - pending.time >= RESTART_AFTER)
        part.slot = _slot(entry.get("slot"))
        if flow is not None:
            flow.part = part
        for pull in pulls:
            pull.last = time
        pending.order, pending.time = self._order, time
        return True

    def _ended(self, facts: NodeFacts, key: Key, entry: Entry, flow: Flow | None) -> bool:
        time, digest = int(entry["time"]), key[1]
        first, acked, sent = int(entry["first"]), int(entry["acked"]), int(entry["sent"])
        for pull in facts.pulls_of(key[0], entry["of"]):
            pull.last = time
            pull.bytes += acked - first if flow is None else 0
        pending = facts.pending.get(digest)
        if pending is None or pending.arrival is None:
            return False
        slot = _slot(entry.get("slot"))
        part = flow.part if flow is not None else pending.arrival.in_flight_from(first, slot)
        if part is None:
            return False
        pending.arrival.end(part, acked, sent)
        pending.order, pending.time = self._order, time
        if pending.arrival.complete and not pending.arrival.in_flight:
            del facts.pending[digest]
            facts.blobs[digest] = pending.repository
            for pull in facts.pulls_of(key[0], entry["of"]):
                pull.arrived(digest)
        return True

    def _partly(self, facts: NodeFacts, key: Key, entry: Entry) -> bool:
        if key[1] not in facts.pending and not self._take_room(facts, key[0]):
            return False
        arrival = Arrival(int(entry["size"]))
        for first, end in entry["parts"]:
            arrival.end(Part(int(first), int(end)), int(end), int(end))
        for flowing in entry["flowing"]:
            # Older versions wrote the first byte only.
            first, limit, slot = flowing if isinstance(flowing, list) else (flowing, None, None)
            part = arrival.begin(int(first), None if limit is None else int(limit))
            part.slot = _slot(slot)
        time = int(entry["time"])
        facts.pending[key[1]] = Pending(key[0], self._order, time, arrival)
        return True

    def _failed(self, facts: NodeFacts, key: Key, entry: Entry) -> bool:
        repository, digest = key
        pending = facts.pending.get(digest)
        if pending is None:
            if digest in facts.blobs:
                repository = facts.blobs.pop(digest)
            elif not self._take_room(facts, repository):
                return False
            pending = facts.pending[digest] = Pending(repository, self._order, 0)
        pending.order, pending.time = self._order, int(entry["time"])
        if entry.get("corrupt") and pending.arrival is not None:
            pending.arrival.discard()
        return True

    def _complete(self, facts: NodeFacts, repository: str, digest: str) -> bool:
        if digest not in facts.blobs and not self._take_room(facts, repository):
            return False
        facts.blobs[digest] = repository
        return True

    def _proved(self, facts: NodeFacts, digest: str, entry: Entry) -> bool:
        if digest not in facts.proofs and not self.limits.take_proof(facts, self.by_node):
            return False
        self._drop_proof(facts, digest)
        proven = facts.proofs[digest] = Proven(
            self._order,
            int(entry["time"]),
            str(entry["runtime"]),
            int(entry["checked"]),
            bool(entry["pinned"]),
            int(entry["free"]),
        )
        facts.proof.count(proven, 1)
        return True

    def _drop_proof(self, facts: NodeFacts, digest: str) -> bool:
        known = facts.proofs.pop(digest, None)
        if known is not None:
            facts.proof.count(known, -1)
        return known is not None

    def _pushed(self, facts: NodeFacts, key: Key, time: int) -> bool:
        pushers = self.pushes.get(key, {})
        if facts.name not in pushers and not self._take_room(facts, key[0]):
            return False
        self.pushes.setdefault(key, {})[facts.name] = time
        return True

    def _named(self, facts: NodeFacts, key: Key, tag: str) -> bool:
        if tag not in self.tag_names.get(key, ()) and not self._take_room(facts, key[0]):
            return False
        self.tag_names.setdefault(key, {})[tag] = None
        return True

    def _drop_pending(self, facts: NodeFacts, digest: str) -> bool:
        """Drop the record of content that is no longer pending."""
        pending = facts.pending.pop(digest, None)
        if pending is None:
            return False
        self.limits.release(facts, pending.repository)
        return True

    def _take_room(self, facts: NodeFacts, repository: str) -> bool:
        return self.limits.take(facts, repository, self.by_node)


def _slot(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
