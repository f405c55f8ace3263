"""The fixture of the attacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.harness import Hostile


@pytest.fixture
def hostile(workspace: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Hostile]:
    """See `tests.hostile`."""
    found = Hostile(workspace / tmp_path.name, request.node.nodeid)
    try:
        yield found
    finally:
        found.close()
