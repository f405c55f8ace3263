"""Has growing files brought to the disk behind whoever writes them.

The sync in the end then has little left to wait for. To tell the kernel to begin is not enough: a
disk with a cache of its own takes the bytes at once, and does its work when it is told to flush.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

STEP = 8 * 1024 * 1024
"""Bytes that are worth a sync of their own."""


class Writeback:
    """One thread for all files of a store, as they share a disk. It starts with the first."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writeback")

    def begin(self, descriptor: int) -> Future[None]:
        """Sync a file, from a duplicate of its descriptor; the future has the error, if any."""
        return self._thread.submit(_sync, os.dup(descriptor))

    def close(self) -> None:
        """Wait for what is under way; nothing may be begun any more."""
        self._thread.shutdown()


class Behind:
    """One growing file. At most one sync of it waits or runs, so a slow disk gets fewer of them."""

    def __init__(self, writeback: Writeback) -> None:
        self._writeback = writeback
        self._last: Future[None] | None = None
        self._reached = 0

    def grown(self, descriptor: int, size: int) -> None:
        """The file has ``size`` bytes now."""
        if size - self._reached < STEP:
            return
        if self._last is None or (self._last.done() and not self._last.exception()):
            self._reached = size
            self._last = self._writeback.begin(descriptor)

    def settle(self) -> None:
        """Wait for the sync that is under way.

        Raises:
            OSError: bytes could not be written. Linux tells of that once, and drops them: a later
                sync of the same file may well succeed.
        """
        if self._last is not None:
            self._last.result()


def _sync(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
