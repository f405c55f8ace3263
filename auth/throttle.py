"""Delays logins after failed ones.

Each pair of user name and address has its own count, so that guessing at a user from one address
delays neither that user elsewhere nor other users there. The delay doubles with each failure up to
`MAX_DELAY`; each `FORGIVEN_EVERY` without a failure reduces the count by one. No user is ever
locked out, and none is answered 429 or 503: docker and containerd would give up on those.

Unknown users count like known ones, so that the delay does not reveal whether a user exists.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mayfly.auth.identity import MAX_NAME_BYTES
from mayfly.auth.limits import BoundedDict

FIRST_DELAY = 0.25
"""Delay after one failure, in seconds."""

MAX_DELAY = 5.0
"""Longest delay in seconds: well under the clients' 15 s and 30 s for a header."""

FORGIVEN_EVERY = 30.0
"""Seconds without a failure that reduce the count by one."""

MAX_PAIRS = 10_000
"""Most pairs remembered; the one that failed longest ago is forgotten first."""

_MAX_FAILURES = 6  # more would only make forgiving take longer: 0.25 * 2**5 is past MAX_DELAY


Pair = tuple[str, str]
"""A user's name and an address."""


class Throttle:
    """Counts failed logins. Safe for use from several threads.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: BoundedDict[Pair, tuple[int, float]] = BoundedDict(MAX_PAIRS)

    def delay(self, name: str, address: str) -> float:
        """Return the seconds that the next attempt of this user from this address has to wait."""
        with self._lock:
            count = self._count(_pair(name, address))
        return min(MAX_DELAY, FIRST_DELAY * 2.0 ** (count - 1)) if count else 0.0

    def failed(self, name: str, address: str) -> None:
        """Count a failed login."""
        pair = _pair(name, address)
        with self._lock:
            count = min(self._count(pair) + 1, _MAX_FAILURES)
            self._failures[pair] = (count, self._clock())

    def succeeded(self, name: str, address: str) -> None:
        """Forget the failures of this user at this address."""
        with self._lock:
            self._failures.pop(_pair(name, address), None)

    def _count(self, pair: Pair) -> int:
        count, last = self._failures.get(pair, (0, 0.0))
        return max(0, count - int((self._clock() - last) / FORGIVEN_EVERY))


def _pair(name: str, address: str) -> Pair:
    # No user has a longer name; whole, made-up ones would fill the memory.
    return name[: MAX_NAME_BYTES + 1], address
