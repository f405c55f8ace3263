"""Evictions beside the requests: how often the store is read."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import pytest

from mayfly.registry import evictions
from mayfly.registry.evictions import Evictions, SpaceRules
from mayfly.storage.upkeep import evict


class _Usage(NamedTuple):
    percent: float


class _Freed(NamedTuple):
    """As `evict.Freed`, of a disk that stays as full as it is."""

    evicted: tuple[str, ...]
    before: _Usage = _Usage(95)
    after: _Usage = _Usage(95)


async def test_full_disk_without_anything_to_evict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is read again after a while only, for the watch and for a push; not each second."""
    looked: list[float] = []
    outcomes: list[tuple[str, ...]] = [("one",), (), (), ()]

    def free(store: Any, high: float, *_: object) -> _Freed:
        looked.append(high)
        return _Freed(outcomes.pop(0))

    monkeypatch.setattr(evict, "free", free)
    monkeypatch.setattr(evict, "room_for", lambda store, size: 90.0)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    store: Any = None
    watched = Evictions(store, SpaceRules(85, 80, evict.unprotected), 0, lambda: frozenset())
    for _ in range(10):
        await watched._free(85, 80)
        await watched.make_room(1)
        now[0] += 1
    assert looked == [85, 90]  # something went; then nothing did
    now[0] += evictions.RETRY_SECONDS
    await watched._free(85, 80)
    assert looked == [85, 90, 85]
