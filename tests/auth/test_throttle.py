"""How long failed logins make the next one wait."""

from __future__ import annotations

from mayfly.auth.throttle import FIRST_DELAY, FORGIVEN_EVERY, MAX_DELAY, MAX_PAIRS, Throttle
from tests.auth.clock import Clock


def _failed(count: int) -> tuple[Throttle, Clock]:
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(count):
        throttle.failed("bob", "10.0.0.1")
    return throttle, clock


def test_doubles_up_to_the_bound() -> None:
    """Each failure doubles the wait, never past the bound."""
    delays = [_failed(count)[0].delay("bob", "10.0.0.1") for count in range(8)]
    assert delays == [0, FIRST_DELAY, 0.5, 1, 2, 4, MAX_DELAY, MAX_DELAY]


def test_others_are_not_delayed() -> None:
    """The user at another address does not wait, nor does another user at that address."""
    throttle, _ = _failed(50)
    assert throttle.delay("bob", "10.0.0.2") == 0
    assert throttle.delay("alice", "10.0.0.1") == 0


def test_failures_are_forgiven() -> None:
    """Time takes failures back one by one, however many there were."""
    throttle, clock = _failed(1000)
    delays = []
    for _ in range(7):
        delays.append(throttle.delay("bob", "10.0.0.1"))
        clock.advance(FORGIVEN_EVERY)
    assert delays == [5, 4, 2, 1, 0.5, 0.25, 0]


def test_success_forgives_its_own_pair_only() -> None:
    """A login clears its pair; an attacker's own account clears no other."""
    throttle, _ = _failed(3)
    throttle.succeeded("mallory", "10.0.0.1")
    assert throttle.delay("bob", "10.0.0.1") == 1
    throttle.succeeded("bob", "10.0.0.1")
    assert throttle.delay("bob", "10.0.0.1") == 0


def test_long_names_are_not_kept_whole() -> None:
    """Made-up names cannot fill the memory: past the longest name, they share a count."""
    throttle, _ = _failed(0)
    throttle.failed("x" * 8000, "a")
    assert throttle.delay("x" * 256, "a") == FIRST_DELAY
    assert throttle.delay("x" * 255, "a") == 0


def test_memory_is_bounded() -> None:
    """Of too many pairs, those that failed longest ago are forgotten."""
    throttle, _ = _failed(1)
    for number in range(MAX_PAIRS):
        throttle.failed("bob", str(number))
    assert throttle.delay("bob", "10.0.0.1") == 0
    assert throttle.delay("bob", "0") == FIRST_DELAY
