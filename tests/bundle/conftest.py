"""Fixtures of the bundle tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.storage.bundle.open import Bundles, open_bundles

OpenAll = Callable[..., Bundles]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory."""
    return tmp_path / "state"


@pytest.fixture
def open_all(state: Path) -> Iterator[OpenAll]:
    """Opens bundles by path; all are closed at the end."""
    opened: list[Bundles] = []

    def open_them(*paths: Path) -> Bundles:
        opened.append(open_bundles(paths, state))
        return opened[-1]

    yield open_them
    for bundles in opened:
        bundles.close()
