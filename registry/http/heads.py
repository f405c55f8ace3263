"""A bound on the memory that request heads take, over all connections.

A head counts while it is incomplete, and a long one until the next request on its connection. When
the budget is used up, the connection that has kept a head for longest, and has no request in
progress, is closed: an honest client sends its head at once, and an idle one can reconnect.
"""

from __future__ import annotations

from typing import Protocol

MEMORY = 16 * 1024 * 1024
"""Bytes for the heads of all connections."""

LARGE_HEAD = 4096
"""Bytes of a complete head from which on it counts; nearly all are shorter."""


class Connection(Protocol):
    """A connection that keeps heads."""

    @property
    def serving(self) -> bool:
        """Whether a request is being handled."""

    def give_up_heads(self) -> None:
        """Free the memory of its heads at once."""


class HeadBudget:
    """Belongs to one server.

    Args:
        limit: in bytes.

    Attributes:
        used: bytes that are taken.
    """

    def __init__(self, limit: int = MEMORY) -> None:
        self._limit = limit
        self._kept: dict[Connection, int] = {}
        """The sizes, the connections that have kept something for longest first."""
        self.used = 0

    def keep(self, owner: Connection, size: int) -> bool:
        """Record how many bytes a connection's heads take now.

        Returns:
            Whether they fit. If not, nothing is recorded for the connection.
        """
        self.used -= self._kept.get(owner, 0)
        if self.used + size > self._limit:
            self._make_room(owner, size)
        if size == 0 or self.used + size > self._limit:
            self._kept.pop(owner, None)
            return size == 0
        self._kept[owner] = size
        self.used += size
        return True

    def _make_room(self, owner: Connection, size: int) -> None:
        for other in [*self._kept]:
            if self.used + size <= self._limit:
                return
            if other is not owner and not other.serving:
                self.used -= self._kept.pop(other)
                other.give_up_heads()
