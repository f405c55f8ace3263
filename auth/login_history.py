"""Recent logins and recent guesses of each user and address.

Both decide how an attempt is treated before its password is checked: a user who logged in from an
address a while ago is served first there, and a user whose password was guessed at lately is not
answered from memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mayfly.auth.limits import BoundedDict
from mayfly.auth.throttle import Pair

RECENT = 24 * 3600.0
"""Seconds after a login in which the same user at the same address is served first."""

MAX_PAIRS = 4096
"""Pairs of user and address remembered; the oldest login or guess is forgotten first."""

MAX_MISSES = 20
"""Wrong passwords of one user from one address, in `MISSES_EVERY`, past which none is recalled."""

MISSES_EVERY = 60.0
"""Seconds."""


class LoginHistory:
    """Belongs to one thread.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logins: BoundedDict[Pair, float] = BoundedDict(MAX_PAIRS)
        self._misses: BoundedDict[Pair, tuple[float, int]] = BoundedDict(MAX_PAIRS)

    def is_recent(self, pair: Pair) -> bool:
        """Return whether the user logged in from the address within `RECENT`."""
        return self._logins.get(pair, -RECENT) + RECENT > self._clock()

    def succeeded(self, pair: Pair) -> None:
        """Record a login, which also ends the count of guesses."""
        self._misses.pop(pair, None)
        self._logins[pair] = self._clock()

    def is_guessed(self, pair: Pair) -> bool:
        """Return whether `MAX_MISSES` attempts were counted lately."""
        since, count = self._misses.get(pair, (0.0, 0))
        return count >= MAX_MISSES and self._clock() - since < MISSES_EVERY

    def attempted(self, pair: Pair) -> None:
        """Count an attempt, which is a guess until it succeeds."""
        now = self._clock()
        since, count = self._misses.get(pair, (now, 0))
        if now - since >= MISSES_EVERY:
            since, count = now, 0
        self._misses[pair] = (since, count + 1)
