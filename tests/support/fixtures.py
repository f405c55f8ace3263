"""Fixtures of the tests that open stores in their own process: a `conftest.py` imports them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage.disk import skip_sync


@pytest.fixture(autouse=True)
def quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `skip_sync`."""
    skip_sync(monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store under test lies; of an overlay, the upper one."""
    return tmp_path / "root"
