"""What manifests refer to: an index its children, an image its blobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_MAX_DESCENDANTS = 10_000
"""Beyond so many an index is only partly followed; the largest real ones name hundreds."""

_MAX_CACHED = 4096


@dataclass(frozen=True, slots=True)
class Contents:
    """The digests that one manifest names."""

    children: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()


NO_CONTENTS = Contents()


class Contained:
    """Contents of manifests, each read once.

    Args:
        read: repository and digest → contents, None if there is no such manifest. Called on the
            event loop, so it must be quick: a small file, read and parsed.
    """

    def __init__(self, read: Callable[[str, str], Contents | None]) -> None:
        self._read = read
        self._known: dict[tuple[str, str], Contents] = {}
        self._below: dict[tuple[str, str], frozenset[str]] = {}

    def find(self, repository: str, digest: str) -> Contents | None:
        """What one manifest names, None if it is not there."""
        known = self._known.get((repository, digest))
        if known is None:
            known = self._read(repository, digest)
            if known is None:
                return None
            if len(self._known) >= _MAX_CACHED:
                self._known.clear()
            self._known[repository, digest] = known
        return known

    def of(self, repository: str, digest: str) -> Contents:
        """What one manifest names; nothing if it is not there."""
        return self.find(repository, digest) or NO_CONTENTS

    def below(self, repository: str, digest: str) -> frozenset[str]:
        """A manifest's own digest and that of everything under it."""
        known = self._below.get((repository, digest))
        if known is None:
            found = {digest}
            waiting = [digest]
            while waiting and len(found) < _MAX_DESCENDANTS:
                contents = self.of(repository, waiting.pop())
                waiting += [child for child in contents.children if child not in found]
                found.update(contents.children, contents.blobs)
            known = frozenset(found)
            # Alone it may only not be there yet.
            if len(known) > 1:
                if len(self._below) >= _MAX_CACHED:
                    self._below.clear()
                self._below[repository, digest] = known
        return known
