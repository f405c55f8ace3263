"""Pulls and pushes that are under way, as far as requests show them.

A pull is several requests that have only the node in common: HEAD of a tag, GET of an index, GET of
one of its children, then a GET for each blob the node lacks. Between two of them nothing is in
flight, and yet the pull is not complete. The requests that are still *expected* of the node follow
from the answers it got:

    HEAD of a manifest         expects a GET of it      (a warm node stops here)
    GET of an index            expects a child of it
    GET of an image manifest   expects its blobs        (those the node has are never asked for)
    blob arrived whole         expects nothing more of it

A node need not send the expected requests, so expectations end when the node was silent for
`SETTLED_SECONDS`, and those of one manifest after `EXPECTATION_SECONDS` at the latest. If a kill of
the server *interrupted* a pull, silence shows nothing: clients try again after minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum

from mayfly.registry.coverage.manifest_graph import ManifestRefs
from mayfly.registry.notification import Notification

SETTLED_SECONDS = 5.0
"""Seconds without an event of a node after which nothing more is expected of it: clients make the
requests of a pull without pause, except for a login or a slow disk."""

EXPECTATION_SECONDS = 600.0
"""Seconds after which a node that pulls other content is no longer expected to fetch a blob."""

MAX_NODES = 10_000
_MAX_EXPECTED = 10_000


class Step(Enum):
    """The part of a request in a pull or a push."""

    PULL = "pull"
    """It reads a manifest, which begins a pull or continues one."""
    CONTINUE_PULL = "continue pull"
    """It reads a blob, which only continues a pull."""
    PUSH = "push"
    """It writes, which begins a push or continues one."""
    NEITHER = "neither"
    """It is part of neither, and is served until the end, also while the registry drains."""


@dataclass(slots=True)
class _Node:
    last: float = 0.0
    expected: dict[str, float] = field(default_factory=dict)
    """Digest → time from which it is expected."""
    parents: dict[str, dict[str, None]] = field(default_factory=dict)
    """Child → the indexes that name it, while a child is expected."""
    known: set[tuple[str, str]] = field(default_factory=set)
    """(repository, manifest digest) that belong to a pull that this node has begun."""
    in_flight: dict[str, int] = field(default_factory=dict)
    """Manifest or blob → requests for it in flight."""
    pushed: float | None = None
    version: int = 0

    def expect(self, *digests: str) -> None:
        """Expect a request for each digest; the most recent expectation stands last."""
        for digest in digests:
            self.expected.pop(digest, None)
        self.expected.update(dict.fromkeys(digests, self.last))


class Pulls:
    """The pulls and pushes under way of each node. They do not outlive the process.

    Args:
        now: seconds, monotonic.
        changed: notified when a request for content ends.
        interrupted: node, manifest, and until when the node may ask for it again; see
            `Ledger.interrupted`.
    """

    def __init__(
        self,
        now: Callable[[], float],
        changed: Notification,
        interrupted: Iterable[tuple[str, str, float]] = (),
    ) -> None:
        self._now = now
        self._changed = changed
        self._interrupted: dict[str, dict[str, float]] = {}
        """Node → manifest → the end of the time for which it is expected again."""
        for node, digest, until in interrupted:
            self._interrupted.setdefault(node, {})[digest] = until
        self._nodes: dict[str, _Node] = {}
        self._dropped = 0
        """The highest version of a node that was dropped."""

    def manifest(
        self, node: str, repository: str, digest: str, refs: ManifestRefs, *, head: bool
    ) -> None:
        """Note that a manifest was served to a node."""
        if interrupted := self._interrupted.get(node):
            for one in (digest, *refs.children):
                interrupted.pop(one, None)
        state = self._touch(node)
        if state is None:
            return
        if len(state.known) + len(state.expected) > _MAX_EXPECTED:
            state.known.clear()
            state.expected.clear()
            state.parents.clear()
        state.known.add((repository, digest))
        for index in state.parents.pop(digest, ()):
            state.expected.pop(index, None)
        if head:
            state.expect(digest)
            return
        state.expected.pop(digest, None)
        for child in refs.children[:_MAX_EXPECTED]:
            state.known.add((repository, child))
            state.parents.setdefault(child, {})[digest] = None
        if refs.children:
            state.expect(digest)
        state.expect(*refs.blobs[:_MAX_EXPECTED])

    def fetch_begun(self, node: str, digest: str) -> None:
        """Note that a node waits for content that it asked for. Call `fetch_ended` after it."""
        state = self._touch(node)
        if state is not None:
            state.in_flight[digest] = state.in_flight.get(digest, 0) + 1

    def fetch_ended(self, node: str, digest: str, *, complete: bool) -> None:
        """Note the end of a request; ``complete`` if it was for a blob that the node has now."""
        state = self._touch(node)
        if state is not None:
            left = state.in_flight.get(digest, 1) - 1
            if left:
                state.in_flight[digest] = left
            else:
                state.in_flight.pop(digest, None)
                if complete:
                    state.expected.pop(digest, None)
        self._changed.notify()

    def push(self, node: str) -> None:
        """Note a step of a push by a node."""
        state = self._touch(node)
        if state is not None:
            state.pushed = state.last

    def push_ended(self, node: str) -> None:
        """Note the last step of a push by a node."""
        state = self._touch(node)
        if state is not None:
            state.pushed = None

    def is_fetching(self, node: str, digests: Collection[str]) -> bool:
        """Whether a node fetches some of this content, or is expected to."""
        state = self._nodes.get(node)
        if state is None:
            return False
        if not state.in_flight.keys().isdisjoint(digests):
            return True
        if not state.in_flight and self._now() - state.last >= SETTLED_SECONDS:
            return False
        since = self._now() - EXPECTATION_SECONDS
        expected = state.expected
        if len(expected) <= len(digests):
            return any(begun > since and digest in digests for digest, begun in expected.items())
        return any(expected.get(digest, since) > since for digest in digests)

    def is_settled(self, node: str) -> bool:
        """Whether a node fetches and pushes nothing, and is not expected to."""
        state = self._nodes.get(node)
        return state is None or not (state.in_flight or self._is_active(state))

    def is_interrupted(self, node: str, manifests: Iterable[str]) -> bool:
        """Whether a kill may have cut a pull of one of these manifests that the node may resume."""
        pulls, now = self._interrupted.get(node, {}), self._now()
        return bool(pulls) and any(pulls.get(one, now) > now for one in manifests)

    def now(self) -> float:
        """Return the time, as the pulls have it."""
        return self._now()

    def steady_until(self, node: str) -> float:
        """Return the time from which on a node's pulls may change without an event."""
        now = self._now()
        moments = [*self._interrupted.get(node, {}).values()]
        state = self._nodes.get(node)
        if state is not None:
            moments += [begun + EXPECTATION_SECONDS for begun in state.expected.values()]
            if not state.in_flight:
                moments.append(state.last + SETTLED_SECONDS)
        return min((moment for moment in moments if moment > now), default=math.inf)

    def version(self, node: str) -> int:
        """A number that changes with every event of a node."""
        state = self._nodes.get(node)
        return 0 if state is None else state.version

    def has_begun(self, node: str, repository: str, digest: str) -> bool:
        """Whether a manifest belongs to a pull that the node has begun."""
        state = self._nodes.get(node)
        return state is not None and (repository, digest) in state.known

    def is_pushing(self, node: str) -> bool:
        """Whether a node is in the middle of a push."""
        state = self._nodes.get(node)
        if state is None or state.pushed is None:
            return False
        return self._now() - state.pushed < SETTLED_SECONDS

    def settles_in(self) -> float | None:
        """Return the seconds until no node is expected to fetch or push; None if that is now.

        Transfers in flight are not considered: `Activity` knows when they end.
        """
        active_since = [state.last for state in self._nodes.values() if self._is_active(state)]
        return max(active_since) + SETTLED_SECONDS - self._now() if active_since else None

    def changes_in(self) -> float | None:
        """Return the seconds until pulls may change without an event; None if they will not."""
        now = self._now()
        settles = self.settles_in()
        moments = [] if settles is None else [settles]
        waits = [until - now for pulls in self._interrupted.values() for until in pulls.values()]
        if max(waits, default=0) <= 0:
            self._interrupted.clear()
        return min((*moments, *(wait for wait in waits if wait > 0)), default=None)

    def _is_active(self, state: _Node) -> bool:
        now = self._now()
        if now - state.last >= SETTLED_SECONDS:
            return False
        if state.pushed is not None and now - state.pushed < SETTLED_SECONDS:
            return True
        return next(reversed(state.expected.values()), -math.inf) > now - EXPECTATION_SECONDS

    def _touch(self, node: str) -> _Node | None:
        """Return a node's state, made if there is room; the last touched stands last."""
        state = self._nodes.pop(node, None)
        if state is None:
            if len(self._nodes) >= MAX_NODES and not self._drop_idle():
                return None
            # A node that was dropped and comes back must not reuse a version.
            state = _Node(version=self._dropped)
        self._nodes[node] = state
        state.last = self._now()
        state.version += 1
        return state

    def _drop_idle(self) -> bool:
        """Drop the node that has been silent longest, if nothing is expected of it."""
        node, state = next(iter(self._nodes.items()))
        if state.in_flight or self._now() - state.last < SETTLED_SECONDS:
            return False
        del self._nodes[node]
        self._dropped = max(self._dropped, state.version)
        return True
