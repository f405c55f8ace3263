"""The age of a file, from its modification time, although the wall clock may jump.

A file's modification time is the wall clock's when it was written. If the clock was set since, the
difference to now is not the file's age: after a step forward by a year everything looks a year old,
a push of a second ago included; after a step back files look a year old as soon as the clock is
right again, and older files lie in the future.

So the monotonic clock is watched beside the wall clock. While the two run alike, a time in the past
is believed. From the moment they are found apart, nothing counts as older than ``age`` until that
much time has really passed; earlier files are then at least that old. A time in the future, which
no file of an even clock has, counts as old once this process has watched the clock run evenly for
``age``: the file was written before that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

TOLERANCE = 5.0
"""Seconds by which the clocks may drift apart between two readings before the wall clock counts as
set; a slewed clock drifts by less."""


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
        """Return a test whether a modification time is more than ``age`` seconds before this call.

        The test answers False for every file once it finds that the clock was set after this call.

        Args:
            age: seconds.
            moment: now, by the clock that stamps the files; this host's wall clock by default.
        """
        wall, steady = self._look()
        # How far the files' clock is behind; read last, so rather too much than too little.
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
            # Updated each time, so that slow corrections do not add up to a jump.
            self._difference = now - steady
            return now, steady
