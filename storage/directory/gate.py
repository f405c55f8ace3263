"""Keeps garbage collection from taking what a push is about to refer to.

Whoever makes content referenced (a finished upload, a mount, a manifest) passes the gate together
with others; whoever removes unreferenced content passes it alone, one blob at a time, and so does
whoever deletes a manifest or a tag. The gate is a lock on a directory, so it also holds between a
server and a command at work on the same root.

Before it is a turnstile. Locks are given to whoever fits, in no order: pushes that overlap would
keep the gate for ever from who must pass it alone. That one closes the turnstile while it waits.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        with _held(self._turnstile, fcntl.LOCK_SH):
            pass
        with _held(self._directory, fcntl.LOCK_SH):
            yield

    @contextmanager
    def removing(self) -> Iterator[None]:
        """While content is removed; alone."""
        with _held(self._turnstile, fcntl.LOCK_EX), _held(self._directory, fcntl.LOCK_EX):
            yield


@contextmanager
def _held(directory: Path, kind: int) -> Iterator[None]:
    # A descriptor of its own for each holder: flock belongs to the open file, not the thread.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)
