"""`mayfly` as a process: started with a clean environment, its errors read as a user sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.process import REPO

TIMEOUT = 30


def environment(**more: str) -> dict[str, str]:
    """The tests' own environment without settings of whoever runs them."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MAYFLY_")}
    return inherited | {"PYTHONPATH": str(REPO)} | more


def command_line(*arguments: str | Path) -> list[str]:
    """`mayfly` with arguments, as the interpreter of the tests runs it."""
    return [sys.executable, "-m", "mayfly", *map(str, arguments)]


def mayfly(
    *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path = REPO
) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        command_line(*arguments),
        env=environment(**(env or {})),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one line on stderr that has these words; nothing on stdout."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 1200
    for word in words:
        assert word in done.stderr
