"""Tasks that clients start and that continue without them, bounded in all and for each client."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class ClientTasks:
    """Tasks of clients, the waiting ones included.

    Args:
        count: most tasks.
        each: most tasks of one client, which leave room for others.
    """

    def __init__(self, count: int, each: int) -> None:
        self._count = count
        self._each = each
        self._tasks: set[asyncio.Task[Any]] = set()
        self._of: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._tasks)

    def has_room(self, client: Hashable) -> bool:
        """Whether a client may start one more."""
        return len(self._tasks) < self._count and self._of[client] < self._each

    def start(self, client: Hashable, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task of a client."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        self._of[client] += 1

        def ended(_: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            self._of[client] -= 1
            if not self._of[client]:
                del self._of[client]

        task.add_done_callback(ended)
        return task

    async def cancel(self) -> None:
        """Cancel all tasks and wait for their end."""
        running = [*self._tasks]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
