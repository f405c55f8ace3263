"""Fixtures of the storage tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.storage.directory.store import DistributionStore
from tests.storage.contract import OpenStore
from tests.storage.disk import Disk
from tests.support.fixtures import quick_sync as quick_sync
from tests.support.fixtures import root as root


@pytest.fixture
def open_store(root: Path) -> Iterator[OpenStore]:
    """Opens `DistributionStore` on ``root``; all are closed at the end."""
    opened: list[DistributionStore] = []

    def open_one(*, allow_sparse: bool = False) -> DistributionStore:
        store = DistributionStore(root, allow_sparse=allow_sparse)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def disk(quick_sync: None, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Records and fails what the code under test does to the disk."""
    return Disk(monkeypatch)
