"""Fixtures of the overlay tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.bundle.open import Bundles, open_bundles
from storage.overlay import OverlayStore

OpenOverlay = Callable[..., OverlayStore]


@pytest.fixture(autouse=True)
def quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync nothing to the disk; that everything is synced is shown of `DistributionStore`."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The upper store."""
    return tmp_path / "root"


@pytest.fixture
def open_overlay(root: Path, tmp_path: Path) -> Iterator[OpenOverlay]:
    """Opens an overlay over bundles by path; everything is closed at the end."""
    opened: list[OverlayStore | Bundles] = []

    def open_one(*paths: Path, allow_sparse: bool = False, root: Path = root) -> OverlayStore:
        bundles = open_bundles(paths, tmp_path / "state")
        store = OverlayStore(root, bundles.layer, allow_sparse=allow_sparse)
        opened.extend([bundles, store])
        return store

    yield open_one
    for one in reversed(opened):
        one.close()
