"""Bounds on the memory that connections take, over all connections of a server.

Heads count while they are incomplete, large ones until the next request on their connection;
responses while their clients do not take them. When a budget is used up, the connection that has
held memory for longest is closed, unless it has to stay: an honest client sends its head and reads
its response at once, and can connect again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

MAX_HEADS = 16 * 1024 * 1024
"""Bytes for the heads of all connections."""

LARGE_HEAD = 4096
"""Bytes from which a complete head counts; nearly all are shorter."""

MAX_RESPONSES = 32 * 1024 * 1024
"""Bytes for the responses of all connections that are in memory and not sent."""

Owner = TypeVar("Owner")
"""A connection."""


class MemoryBudget(Generic[Owner]):
    """One budget of a server.

    Args:
        limit: in bytes.
        release: closes a connection and so frees its memory; returns False if it has to stay.

    Attributes:
        used: bytes in use.
    """

    def __init__(self, limit: int, release: Callable[[Owner], bool]) -> None:
        self._limit = limit
        self._release = release
        self._sizes: dict[Owner, int] = {}
        """By connection; the connection that has held memory for longest comes first."""
        self.used = 0

    def record(self, owner: Owner, size: int) -> bool:
        """Set how many bytes a connection holds now.

        Returns:
            Whether they fit. If not, nothing is recorded for the connection.
        """
        self.used -= self._sizes.get(owner, 0)
        if self.used + size > self._limit:
            self._make_room(owner, size)
        if size == 0 or self.used + size > self._limit:
            self._sizes.pop(owner, None)
            return size == 0
        self._sizes[owner] = size
        self.used += size
        return True

    def _make_room(self, owner: Owner, size: int) -> None:
        for other in [*self._sizes]:
            if self.used + size <= self._limit:
                return
            if other is not owner and other in self._sizes and self._release(other):
                self.used -= self._sizes.pop(other, 0)
