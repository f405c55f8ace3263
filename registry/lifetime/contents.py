"""What manifests refer to: an index its children, an image its blobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from storage.sized_cache import SizedCache

_MAX_DESCENDANTS = 10_000
"""Beyond so many an index is only partly followed; the largest real ones name hundreds."""

_MAX_BYTES = 8 * 1024 * 1024
"""For the contents of manifests, and as much again for their descendants: some 1000 images."""

_MAX_READS = 200
"""Manifests read in one call on the event loop; later calls find more descendants."""

_DIGEST = 130
"""Bytes that a digest takes as text."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The digests that one manifest names, each once."""

    children: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()


NO_CONTENTS = Contents()


def size_of(contents: Contents) -> int:
    """The bytes that contents take, roughly."""
    return (len(contents.children) + len(contents.blobs)) * _DIGEST


Below = dict[str, Contents]
"""A manifest and its descendants, and the contents of each."""


class Contained:
    """Contents of manifests, each read once while memory for them lasts.

    Args:
        read: repository and digest → contents, None if there is no such manifest. Called on the
            event loop, so it must be quick: a small file, read and parsed.
    """

    def __init__(self, read: Callable[[str, str], Contents | None]) -> None:
        self._read = read
        self._known: SizedCache[tuple[str, str], Contents] = SizedCache(_MAX_BYTES, size_of)
        self._below: SizedCache[tuple[str, str], frozenset[str]] = SizedCache(
            _MAX_BYTES, lambda found: len(found) * (_DIGEST + 70)
        )

    def find(self, repository: str, digest: str) -> Contents | None:
        """What one manifest names, None if it is not there."""
        known = self._known.get((repository, digest))
        if known is None:
            known = self._read(repository, digest)
            if known is not None:
                self._known.put((repository, digest), known)
        return known

    def of(self, repository: str, digest: str) -> Contents:
        """What one manifest names; nothing if it is not there."""
        return self.find(repository, digest) or NO_CONTENTS

    def below(self, repository: str, digest: str) -> frozenset[str]:
        """A manifest's own digest and that of everything under it.

        Of an index with very many children that nobody has asked for yet, this finds more each
        time it is called; see `explore`.
        """
        known = self._below.get((repository, digest))
        if known is not None:
            return known
        reads = _MAX_READS

        def contents_of(one: str) -> Contents:
            nonlocal reads
            if reads == 0:
                return self._known.get((repository, one)) or NO_CONTENTS
            reads -= self._known.get((repository, one)) is None
            return self.of(repository, one)

        found = _joined(_walk(digest, contents_of))
        # Alone it may only not be there yet.
        if len(found) > 1 and reads:
            self._below.put((repository, digest), found)
        return found

    def knows(self, repository: str, digest: str) -> bool:
        """Whether a manifest and everything below it is known without reading anything."""
        if self._below.get((repository, digest)) is not None:
            return True
        known = self._known.get((repository, digest))
        return known is not None and not known.children

    def learn(self, repository: str, digest: str, contents: Contents) -> None:
        """Take note of a manifest that was read anyway."""
        self._known.put((repository, digest), contents)

    def explore(self, repository: str, digest: str) -> None:
        """Find all descendants of a manifest. Slow: call it in a thread, before `below`."""
        found = _walk(digest, lambda one: self.of(repository, one))
        if len(found) > 1:
            self._below.put((repository, digest), _joined(found))


def _walk(root: str, contents_of: Callable[[str], Contents]) -> Below:
    """Return a manifest and its descendants with their contents, each read once."""
    found: Below = {}
    waiting = [root]
    seen = {root}
    while waiting and len(seen) < _MAX_DESCENDANTS:
        digest = waiting.pop()
        found[digest] = contents = contents_of(digest)
        waiting += [child for child in contents.children if child not in seen]
        seen.update(contents.children, contents.blobs)
    return found


def _joined(below: Below) -> frozenset[str]:
    return frozenset(below).union(*(one.children + one.blobs for one in below.values()))
