"""Records refused requests: user, address, request and reason; never a password, token or header.

Refusals are counted by user and address for the report, logged, and given to the event logs of
``--audit``. Any client can cause any number of them, so everything is bounded:

- A refusal equal to one in the last `FOLD_SECONDS` is only counted. The count is given after that
  time, as ``repeated``.
- An address may cause `ADDRESS_BURST` events at once and `ADDRESS_RATE` a second, all addresses
  `BURST` and `RATE`. Further ones are dropped. The next event has their number as
  ``dropped_before``; at the end they get an event of their own. The log has an allowance of the
  same size.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from mayfly.auth.errors import TokenInvalid
from mayfly.auth.identity import MAX_NAME_BYTES
from mayfly.auth.limits import BoundedDict, TokenBucket
from mayfly.auth.networks import network_of
from mayfly.registry import log
from mayfly.registry.access.needs import AccessRequest
from mayfly.registry.address import canonical_address
from mayfly.registry.http.request import HTTPRequest

if TYPE_CHECKING:
    from mayfly.registry.telemetry.events import Event

FOLD_SECONDS = 60.0
"""Seconds for which equal refusals are counted after the first one's event."""

ADDRESS_BURST, ADDRESS_RATE = 50, 1.0
BURST, RATE = 500, 20.0
"""Events at once, and events a second: for an address (of IPv6, a /64), and for all of them."""

_MAX_COUNTED = 1_000
_SWEEP_SECONDS = 10.0

_RENEWED = TokenInvalid("expired").code
"""Refusals for this reason are no warning, and not shown: clients fetch a new token then."""


class Audit:
    """Counts and records refusals. Belongs to one event loop.

    Args:
        put: takes the events; None only counts and logs.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        put: Callable[[Event], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.refusals: Counter[tuple[str, str]] = Counter()
        """(user, address) → refusals; past `_MAX_COUNTED` pairs the rest counts as ``("", "")``.

        Without tokens that have expired: in a long pull each client renews its own several times.
        """
        self.reasons: Counter[str] = Counter()
        """Code of `refused` → refusals."""
        self._put_event = put
        self._clock = clock
        self._allowances = _Allowances(clock)
        self._log_allowances = _Allowances(clock)
        self._folded: BoundedDict[tuple[str, ...], _Folded] = BoundedDict(
            _MAX_COUNTED, lambda _, oldest: self._put_count(oldest)
        )
        self._dropped = 0

    def refused(
        self, http: HTTPRequest, request: AccessRequest, user: str, code: str, detail: str
    ) -> None:
        """Record a refusal.

        Args:
            http: the request, for its address.
            request: the same, parsed.
            user: the name that was claimed; "" without one.
            code: the reason: ``denied`` for a lack of rights, otherwise
                `auth.errors.AuthError.code`.
            detail: the reason in words.
        """
        address = canonical_address(http.remote or "")
        user = user[:MAX_NAME_BYTES]
        self.reasons[code] += 1
        level = logging.DEBUG
        if code != _RENEWED:
            level = logging.WARNING
            known = (user, address) in self.refusals or len(self.refusals) < _MAX_COUNTED
            self.refusals[(user, address) if known else ("", "")] += 1
        text = f"{user or 'a client'} at {address} was refused: {detail}"
        if self._log_allowances.take(network_of(address)):
            # Imported by the first refusal, not by the start.
            from mayfly.registry.telemetry.trace import trace_id

            data = {"user": user, "address": address}
            if trace := trace_id(http.headers):
                data["trace"] = trace
            log.event(level, "refused", text, same=f"{user} {address}", **data)
        if self._put_event is not None:
            key = (
                user,
                address,
                request.method,
                request.endpoint,
                request.repository,
                code,
                detail,
            )
            self._record(key, http, request)

    async def count_repeats(self) -> None:
        """Give out the counts of repeats when they are due, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self._put_counts(self._clock() - FOLD_SECONDS)

    def finish(self) -> None:
        """Give out all that is only counted."""
        self._put_counts(self._clock())
        if self._dropped:
            self._put(_events().new("drop"))

    def _record(self, key: tuple[str, ...], http: HTTPRequest, request: AccessRequest) -> None:
        like = self._folded.get(key)
        if like is not None and self._clock() - like.since < FOLD_SECONDS:
            like.count += 1
            return
        self._put_counts(self._clock() - FOLD_SECONDS)
        user, address, *_, code, detail = key
        if not self._allowances.take(network_of(address)):
            self._dropped += 1
            return
        events = _events()
        event = events.new(request.action, "denied")
        event["request"] = events.asked_by(address, request.method, http.headers)
        event["target"] = {"repository": request.repository}
        event["actor"] = {"name": user}
        event["reason"] = code
        event["detail"] = events.short(detail)
        self._folded[key] = _Folded(event, self._clock())
        self._put(event)

    def _put_counts(self, until: float) -> None:
        """Give out the counts of refusals first seen until a moment."""
        while self._folded:
            oldest = next(iter(self._folded.values()))
            if oldest.since > until:
                return
            self._folded.popitem(last=False)
            self._put_count(oldest)

    def _put_count(self, folded: _Folded) -> None:
        if folded.count:
            again = folded.event.copy()
            again.pop("dropped_before", None)
            again.update(_events().new(again["action"], "denied"))
            again["repeated"] = folded.count
            self._put(again)

    def _put(self, event: Event) -> None:
        assert self._put_event is not None
        if self._dropped:
            event["dropped_before"] = self._dropped
            self._dropped = 0
        self._put_event(event)


def _events() -> ModuleType:
    # Imported only where refusals are recorded.
    from mayfly.registry.telemetry import events

    return events


class _Folded:
    """A refusal that has an event, and the number of equal ones since."""

    def __init__(self, event: Event, since: float) -> None:
        self.event = event
        self.since = since
        self.count = 0


class _Allowances:
    """Token buckets for events: one for each network and one for all."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._all = TokenBucket(BURST, RATE, clock)
        self._of_network: BoundedDict[str, TokenBucket] = BoundedDict(_MAX_COUNTED)

    def take(self, network: str) -> bool:
        """Count one more event if there may be one; return whether."""
        own = self._of_network.get(network)
        if own is None:
            own = TokenBucket(ADDRESS_BURST, ADDRESS_RATE, self._clock)
        if not (own.allows() and self._all.allows()):
            return False
        own.take()
        self._all.take()
        self._of_network[network] = own
        return True
