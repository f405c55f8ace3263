"""A lock that keeps garbage collection from content that a push is about to refer to.

Operations that make content referenced (a finished upload, a mount, a manifest) pass the gate
together; operations that remove unreferenced content, one blob at a time, or delete a manifest or a
tag pass it alone. The gate is a lock on a directory, so it also holds between a server and a
command that runs on the same root.

Before the gate is a turnstile. flock(2) is unfair: pushes that overlap could starve a removal
forever. A removal holds the turnstile while it waits, so that no further push can enter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mayfly.storage.files import locked


class Gate:
    """A shared and exclusive lock, for threads and processes alike.

    Args:
        directory: that is locked.
        turnstile: another, which nothing else locks for long.
    """

    def __init__(self, directory: Path, turnstile: Path) -> None:
        self._directory = directory
        self._turnstile = turnstile

    @contextmanager
    def referring(self) -> Iterator[None]:
        """While content becomes referenced; any number at a time. Not to be nested."""
        with locked(self._turnstile, shared=True):
            pass
        with locked(self._directory, shared=True):
            yield

    @contextmanager
    def removing(self) -> Iterator[None]:
        """While content is removed; alone."""
        with locked(self._turnstile), locked(self._directory):
            yield
