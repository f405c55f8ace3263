"""The real one file, and roots of Debian to run it in."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.onefile.conftest import build
from tests.support.packing import builder
from tests.support.process import find_program, remove_tree


@pytest.fixture(scope="session")
def one_file(workspace: Path) -> Iterator[Path]:
    """The one file, and beside it what `make dist` writes."""
    directory = workspace / "packages-one-file"
    yield build(directory)
    remove_tree(directory)


@pytest.fixture
def home(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for machines; packages are built as the builder's main function has it."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", builder().EPOCH)
    directory = workspace / "packages"
    directory.mkdir()
    yield directory
    remove_tree(directory)


def debian(suite: str, machine: Path, packages: str) -> None:
    """Install a Debian with some packages, separated by commas, into a directory."""
    words = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(machine)]
    words[0] = find_program(words[0]) or words[0]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
