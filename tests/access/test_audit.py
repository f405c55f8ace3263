"""The audit: repeats are folded, and its growth is bounded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mayfly.auth.errors import TokenInvalid
from mayfly.registry.access.audit import ADDRESS_BURST, BURST, FOLD_SECONDS, RATE, Audit
from mayfly.registry.access.needs import PULL, AccessRequest
from mayfly.registry.telemetry.events import Event
from tests.auth.clock import Clock


class Recorded:
    """An audit whose time is the test's."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.clock = Clock()
        self.audit = Audit(self.events.append, self.clock)

    def refused(
        self,
        user: str = "eve",
        address: str = "192.0.2.1",
        detail: str = "no",
        code: str = "denied",
    ) -> None:
        """Record a refusal."""
        http: Any = SimpleNamespace(remote=address, headers={"User-Agent": "curl"})
        self.audit.refused(http, AccessRequest("tags", "GET", PULL, "team/app"), user, code, detail)

    def ended(self) -> list[Event]:
        """Every event, with those that were held back."""
        self.audit.finish()
        return self.events


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def test_repeats_are_folded(recorded: Recorded) -> None:
    """A stale credential that is tried a thousand times makes two lines."""
    for _ in range(1000):
        recorded.refused()
    recorded.refused("mallory")
    found = [(one["actor"]["name"], one.get("repeated")) for one in recorded.ended()]
    assert found == [("eve", None), ("mallory", None), ("eve", 999)]
    assert recorded.audit.refusals == {("eve", "192.0.2.1"): 1000, ("mallory", "192.0.2.1"): 1}


def test_expired_tokens_are_not_shown(recorded: Recorded) -> None:
    """Clients renew them by themselves: they count by their reason, and have an event."""
    code = TokenInvalid("expired").code
    recorded.refused("node-1", code=code)
    assert recorded.audit.refusals == {}
    assert recorded.audit.reasons == {code: 1}
    assert [one["actor"]["name"] for one in recorded.ended()] == ["node-1"]


def test_what_repeats_later_is_told_again(recorded: Recorded) -> None:
    """After `FOLD_SECONDS` a refusal has a line of its own, after the count of those before."""
    for _ in range(3):
        recorded.refused()
    recorded.clock.advance(FOLD_SECONDS + 1)
    recorded.refused()
    assert [one.get("repeated") for one in recorded.ended()] == [None, 2, None]


def test_address_has_an_allowance(recorded: Recorded) -> None:
    """Made-up names from one address, or one /64, fill nothing, and hide nobody else's refusal."""
    for number in range(5000):
        recorded.refused(f"made up {number}", f"2001:db8::{number:x}")
    recorded.refused("eve", "192.0.2.1")
    events = recorded.ended()
    assert len(events) == ADDRESS_BURST + 1
    assert events[-1]["actor"] == {"name": "eve"}
    assert events[-1]["dropped_before"] == 5000 - ADDRESS_BURST


def test_log_has_an_allowance(recorded: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    """Made-up names do not fill the journal either, with or without ``--audit``."""
    for number in range(5000):
        recorded.refused(f"made up {number}")
    assert len(caplog.records) == ADDRESS_BURST


def test_all_have_an_allowance(recorded: Recorded) -> None:
    """However many addresses: a number of lines at once, and a number a second."""
    for second in range(11):
        for number in range(2000):
            recorded.refused("eve", f"198.51.{number % 250}.{number // 250}", f"at {second}")
        recorded.clock.advance(1)
    lines = recorded.ended()
    assert BURST <= len(lines) <= BURST + 10 * RATE + 1
