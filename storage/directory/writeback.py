"""Has growing files brought to the disk behind whoever writes them.

The sync in the end then has little left to wait for. To tell the kernel to begin is not enough: a
disk with a cache of its own takes the bytes at once, and does its work when it is told to flush.
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import Future, ThreadPoolExecutor

STEP = 8 * 1024 * 1024
"""Bytes that are worth a sync of their own."""


class Writeback:
    """One thread for all files of a store, as they share a disk. It starts with the first."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writeback")

    def begin(self, descriptor: int) -> Future[None]:
        """Sync a file, from a duplicate of its descriptor; the future has the error, if any.

        Raises:
            OSError, RuntimeError: there is no descriptor or no thread for it.
        """
        own = os.dup(descriptor)
        try:
            future = self._thread.submit(_sync, own)
        except RuntimeError:
            os.close(own)
            raise
        future.add_done_callback(lambda done: os.close(own))
        return future

    def close(self) -> None:
        """Wait for the sync that runs, and drop the others; none may be begun any more."""
        self._thread.shutdown(cancel_futures=True)


class Behind:
    """One growing file. At most one sync of it waits or runs, so a slow disk gets fewer of them."""

    def __init__(self, writeback: Writeback) -> None:
        self._writeback = writeback
        self._last: Future[None] | None = None
        self._reached = 0

    def check(self) -> None:
        """Nothing is to be added to a file that lost bytes.

        Raises:
            OSError: see `settle`.
        """
        if self._last is not None and self._last.done():
            self._last.result()

    def grown(self, descriptor: int, size: int) -> None:
        """The file has ``size`` bytes now."""
        if size - self._reached < STEP:
            return
        if self._last is not None and (not self._last.done() or self._last.exception()):
            return
        with contextlib.suppress(OSError, RuntimeError):  # then the sync in the end has more to do
            self._last = self._writeback.begin(descriptor)
            self._reached = size

    def settle(self) -> None:
        """Wait for the sync that runs; one that has not begun is left to the sync in the end.

        Raises:
            OSError: bytes could not be written. Linux tells of that once, and drops them: a later
                sync of the same file may well succeed.
        """
        self.drop()
        if self._last is not None:
            self._last.result()

    def drop(self) -> None:
        """Take back a sync that has not begun."""
        if self._last is not None and self._last.cancel():
            self._last = None


def _sync(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    except OSError:
        # Whoever opens the file from now on is not told: nobody may take it for whole.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
        raise
