"""A cache bounded by bytes, since clients choose how large the values are, not only how many."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

ENTRY = 200
"""Bytes that an entry takes besides its value: its key and its place in the table."""


class SizedCache(Generic[K, V]):
    """Values of at most ``max_bytes`` together; the least recently used are dropped first.

    A value larger than the whole budget is not kept. Safe for use from several threads.

    Args:
        max_bytes: for all values.
        size_of: estimates the bytes of a value.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[V], int]) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return self._size

    def get(self, key: K) -> V | None:
        """Return a value, which counts as used now; None if there is none."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V) -> None:
        """Keep a value, measured now, instead of the key's earlier one."""
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
        """Remove a value if there is one."""
        with self._lock:
            self._remove(key)

    def _remove(self, key: K) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self._size -= found[1]
