"""What the server is doing, counted where it happens.

One object for the whole server, touched a few times by each request, so it is plain attributes and
nothing else: no lock, no list, no call but the clock's. Only the event loop's thread may use it.

A request is in flight from its admission to the end of its handler, so a transfer of an hour is
one request in flight for an hour. Only admitted requests count: a connection, a probe or a refused
request could otherwise keep an unused server alive for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pulse:
    """Something that happens again and again, for those who wait at the moment."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] | None = None

    def next(self) -> asyncio.Future[None]:
        """Done when it happens next. Shared, so wait by `clock.first_done`, which cancels none."""
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        return self._waiting

    def happened(self) -> None:
        """Wake those who wait."""
        if self._waiting is not None:
            self._waiting.set_result(None)
            self._waiting = None


class Activity:
    """Counts of one server's run.

    Args:
        now: seconds, monotonic.

    Attributes:
        requests: in flight now; probes and refused ones do not count.
        bytes_in: of bodies received.
        bytes_out: of content sent.
        last: when a request last ended (the start, before any).
        first_pull: when a manifest was first served, None before.
        changed: the last request in flight ended, or the first pull came.
    """

    __slots__ = ("_now", "bytes_in", "bytes_out", "changed", "first_pull", "last", "requests")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.requests = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.last = now()
        self.first_pull: float | None = None
        self.changed = Pulse()

    def begin(self) -> None:
        """A request was admitted. Always call `end` after it."""
        self.requests += 1

    def end(self) -> None:
        """A request is done with."""
        self.requests -= 1
        self.last = self._now()
        if not self.requests:
            self.changed.happened()

    def pulled(self) -> None:
        """A manifest was served."""
        if self.first_pull is None:
            self.first_pull = self._now()
            self.changed.happened()

    def idle_for(self) -> float:
        """Seconds since the last activity; 0 while a request is in flight."""
        return 0.0 if self.requests else self._now() - self.last
