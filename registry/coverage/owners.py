"""The manifests above a blob, among those that a node was served.

A request for a blob does not name the image. It counts as part of a pull if the blob lies below a
manifest that the node was served before, in the same repository; other requests are not recorded.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from mayfly.auth.limits import BoundedDict
from mayfly.registry.coverage.facts import Facts, Key
from mayfly.registry.coverage.manifest_graph import NO_REFS, ManifestGraph, ManifestRefs

_MAX_LINKS = 100_000
"""Links from content to the manifests above it that are kept, some 500 bytes each; dropped ones are
read again when needed. A thousand images of sixty layers have 60,000."""

_MAX_READ_PULLS = 10_000

_MAX_READS = 200
"""Manifests read for one request."""

_MAX_DIGESTS = 20_000
"""Digests in the manifests that are read for one request: one may name 10,000."""

_MAX_VISITED = 1000
"""Manifests above one blob that are visited. A base layer of more images is credited to some of
them."""


class Owners:
    """Finds the manifests above blobs.

    Args:
        facts: the manifests that each node was served.
        graph: references of manifests.
    """

    def __init__(self, facts: Facts, graph: ManifestGraph) -> None:
        self._facts = facts
        self._graph = graph
        self._above: dict[Key, dict[str, None]] = {}
        self._refs: dict[Key, ManifestRefs] = {}
        self._links = 0
        self._read_pulls: BoundedDict[tuple[str, str], int] = BoundedDict(_MAX_READ_PULLS)
        """Node and repository → number of the node's pulls when all of them had been read."""

    def learn(self, repository: str, digest: str, refs: ManifestRefs) -> None:
        """Remember the references of a manifest. Quick."""
        key = repository, digest
        if key in self._refs:
            return
        named = dict.fromkeys((*refs.children, *refs.blobs))
        if self._links + len(named) > _MAX_LINKS:
            self._above.clear()
            self._refs.clear()
            self._read_pulls.clear()
            self._links = 0
        self._links += len(named)
        self._refs[key] = refs
        for one in named:
            self._above.setdefault((repository, one), {})[digest] = None

    def has_config(self, repository: str, digest: str, blob: str) -> bool:
        """Whether a blob is the config of a manifest that is remembered. Quick."""
        return self._refs.get((repository, digest), NO_REFS).blobs[:1] == (blob,)

    def of(self, node: str, repository: str, digest: str) -> list[str]:
        """Return the manifests above a blob that a node was served, nearest first. Quick."""
        pulls = self._facts.pulls(node)
        visited: dict[str, None] = {}
        waiting = deque([digest])
        while waiting and len(visited) < _MAX_VISITED:
            above = self._above.get((repository, waiting.popleft()), {})
            new = [one for one in islice(above, _MAX_VISITED) if one not in visited]
            visited.update(dict.fromkeys(new))
            waiting += new
        return [one for one in visited if (repository, one) in pulls]

    def unread(self, node: str, repository: str) -> list[str]:
        """Return manifests that a node was served, and children of these, that are not remembered.

        That is so after a restart, and for children that the node did not ask for. Quick.
        """
        pulls = self._facts.pulls(node)
        if self._read_pulls.get((node, repository)) == len(pulls):
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
            known = self._refs.get((repository, manifest))
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
        """Note that the `unread` manifests are remembered now, as far as they can be. Quick."""
        self._read_pulls[node, repository] = len(self._facts.pulls(node))

    def read(self, repository: str, digests: list[str]) -> dict[str, ManifestRefs]:
        """Return the references of manifests and of those below, up to a bound. May read."""
        found: dict[str, ManifestRefs] = {}
        named = 0
        waiting = deque(digests)
        seen = set(digests)
        for _ in range(_MAX_READS):
            if not waiting or named > _MAX_DIGESTS:
                break
            digest = waiting.popleft()
            refs = self._graph.find(repository, digest)
            if refs is None:
                continue
            found[digest] = refs
            named += len(refs.children) + len(refs.blobs)
            new = [one for one in islice(refs.children, _MAX_READS) if one not in seen]
            seen.update(new)
            waiting += new
        return found
