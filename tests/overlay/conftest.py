"""Fixtures of the overlay tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.storage.bundle.open import Bundles, open_bundles
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.overlay import OverlayStore
from tests.support.fixtures import quick_sync as quick_sync
from tests.support.fixtures import root as root

OpenOverlay = Callable[..., OverlayStore]


@pytest.fixture
def open_overlay(root: Path, tmp_path: Path) -> Iterator[OpenOverlay]:
    """Opens an overlay over bundles by path; everything is closed at the end."""
    opened: list[OverlayStore | Bundles] = []

    def open_one(*paths: Path, allow_sparse: bool = False, root: Path = root) -> OverlayStore:
        bundles = open_bundles(paths, tmp_path / "state")
        store = OverlayStore(DistributionStore(root, allow_sparse=allow_sparse), bundles.layer)
        opened.extend([bundles, store])
        return store

    yield open_one
    for one in reversed(opened):
        one.close()
