"""The Makefile: `make run` installs what Mayfly needs, and nothing outside this directory."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.process import REPO, need


@pytest.fixture
def make(tmp_path: Path) -> Path:
    """A place with nothing but the Makefile and what it looks at."""
    need("make")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPO / name, tmp_path)
    return tmp_path


def _make(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *words], cwd=place, capture_output=True, text=True, timeout=60)


def test_run_installs_no_tool_of_development(make: Path) -> None:
    """The extra `dev` belongs to the targets that check."""
    assert "[dev]" not in _make(make, "-n", "run").stdout
    assert "[dev]" in _make(make, "-n", "lint").stdout


def test_nothing_is_installed_outside() -> None:
    """Every pip in the Makefile is that of an environment below this directory."""
    pips = [line for line in (REPO / "Makefile").read_text().splitlines() if "pip install" in line]
    assert pips
    assert all(line.startswith(("\t$(BIN)/", "\t$(RUN_VENV)/", "\t$(OLDEST)/")) for line in pips)
    assert "break-system-packages" not in (REPO / "Makefile").read_text()


def test_missing_venv_is_told(make: Path) -> None:
    """Without python3-venv it says what to install, and leaves nothing half made."""
    python = make / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 1\nexec python3 "$@"\n')
    python.chmod(0o755)
    done = _make(make, "run", f"PYTHON={python}")
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr
    assert not (make / ".cache").exists()
