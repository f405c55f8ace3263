"""Pulls and pushes that are under way, as far as requests show it.

A pull is several requests with nothing to join them but the node that makes them: HEAD of a tag,
GET of an index, GET of one of its children, then a GET for each blob the node lacks. Between two
of them nothing is in flight, and yet the node is not done. What it is still *expected* to ask for
is known from what it got:

    HEAD of a manifest         expects a GET of it      (a warm node stops here)
    GET of an index            expects a child of it
    GET of an image manifest   expects its blobs        (those the node has are never asked for)
    blob arrived whole         expects nothing more of it

A node may rightly never ask for what is expected of it, so expectation ends when the node was
silent for `SETTLED`, and for one manifest after `PATIENCE` at the latest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

from mayfly.registry.coverage.contents import Contents
from mayfly.registry.lifecycle.activity import Pulse

SETTLED = 5.0
"""Seconds without an event of a node after which nothing more is expected of it. Clients go from
one request of a pull to the next at once; what may lie between is a login or a slow disk."""

PATIENCE = 600.0
"""Seconds after which a node that pulls other things is no longer expected to fetch a blob."""

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
    NONE = "none"
    """It is part of neither."""


@dataclass(slots=True)
class _Node:
    last: float = 0.0
    expected: dict[str, float] = field(default_factory=dict)
    """Digest → when it was expected first."""
    parents: dict[str, dict[str, None]] = field(default_factory=dict)
    """Child → the indexes it was named by, while a child is expected."""
    known: set[tuple[str, str]] = field(default_factory=set)
    """(repository, manifest digest) that a pull of this node may ask for again."""
    flying: dict[str, int] = field(default_factory=dict)
    """Blob → transfers of it in flight."""
    pushed: float | None = None
    version: int = 0

    def expect(self, digest: str) -> None:
        """The node is to ask for this; what was expected last comes last."""
        self.expected.pop(digest, None)
        self.expected[digest] = self.last


class Pulls:
    """What each node is in the middle of. Nothing of it outlives the process.

    Args:
        now: seconds, monotonic.
        changed: told when a transfer ends.
    """

    def __init__(self, now: Callable[[], float], changed: Pulse) -> None:
        self._now = now
        self._changed = changed
        self._nodes: dict[str, _Node] = {}
        self._dropped = 0
        """The highest version of a node that was dropped."""

    def manifest(
        self, node: str, repository: str, digest: str, contents: Contents, *, head: bool
    ) -> None:
        """A manifest was served to a node."""
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
        # An index may name the same child many times.
        for child in islice(dict.fromkeys(contents.children), _MAX_EXPECTED):
            state.known.add((repository, child))
            state.parents.setdefault(child, {})[digest] = None
        if contents.children:
            state.expect(digest)
        for blob in islice(dict.fromkeys(contents.blobs), _MAX_EXPECTED):
            state.expect(blob)

    def blob_begun(self, node: str, digest: str) -> None:
        """Bytes of a blob began to flow to a node. `blob_ended` follows."""
        state = self._touch(node)
        if state is not None:
            state.flying[digest] = state.flying.get(digest, 0) + 1

    def blob_ended(self, node: str, digest: str, *, whole: bool) -> None:
        """They no longer flow. ``whole``: the node has all of the blob now."""
        state = self._touch(node)
        if state is not None:
            left = state.flying.get(digest, 1) - 1
            if left:
                state.flying[digest] = left
            else:
                state.flying.pop(digest, None)
                if whole:
                    state.expected.pop(digest, None)
        self._changed.happened()

    def push(self, node: str) -> None:
        """A node took a step of a push."""
        state = self._touch(node)
        if state is not None:
            state.pushed = state.last

    def push_over(self, node: str) -> None:
        """A node took the last step of a push."""
        state = self._touch(node)
        if state is not None:
            state.pushed = None

    def busy(self, node: str, digests: Collection[str]) -> bool:
        """Whether a node is fetching, or about to fetch, some of this content."""
        state = self._nodes.get(node)
        if state is None:
            return False
        if not state.flying.keys().isdisjoint(digests):
            return True
        if not state.flying and self._now() - state.last >= SETTLED:
            return False
        since = self._now() - PATIENCE
        expected = state.expected
        if len(expected) <= len(digests):
            return any(begun > since and digest in digests for digest, begun in expected.items())
        return any(expected.get(digest, since) > since for digest in digests)

    def version(self, node: str) -> int:
        """A number that changes with every event of a node."""
        state = self._nodes.get(node)
        return 0 if state is None else state.version

    def knows(self, node: str, repository: str, digest: str) -> bool:
        """Whether a manifest belongs to a pull that the node has begun."""
        state = self._nodes.get(node)
        return state is not None and (repository, digest) in state.known

    def pushing(self, node: str) -> bool:
        """Whether a node is in the middle of a push."""
        state = self._nodes.get(node)
        if state is None or state.pushed is None:
            return False
        return self._now() - state.pushed < SETTLED

    def settles_in(self) -> float | None:
        """Seconds until no node is about to fetch or push anything; None when that is now.

        Transfers in flight are not looked at: `Activity` knows when they end.
        """
        open_since = [state.last for state in self._nodes.values() if self._open(state)]
        return max(open_since) + SETTLED - self._now() if open_since else None

    def _open(self, state: _Node) -> bool:
        now = self._now()
        if now - state.last >= SETTLED:
            return False
        if state.pushed is not None and now - state.pushed < SETTLED:
            return True
        return next(reversed(state.expected.values()), -math.inf) > now - PATIENCE

    def _touch(self, node: str) -> _Node | None:
        """The node's state, made if there is room for one more; the last touched comes last."""
        state = self._nodes.pop(node, None)
        if state is None:
            if len(self._nodes) >= MAX_NODES and not self._drop_idle():
                return None
            # Of a node that was dropped and comes back no version is used twice.
            state = _Node(version=self._dropped)
        self._nodes[node] = state
        state.last = self._now()
        state.version += 1
        return state

    def _drop_idle(self) -> bool:
        """Make room by the node that has been silent longest, if nothing is expected of it."""
        node, state = next(iter(self._nodes.items()))
        if state.flying or self._now() - state.last < SETTLED:
            return False
        del self._nodes[node]
        self._dropped = max(self._dropped, state.version)
        return True
