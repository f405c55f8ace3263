"""A bound on the memory that request heads take, over all connections.

A head counts while it is incomplete, and a large one until the next request on its connection. When
the budget is used up, the connection that has held memory for longest and has no request in
progress is closed: an honest client sends its head at once, and an idle one can reconnect.
"""

from __future__ import annotations

from typing import Protocol

MAX_BYTES = 16 * 1024 * 1024
"""For the heads of all connections."""

LARGE_HEAD = 4096
"""Bytes from which a complete head counts; nearly all are shorter."""


class Connection(Protocol):
    """A connection that holds heads in memory."""

    @property
    def serving(self) -> bool:
        """Whether a request is being handled."""

    def drop_heads(self) -> None:
        """Free the memory of its heads at once."""


class HeadBudget:
    """The budget of one server.

    Args:
        limit: in bytes.

    Attributes:
        used: bytes in use.
    """

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._sizes: dict[Connection, int] = {}
        """By connection; the connection that has held memory for longest comes first."""
        self.used = 0

    def record(self, owner: Connection, size: int) -> bool:
        """Set how many bytes a connection's heads take now.

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

    def _make_room(self, owner: Connection, size: int) -> None:
        for other in [*self._sizes]:
            if self.used + size <= self._limit:
                return
            if other is not owner and not other.serving:
                self.used -= self._sizes.pop(other)
                other.drop_heads()
