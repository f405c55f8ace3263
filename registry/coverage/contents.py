"""What manifests refer to: an index its children, an image its blobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mayfly.storage.sized_cache import SizedCache

_MAX_DESCENDANTS = 10_000
"""Beyond so many an index is only partly followed; the largest real ones name hundreds."""

_MAX_BYTES = 8 * 1024 * 1024
"""For the contents of manifests, and as much again for their descendants: some 1000 images."""

_WALK_SECONDS = 2.0
"""For reading what lies below one manifest: others wait meanwhile."""

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

    A manifest may be of megabytes, and what was read is dropped when much else is. So whatever
    reads is called in worker threads; the event loop asks `known` and `knows` only.

    Args:
        read: repository and digest → contents, None if there is no such manifest.
    """

    def __init__(self, read: Callable[[str, str], Contents | None]) -> None:
        self._read = read
        self._known: SizedCache[tuple[str, str], Contents] = SizedCache(_MAX_BYTES, size_of)
        self._below: SizedCache[tuple[str, str], frozenset[str]] = SizedCache(
            _MAX_BYTES, lambda found: len(found) * (_DIGEST + 70)
        )

    def known(self, repository: str, digest: str) -> Contents | None:
        """Quick. What one manifest names, None if that is not in memory."""
        return self._known.get((repository, digest))

    def known_below(self, repository: str, digest: str) -> frozenset[str] | None:
        """Quick. See `below`; None if that is not in memory."""
        found = self._below.get((repository, digest))
        if found is None and self.knows(repository, digest):
            found = _joined({digest: self._known.get((repository, digest)) or NO_CONTENTS})
        return found

    def find(self, repository: str, digest: str) -> Contents | None:
        """Slow. What one manifest names, None if it is not there."""
        known = self._known.get((repository, digest))
        return known if known is not None else self._read_one(repository, digest)

    def _read_one(self, repository: str, digest: str) -> Contents | None:
        found = self._read(repository, digest)
        if found is not None:
            self._known.put((repository, digest), found)
        return found

    def of(self, repository: str, digest: str) -> Contents:
        """Slow. What one manifest names; nothing if it is not there."""
        return self.find(repository, digest) or NO_CONTENTS

    def below(self, repository: str, digest: str) -> frozenset[str]:
        """Slow. A manifest's own digest and that of everything under it.

        Where reading takes too long, this finds more each time it is called.
        """
        known = self._below.get((repository, digest))
        if known is not None:
            return known
        until = time.monotonic() + _WALK_SECONDS
        in_time = True

        def contents_of(one: str) -> Contents:
            nonlocal in_time
            found = self._known.get((repository, one))
            if found is None:
                in_time = time.monotonic() < until
                found = self._read_one(repository, one) if in_time else None
            return found or NO_CONTENTS

        found = _joined(_walk(digest, contents_of))
        # Alone it may only not be there yet.
        if len(found) > 1 and in_time:
            self._below.put((repository, digest), found)
        return found

    def knows(self, repository: str, digest: str) -> bool:
        """Whether a manifest and everything below it is known without reading anything."""
        if self._below.get((repository, digest)) is not None:
            return True
        known = self._known.get((repository, digest))
        return known is not None and not known.children

    def known_whole(self, repository: str, digest: str) -> Contents | None:
        """Quick. What one manifest names, where everything below it is known, too; else None."""
        known = self._known.get((repository, digest))
        if known is None or (known.children and self._below.get((repository, digest)) is None):
            return None
        return known

    def learn(self, repository: str, digest: str, contents: Contents) -> None:
        """Take note of a manifest that was read anyway."""
        self._known.put((repository, digest), contents)


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
