"""A cache of decompressed frames for all seekable zstd files of a server, and its bounds.

    sending, hashing ──► frame ──┬─ cached ─────────────────────────────────────┬──► bytes
                                 ├─ being decompressed in another thread: wait ─┤
                                 └─ wait for one of `_AT_ONCE` turns, decompress ┘

Clients choose which frames are read, and how slowly. So whatever their number:

- a frame is decompressed once for all that read it at the same time, and kept in a cache of
  `_MAX_CACHED` bytes;
- `_AT_ONCE` frames are decompressed at the same time, and those that wait to be sent wait in the
  order of their requests;
- decompressed bytes that wait for clients take `_MAX_UNSENT` bytes, and `_SMALLEST` for each
  further client.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from mayfly.storage.sized_cache import SizedCache

_MAX_CACHED = 48 * 1024 * 1024
_AT_ONCE = 2

_MAX_UNSENT = 16 * 1024 * 1024
_LARGEST = 1024 * 1024
_SMALLEST = 64 * 1024


class FramePool:
    """Decompresses, caches and counts frames for all readers. Safe for use from several threads.

    Attributes:
        threads: that decompress the content that is sent.
    """

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(_AT_ONCE, "frames")
        self._turns = threading.Semaphore(_AT_ONCE)
        self._cache: SizedCache[Hashable, bytes] = SizedCache(_MAX_CACHED, len)
        self._lock = threading.Lock()
        """Held for all below."""
        self._running: dict[Hashable, Future[bytes]] = {}
        self._unsent = 0

    def frame(self, key: Hashable, decompress: Callable[[], bytes]) -> bytes:
        """Return a frame: cached, or decompressed here or by a thread that has begun already.

        Args:
            key: of the frame.
            decompress: returns the frame; all readers that wait for it get its error.
        """
        with self._lock:
            known = self._cache.get(key)
            if known is not None:
                return known
            running = self._running.get(key)
            if running is None:
                made = self._running[key] = Future[bytes]()
        if running is not None:
            return running.result()
        try:
            with self._turns:
                found = decompress()
            self._cache.put(key, found)
            made.set_result(found)
        except BaseException as error:
            made.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._running[key]
        return found

    @contextmanager
    def unsent(self, wanted: int) -> Iterator[int]:
        """Claim memory for decompressed bytes until a client has received them; yield its size.

        Args:
            wanted: bytes; the size may be smaller, and is at most `_LARGEST`.
        """
        with self._lock:
            share = max(_SMALLEST, min(_LARGEST, _MAX_UNSENT - self._unsent))
            given = min(wanted, share)
            self._unsent += given
        try:
            yield given
        finally:
            with self._lock:
                self._unsent -= given
