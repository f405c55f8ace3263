"""How old a file is, told from its modification time although the wall clock may jump.

The time of a file is the wall clock's of when it was written. If that clock has been set since, the
difference to now is no age: set forward by a year, everything looks a year old, also what a push
wrote a second ago; set back, what is written from now on looks a year old as soon as the clock is
right again, and what was written before lies in the future.

So beside the wall clock the monotonic one is watched. While the two run alike, a time in the past
is believed. From the moment they are found apart, nothing counts as older than ``age`` until so
much time has really passed; what was written before is then at least that old. A time in the
future, which no file of a clock that ran evenly has, counts as old once this process has watched
the clock run evenly for ``age``: it was written before that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

TOLERANCE = 5.0
"""Seconds by which the two clocks may differ before one is taken to have been set: a slewed clock
drifts by less in the time between two looks."""


class Ages:
    """Watches the clocks for one process. Safe for use from several threads.

    Args:
        wall: Unix seconds.
        steady: seconds, monotonic.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._lock = threading.Lock()
        self._difference = wall() - steady()
        self._even_since = steady()
        self._sets = 0

    def older_than(self, age: float, moment: float | None = None) -> Callable[[float], bool]:
        """A test whether a modification time is over ``age`` seconds ago, as of this call.

        Args:
            moment: this one by the clock that stamps the files, where that was looked at.

        It says no to everything as soon as it sees that the clock was set after this call.
        """
        wall, steady = self._look()
        # How far the files' clock is behind, told with a clock read last: rather too much.
        now = wall if moment is None else wall - (time.time() - moment)
        even = steady - self._even_since
        sets = self._sets
        trusted = not sets or even >= age

        def is_older(modified: float) -> bool:
            self._look()
            if not trusted or self._sets != sets:
                return False
            if modified > now + TOLERANCE:
                return even >= age
            return modified < now - age

        return is_older

    def _look(self) -> tuple[float, float]:
        with self._lock:
            now, steady = self._wall(), self._steady()
            if abs(now - steady - self._difference) > TOLERANCE:
                self._even_since = steady
                self._sets += 1
            # Followed, so that slow corrections do not add up to a jump.
            self._difference = now - steady
            return now, steady
