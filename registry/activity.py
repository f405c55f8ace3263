"""Counts requests and bytes of the whole server, from which idleness follows.

One object for the server, updated a few times by each request, so it consists of plain attributes:
no lock, no list, no call except of the clock. Only the event loop's thread may use it.

A request is in flight from its admission to the end of its handler, so a transfer of an hour is
one request in flight for an hour. Only admitted requests count: connections, probes or refused
requests must not keep an unused server alive.
"""

from __future__ import annotations

from collections.abc import Callable

from mayfly.registry.notification import Notification


class Activity:
    """Counts of one server's run.

    Args:
        now: seconds, monotonic.

    Attributes:
        requests: in flight now; probes and refused requests do not count.
        bytes_in: of bodies received.
        bytes_out: of content sent.
        last: when a request last ended, or the time of the start before any.
        first_pull: when a manifest was first served; None before.
        changed: the last request in flight ended, or the first pull began.
    """

    __slots__ = ("_now", "bytes_in", "bytes_out", "changed", "first_pull", "last", "requests")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.requests = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.last = now()
        self.first_pull: float | None = None
        self.changed = Notification()

    def begin(self) -> None:
        """Count an admitted request. Always call `end` after it."""
        self.requests += 1

    def end(self) -> None:
        """Count the end of a request."""
        self.requests -= 1
        self.last = self._now()
        if not self.requests:
            self.changed.notify()

    def pulled(self) -> None:
        """Count a manifest that is served."""
        if self.first_pull is None:
            self.first_pull = self._now()
            self.changed.notify()

    def idle_for(self) -> float:
        """Return the seconds since the last activity; 0 while a request is in flight."""
        return 0.0 if self.requests else self._now() - self.last
