"""Bounds on memory and on rates: a dict of limited size, and a token bucket."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """A dict that keeps the entries set last, and drops the oldest one when it is full.

    Setting a key again makes its entry the newest. Single operations are safe from several threads.

    Args:
        limit: most entries kept.
        on_drop: called with the key and value of each entry that is dropped for a newer one.
    """

    def __init__(self, limit: int, on_drop: Callable[[K, V], None] | None = None) -> None:
        super().__init__()
        self._limit = limit
        self._on_drop = on_drop

    def __setitem__(self, key: K, value: V) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        while len(self) > self._limit:
            dropped = self.popitem(last=False)
            if self._on_drop is not None:
                self._on_drop(*dropped)


class TokenBucket:
    """Allows ``burst`` events at once, and ``rate`` events a second on average.

    Args:
        burst: events at once.
        rate: events a second.
        clock: seconds, monotonic.
    """

    __slots__ = ("_burst", "_clock", "_left", "_rate", "_when")

    def __init__(
        self, burst: float, rate: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._left = burst
        self._when = clock()

    def allows(self) -> bool:
        """Return whether one more event may happen now."""
        return self._now() >= 1

    def take(self) -> None:
        """Count an event that `allows` allowed."""
        self._left, self._when = self._now() - 1, self._clock()

    def _now(self) -> float:
        return min(self._burst, self._left + (self._clock() - self._when) * self._rate)
