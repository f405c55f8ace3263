"""The entries of the ledger's file: one for a new fact, and those of all facts so far."""

from __future__ import annotations

from collections.abc import Iterator

from mayfly.registry.coverage.facts import Facts, Key, NodeFacts, Pending, Proven, Pull
from mayfly.registry.coverage.ledger_file import Entry

_BLOBS_AT_ONCE = 100
"""Complete blobs of one entry."""


def make_entry(fact: str, time: int, node: str, key: Key, **more: object) -> Entry:
    """Return the entry of a fact.

    Args:
        fact: its kind, see `Facts.apply`.
        time: Unix seconds.
        node: that caused it.
        key: the manifest or blob it is about.
        more: fields of this kind of fact.
    """
    repository, digest = key
    return {
        "time": time,
        "fact": fact,
        "node": node,
        "repository": repository,
        "digest": digest,
        **more,
    }


def entries_of(facts: Facts, now: int) -> Iterator[Entry]:
    """Yield entries from which `Facts.apply` makes the same facts; ``now`` is Unix seconds."""
    ordered: list[tuple[int, Entry]] = []
    for node, of_node in facts.by_node.items():
        for key, pull in of_node.pulls.items():
            ordered += _pull_entries(node, key, pull)
        for digest, pending in of_node.pending.items():
            ordered.append((pending.order, _pending_entry(node, digest, pending)))
        for digest, proven in of_node.proofs.items():
            ordered.append((proven.order, _proof_entry(node, digest, proven)))
    yield from (entry for _, entry in sorted(ordered, key=lambda pair: pair[0]))
    for of_node in facts.by_node.values():
        yield from _blob_entries(of_node, now)
    for key, pushers in facts.pushes.items():
        for node, time in pushers.items():
            yield make_entry("pushed", time, node, key)
    for key, tags in facts.tag_names.items():
        yield make_entry("named", now, "", key, tags=list(tags))
    for node, of_node in facts.by_node.items():
        if of_node.is_settled:
            yield make_entry("settled", now, node, ("", ""))


def _pull_entries(node: str, key: Key, pull: Pull) -> list[tuple[int, Entry]]:
    at_once = pull.claim == pull.got
    entry = make_entry(
        "pull",
        pull.last,
        node,
        key,
        first=pull.first,
        got=pull.got > 0,
        claims=at_once and pull.claim > 0,
        bytes=pull.bytes,
        retries=pull.retries,
        again=pull.again,
        interrupted=pull.interrupted,
        blobs=pull.blobs,
    )
    entries = [(pull.got, entry)]
    if pull.claim and not at_once:
        claim = {"got": False, "claims": True, "interrupted": pull.interrupted}
        claimed = make_entry("asked", pull.last, node, key, **claim)
        entries.append((pull.claim, claimed))
    return entries


def _pending_entry(node: str, digest: str, pending: Pending) -> Entry:
    key = pending.repository, digest
    if pending.arrival is None:
        return make_entry("failed", pending.time, node, key)
    return make_entry(
        "partly",
        pending.time,
        node,
        key,
        size=pending.arrival.size,
        parts=[*pending.arrival.separate_parts()],
        flowing=pending.arrival.open_ends(),
    )


def _proof_entry(node: str, digest: str, proven: Proven) -> Entry:
    fields = {"runtime": proven.runtime, "checked": proven.checked}
    state = {"pinned": proven.pinned, "free": proven.free}
    return make_entry("proved", proven.time, node, ("", digest), **fields, **state)


def _blob_entries(facts: NodeFacts, now: int) -> Iterator[Entry]:
    by_repository: dict[str, list[str]] = {}
    for digest, repository in facts.blobs.items():
        by_repository.setdefault(repository, []).append(digest)
    last = max((pull.last for pull in facts.pulls.values()), default=now)
    for repository, digests in by_repository.items():
        for start in range(0, len(digests), _BLOBS_AT_ONCE):
            some = digests[start : start + _BLOBS_AT_ONCE]
            yield make_entry("whole", last, facts.name, (repository, ""), digests=some)
