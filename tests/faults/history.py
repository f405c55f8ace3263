"""What clients of one server did and saw, in time, and whether a registry can have answered so.

A name (a tag, a manifest in a repository) is a register. What a read saw must have been written
before the read ended, by a write that nothing replaced before the read began. That is necessary for
linearisability, not sufficient, but cheap, and what it finds is a fault for certain.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Key = tuple[str, ...]


@dataclass
class Event:
    """One request on one name, from when it was sent until its answer was there.

    Attributes:
        value: what was written or seen; None for nothing.
        only: for a delete that takes effect only where the name has this value.
        failed: it changed nothing and saw nothing.
    """

    key: Key
    start: float
    end: float = float("inf")
    value: Hashable = None
    only: Hashable = None
    is_read: bool = False
    failed: bool = False

    def replaces(self, value: Hashable) -> bool:
        """Whether the name cannot have this value after it."""
        return value == self.only if self.only is not None else value != self.value


class History:
    """The events of all clients."""

    def __init__(self) -> None:
        self._events: dict[Key, list[Event]] = defaultdict(list)
        self._lock = threading.Lock()

    @contextmanager
    def during(self, *keys: Key) -> Iterator[list[Event]]:
        """Record one event for each key, to be filled in; they end with the block."""
        events = [Event(key, time.monotonic()) for key in keys]
        with self._lock:
            for event in events:
                self._events[event.key].append(event)
        yield events
        for event in events:
            event.end = time.monotonic()

    @property
    def size(self) -> int:
        """How many events there were."""
        return sum(map(len, self._events.values()))

    def impossible(self) -> list[Event]:
        """The reads that nothing explains."""
        return [
            event
            for events in self._events.values()
            for event in events
            if event.is_read and not event.failed and not _explained(event, events)
        ]


def _explained(read: Event, events: list[Event]) -> bool:
    writes = [e for e in events if not (e.is_read or e.failed)]
    nothing = Event(read.key, float("-inf"), float("-inf"))
    causes = [e for e in (nothing, *writes) if e.value == read.value and e.start < read.end]
    return any(not _replaced(cause, read, writes) for cause in causes)


def _replaced(cause: Event, read: Event, writes: list[Event]) -> bool:
    return any(
        cause.end < write.start and write.end < read.start and write.replaces(read.value)
        for write in writes
    )
