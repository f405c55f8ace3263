"""From a blob to the manifests above it, among those that a node was served.

A request for a blob does not say which image it belongs to. It counts as part of a pull if it lies
below a manifest that the node was served before, in the same repository; whatever else a client
asks for is nobody's, and is not recorded.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from mayfly.registry.coverage.contents import NO_CONTENTS, Contained, Contents
from mayfly.registry.coverage.ledger import Ledger

_MAX_LINKS = 100_000
"""Links from content to the manifests above it that are kept, some 500 bytes each; they are read
again when needed. A thousand images of sixty layers have as many as 60,000."""

_MAX_WALKED = 10_000

_MAX_READS = 200
"""Manifests read for one request."""

_MAX_NAMED = 20_000
"""Digests in them: one manifest may name 10,000."""

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
        self._seen: dict[Key, Contents] = {}
        self._links = 0
        self._walked: dict[tuple[str, str], int] = {}
        """Node and repository → how many pulls the node had when all of them were read."""

    def learn(self, repository: str, digest: str, contents: Contents) -> None:
        """Quick. Remember the content of a manifest."""
        key = repository, digest
        if key in self._seen:
            return
        named = dict.fromkeys((*contents.children, *contents.blobs))
        if self._links + len(named) > _MAX_LINKS:
            self._above.clear()
            self._seen.clear()
            self._walked.clear()
            self._links = 0
        self._links += len(named)
        self._seen[key] = contents
        for one in named:
            self._above.setdefault((repository, one), {})[digest] = None

    def has_config(self, repository: str, digest: str, blob: str) -> bool:
        """Quick. Whether a blob is the config of a manifest that is remembered."""
        return self._seen.get((repository, digest), NO_CONTENTS).blobs[:1] == (blob,)

    def of(self, node: str, repository: str, digest: str) -> list[str]:
        """Quick. Digests of the manifests above a blob that a node was served; nearest first."""
        pulls = self._ledger.pulls(node)
        visited: dict[str, None] = {}
        waiting = deque([digest])
        while waiting and len(visited) < _MAX_VISITED:
            above = self._above.get((repository, waiting.popleft()), {})
            new = [one for one in islice(above, _MAX_VISITED) if one not in visited]
            visited.update(dict.fromkeys(new))
            waiting += new
        return [one for one in visited if (repository, one) in pulls]

    def unread(self, node: str, repository: str) -> list[str]:
        """Quick. Manifests that a node was served, or children of them, that are not remembered.

        There are some after a restart, and those of an index that the node did not ask for.
        """
        pulls = self._ledger.pulls(node)
        if self._walked.get((node, repository)) == len(pulls):
            return []
        # Newest first: the node is most likely pulling the manifest it asked for last.
        asked = (digest for where, digest in reversed([*pulls]) if where == repository)
        waiting = deque(islice(asked, _MAX_READS))
        seen = set(waiting)
        found = []
        for _ in range(_MAX_READS):
            if not waiting:
                break
            manifest = waiting.popleft()
            known = self._seen.get((repository, manifest))
            if known is None:
                found.append(manifest)
                continue
            new = [one for one in islice(known.children, _MAX_READS) if one not in seen]
            seen.update(new)
            waiting += new
        if not found:
            self.were_read(node, repository)
        return found

    def were_read(self, node: str, repository: str) -> None:
        """Quick. What was `unread` is remembered now, as far as it can be."""
        if len(self._walked) >= _MAX_WALKED:
            self._walked.clear()
        self._walked[node, repository] = len(self._ledger.pulls(node))

    def read(self, repository: str, digests: list[str]) -> dict[str, Contents]:
        """Slow. Manifests and those below them, as far as one request may have them read."""
        found: dict[str, Contents] = {}
        named = 0
        waiting = deque(digests)
        seen = set(digests)
        for _ in range(_MAX_READS):
            if not waiting or named > _MAX_NAMED:
                break
            digest = waiting.popleft()
            contents = self._contained.find(repository, digest)
            if contents is None:
                continue
            found[digest] = contents
            named += len(contents.children) + len(contents.blobs)
            new = [one for one in islice(contents.children, _MAX_READS) if one not in seen]
            seen.update(new)
            waiting += new
        return found
