"""The one file, built once for all processes of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mayfly.storage.files import locked
from tests.support.process import REPO, need

BUILD = REPO / "deploy/onefile/build.py"


def build(directory: Path, **environment: str) -> Path:
    """Build one; its path."""
    need("cc", "strip")
    done = subprocess.run(
        [sys.executable, str(BUILD), str(directory)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one file, and beside it what `make dist` writes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory = shared / "one-file"
    directory.mkdir(exist_ok=True)
    with locked(directory):
        found = [*directory.glob("*.sha256")]  # written last
        return found[0].with_suffix("") if found else build(directory)
