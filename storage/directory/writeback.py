"""Background fdatasync(2) of files that grow, while their uploads continue.

The final sync then has little left to write. Telling the kernel to begin (sync_file_range(2)) is
not enough: a disk with a cache of its own takes the bytes at once, and only writes them when it is
told to flush.
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import Future, ThreadPoolExecutor

STEP = 8 * 1024 * 1024
"""Bytes after which a file is synced again."""


class Writeback:
    """One thread for all files of a store, as they share a disk. It starts with the first file."""

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
        """Wait for the running sync and cancel the others; afterwards none can be begun."""
        self._thread.shutdown(cancel_futures=True)


class FileSync:
    """The background sync of one file.

    At most one sync of a file waits or runs, so a slow disk gets fewer of them.
    """

    def __init__(self, writeback: Writeback) -> None:
        self._writeback = writeback
        self._last: Future[None] | None = None
        self._reached = 0

    def check(self) -> None:
        """Fail if a finished sync lost bytes of the file, to which nothing may be added then.

        Raises:
            OSError: see `wait`.
        """
        if self._last is not None and self._last.done():
            self._last.result()

    def written(self, descriptor: int, size: int) -> None:
        """Begin a sync if the file, which has ``size`` bytes now, has grown by `STEP`."""
        if size - self._reached < STEP:
            return
        if self._last is not None and (not self._last.done() or self._last.exception()):
            return
        with contextlib.suppress(OSError, RuntimeError):  # then the final sync has more to write
            self._last = self._writeback.begin(descriptor)
            self._reached = size

    def wait(self) -> None:
        """Wait for the running sync; one that has not begun is left to the final sync.

        Raises:
            OSError: bytes could not be written. Linux reports that once, and drops them: a later
                sync of the same file may well succeed.
        """
        self.cancel()
        if self._last is not None:
            self._last.result()

    def cancel(self) -> None:
        """Cancel a sync that has not begun."""
        if self._last is not None and self._last.cancel():
            self._last = None


def _sync(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    except OSError:
        # A process that opens the file from now on gets no error: the file must not look whole.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
        raise
