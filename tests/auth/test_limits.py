"""Bounds on memory and rates."""

from __future__ import annotations

import threading

from mayfly.auth.limits import BoundedDict, TokenBucket
from tests.auth.clock import Clock


def test_oldest_entry_is_dropped() -> None:
    """The entries set last stay, also one that was set before; reading changes nothing."""
    kept: BoundedDict[str, int] = BoundedDict(2)
    kept["a"], kept["b"] = 1, 2
    kept["a"] = 3
    assert kept.get("b") == 2
    kept["c"] = 4
    assert list(kept.items()) == [("a", 3), ("c", 4)]


def test_dropped_entries_are_reported() -> None:
    """Those that made room, and not those that were removed or replaced."""
    dropped: list[tuple[str, int]] = []
    kept: BoundedDict[str, int] = BoundedDict(1, lambda key, value: dropped.append((key, value)))
    kept["a"] = 1
    kept["a"] = 2
    assert kept.pop("a") == 2
    kept["b"] = 3
    kept["c"] = 4
    assert dropped == [("b", 3)]


def test_threads_share_a_bounded_dict() -> None:
    """Concurrent changes raise nothing and leave no more than the limit."""
    kept: BoundedDict[int, int] = BoundedDict(5)
    errors: list[Exception] = []

    def change(start: int) -> None:
        try:
            for number in range(2000):
                kept[(start + number) % 11] = number
                kept.get(number % 11)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=change, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(kept) <= 5


def test_token_bucket() -> None:
    """A burst at once, then the rate; unused events are saved, up to a burst."""
    clock = Clock()
    bucket = TokenBucket(2, 0.5, clock)
    bucket.take()
    assert bucket.allows()
    bucket.take()
    assert not bucket.allows()
    clock.advance(1.9)
    assert not bucket.allows()
    clock.advance(0.1)
    assert bucket.allows()
    clock.advance(100)
    bucket.take()
    bucket.take()
    assert not bucket.allows()
