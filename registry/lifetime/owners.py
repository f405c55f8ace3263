"""From a blob to the manifests above it, among those that a node was served.

A request for a blob does not say which image it belongs to. It counts as part of a pull if it lies
below a manifest that the node was served before, in the same repository; whatever else a client
asks for is nobody's, and is not recorded.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from registry.lifetime.contents import Contained
from registry.lifetime.ledger import Ledger

_MAX_LINKS = 100_000
"""Links from content to the manifests above it that are kept, some 500 bytes each; they are read
again when needed. A thousand images of sixty layers have as many as 60,000."""

_MAX_WALKED = 10_000

_MAX_READS = 200
"""Manifests read at once, on the event loop."""

_MAX_VISITED = 1000
"""Manifests above one blob that are looked at. A base layer that more images share is credited to
some of them."""

Key = tuple[str, str]


class Owners:
    """Finds the manifests above blobs.

    Args:
        ledger: knows which manifests a node was served.
        contained: what manifests refer to.
    """

    def __init__(self, ledger: Ledger, contained: Contained) -> None:
        self._ledger = ledger
        self._contained = contained
        self._above: dict[Key, dict[str, None]] = {}
        self._seen: set[Key] = set()
        self._links = 0
        self._walked: dict[tuple[str, str], int] = {}
        """Node and repository → how many pulls the node had when all of them were read."""

    def learn(self, repository: str, digest: str) -> None:
        """Remember the content of a manifest that was served."""
        key = repository, digest
        if key in self._seen:
            return
        contents = self._contained.find(repository, digest)
        if contents is None:
            return
        named = dict.fromkeys((*contents.children, *contents.blobs))
        if self._links + len(named) > _MAX_LINKS:
            self._above.clear()
            self._seen.clear()
            self._walked.clear()
            self._links = 0
        self._links += len(named)
        self._seen.add(key)
        for one in named:
            self._above.setdefault((repository, one), {})[digest] = None

    def of(self, node: str, repository: str, digest: str) -> list[str]:
        """Digests of the manifests above a blob that a node was served; nearest first."""
        self._learn_all(node, repository)
        return self._find(node, repository, digest)

    def _find(self, node: str, repository: str, digest: str) -> list[str]:
        pulls = self._ledger.pulls(node)
        visited: dict[str, None] = {}
        waiting = deque([digest])
        while waiting and len(visited) < _MAX_VISITED:
            above = self._above.get((repository, waiting.popleft()), {})
            new = [one for one in islice(above, _MAX_VISITED) if one not in visited]
            visited.update(dict.fromkeys(new))
            waiting += new
        return [one for one in visited if (repository, one) in pulls]

    def _learn_all(self, node: str, repository: str) -> None:
        """Read what a node was served and is not remembered: after a restart, and the children of
        an index that the node did not ask for."""
        pulls = self._ledger.pulls(node)
        if self._walked.get((node, repository)) == len(pulls):
            return
        if len(self._walked) >= _MAX_WALKED:
            self._walked.clear()
        self._walked[node, repository] = len(pulls)
        # Newest first: the node is most likely pulling the manifest it asked for last.
        asked = (digest for where, digest in reversed([*pulls]) if where == repository)
        waiting = deque(islice(asked, _MAX_READS))
        seen = set(waiting)
        for _ in range(_MAX_READS):
            if not waiting:
                break
            manifest = waiting.popleft()
            self.learn(repository, manifest)
            children = islice(self._contained.of(repository, manifest).children, _MAX_READS)
            new = [child for child in children if child not in seen]
            seen.update(new)
            waiting += new
