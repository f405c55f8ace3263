"""The references between manifests: an index names its children, an image its blobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from mayfly.storage.sized_cache import SizedCache

_MAX_DESCENDANTS = 10_000
"""An index with more descendants is followed in part; the largest real ones have hundreds."""

_MAX_BYTES = 8 * 1024 * 1024
"""For the references of manifests, and as much again for closures: some 1000 images."""

_WALK_SECONDS = 2.0
"""For reading the descendants of one manifest: others wait meanwhile."""

_MAX_ABSENT = 20_000
"""Manifests that are named and not there, whose arrival is waited for."""

_DIGEST_BYTES = 130
"""Memory of a digest as text."""

_CLOSURE_DIGEST_BYTES = 200
"""Memory of a digest in a set."""


class ManifestRefs(NamedTuple):
    """The digests that one manifest names, each once."""

    children: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()


NO_REFS = ManifestRefs()


def size_of(refs: ManifestRefs) -> int:
    """Return the approximate memory of references in bytes."""
    return (len(refs.children) + len(refs.blobs)) * _DIGEST_BYTES


class ManifestGraph:
    """The references of manifests, each read once and cached while memory for them lasts.

    Manifests may have megabytes, and the cache drops the least recently used ones. So methods that
    read run in worker threads; the event loop calls `cached`, `cached_closure`, `cached_complete`,
    `has_closure` and `add` only.

    Args:
        read: repository and digest → references; None if there is no such manifest.
    """

    def __init__(self, read: Callable[[str, str], ManifestRefs | None]) -> None:
        self._read = read
        self._refs: SizedCache[tuple[str, str], ManifestRefs] = SizedCache(_MAX_BYTES, size_of)
        self._closures = _closures()

        self._absent: dict[tuple[str, str], set[str]] = {}
        """An absent manifest → the manifests whose cached closures lack its references."""

    def cached(self, repository: str, digest: str) -> ManifestRefs | None:
        """Return the references of one manifest; None if they are not in memory. Quick."""
        return self._refs.get((repository, digest))

    def cached_closure(self, repository: str, digest: str) -> frozenset[str] | None:
        """Return the same as `closure`; None if it is not in memory. Quick."""
        found = self._closures.get((repository, digest))
        if found is None and self.has_closure(repository, digest):
            found = _digests({digest: self._refs.get((repository, digest)) or NO_REFS})
        return found

    def find(self, repository: str, digest: str) -> ManifestRefs | None:
        """Return the references of one manifest; None if it does not exist. May read."""
        known = self._refs.get((repository, digest))
        return known if known is not None else self._read_one(repository, digest)

    def _read_one(self, repository: str, digest: str) -> ManifestRefs | None:
        found = self._read(repository, digest)
        if found is not None:
            self.add(repository, digest, found)
        return found

    def of(self, repository: str, digest: str) -> ManifestRefs:
        """Return the references of one manifest; none if it does not exist. May read."""
        return self.find(repository, digest) or NO_REFS

    def closure(self, repository: str, digest: str) -> frozenset[str]:
        """Return the digests of a manifest and of everything under it. May read.

        A walk that takes too long is cut short; each further call continues it.
        """
        known = self._closures.get((repository, digest))
        if known is not None:
            return known
        until = time.monotonic() + _WALK_SECONDS
        in_time = True
        absent: list[str] = []

        def refs_of(one: str) -> ManifestRefs:
            nonlocal in_time
            found = self._refs.get((repository, one))
            if found is None:
                in_time = time.monotonic() < until
                found = self._read_one(repository, one) if in_time else None
                if found is None:
                    absent.append(one)
            return found or NO_REFS

        found = _digests(_walk(digest, refs_of))
        # A manifest that is alone may not be pushed yet.
        if len(found) > 1 and in_time:
            self._closures.put((repository, digest), found)
            self._await_absent(repository, digest, absent)
        return found

    def _await_absent(self, repository: str, digest: str, absent: list[str]) -> None:
        """Drop a closure once a manifest arrives that it lacks: it comes from an upstream."""
        if len(self._absent) + len(absent) > _MAX_ABSENT:
            self._absent.clear()
            self._closures = _closures()
            return
        for one in absent:
            self._absent.setdefault((repository, one), set()).add(digest)
        if any(self._refs.get((repository, one)) is not None for one in absent):
            self._closures.pop((repository, digest))  # it came meanwhile

    def has_closure(self, repository: str, digest: str) -> bool:
        """Whether a manifest and everything under it is in memory. Quick."""
        if self._closures.get((repository, digest)) is not None:
            return True
        known = self._refs.get((repository, digest))
        return known is not None and not known.children

    def cached_complete(self, repository: str, digest: str) -> ManifestRefs | None:
        """Return the references of one manifest if its closure is also in memory. Quick."""
        known = self._refs.get((repository, digest))
        if known is None or (known.children and self._closures.get((repository, digest)) is None):
            return None
        return known

    def add(self, repository: str, digest: str, refs: ManifestRefs) -> None:
        """Cache the references of a manifest that the caller has read. Quick."""
        self._refs.put((repository, digest), refs)
        for above in self._absent.pop((repository, digest), ()):
            self._closures.pop((repository, above))


def _closures() -> SizedCache[tuple[str, str], frozenset[str]]:
    return SizedCache(_MAX_BYTES, lambda closure: len(closure) * _CLOSURE_DIGEST_BYTES)


def _walk(root: str, refs_of: Callable[[str], ManifestRefs]) -> dict[str, ManifestRefs]:
    """Return a manifest and its descendants with their references, each read once."""
    found: dict[str, ManifestRefs] = {}
    waiting = [root]
    seen = {root}
    while waiting and len(seen) < _MAX_DESCENDANTS:
        digest = waiting.pop()
        found[digest] = refs = refs_of(digest)
        waiting += [child for child in refs.children if child not in seen]
        seen.update(refs.children, refs.blobs)
    return found


def _digests(manifests: dict[str, ManifestRefs]) -> frozenset[str]:
    """Return the digests of manifests and of everything they name."""
    named = (refs.children + refs.blobs for refs in manifests.values())
    return frozenset(manifests).union(*named)
