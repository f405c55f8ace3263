"""Fixtures of the tests of what is changed on nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fixtures import quick_sync as quick_sync
from tests.support.identities import ca_pem as ca_pem
from tests.support.identities import constrained as constrained
from tests.support.identities import identity as identity


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The file system of a node that has nothing but what every one has."""
    root = tmp_path / "node"
    for directory in ("etc", "var/lib"):
        (root / directory).mkdir(parents=True)
    return root
