"""A signal between tasks of one event loop, which repeats; not a message to the operator.

Only the loop's thread may use it.
"""

from __future__ import annotations

import asyncio


class Notification:
    """Wakes, at each occurrence, the tasks that wait at that moment."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] | None = None

    def next(self) -> asyncio.Future[None]:
        """Return a future that is done at the next occurrence.

        All callers share it, so wait with `clock.first_done`, which does not cancel futures.
        """
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        return self._waiting

    def notify(self) -> None:
        """Wake the tasks that wait."""
        if self._waiting is not None:
            self._waiting.set_result(None)
            self._waiting = None
