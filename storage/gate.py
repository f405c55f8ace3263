"""Keeps garbage collection from taking what a push is about to refer to.

Whoever makes content referenced (a finished upload, a mount, a manifest) passes the gate together
with others; whoever removes unreferenced content passes it alone, one blob at a time. The gate is a
lock on a directory, so it also holds between a server and a command at work on the same root.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Gate:
    """A shared and exclusive lock on a directory, for threads and processes alike."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def referring(self) -> Iterator[None]:
        """While content becomes referenced; any number at a time."""
        with self._held(fcntl.LOCK_SH):
            yield

    @contextmanager
    def removing(self) -> Iterator[None]:
        """While unreferenced content is removed; alone."""
        with self._held(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _held(self, kind: int) -> Iterator[None]:
        # A descriptor of its own for each holder: flock belongs to the open file, not the thread.
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)
