"""A cache bounded by bytes: strangers choose how large the values are, not only how many."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

ENTRY = 200
"""Bytes that an entry takes beside what `size_of` counts: its key, its place in the table."""


class SizedCache(Generic[K, V]):
    """Values that take at most so many bytes together; the least recently used are dropped first.

    A value larger than the whole budget is not kept. Safe for use from several threads.

    Args:
        max_bytes: for all values.
        size_of: the bytes that a value takes, estimated.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[V], int]) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes that the values take."""
        return self._size

    def get(self, key: K) -> V | None:
        """A value, which counts as used now; None where there is none."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V) -> None:
        """Keep a value, measured now, in the place of the one that the key had."""
        size = self._size_of(value) + ENTRY
        with self._lock:
            self._remove(key)
            if size > self._max_bytes:
                return
            self._entries[key] = value, size
            self._size += size
            while self._size > self._max_bytes:
                self._remove(next(iter(self._entries)))

    def pop(self, key: K) -> None:
        """Drop a value if there is one."""
        with self._lock:
            self._remove(key)

    def _remove(self, key: K) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self._size -= found[1]
