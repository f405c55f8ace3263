"""The scripts of the examples end with the failure of any step; with stand-ins for the programs.

tests/clients runs them on real hosts.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.process import REPO

SSH = 'shift; [ "$1" = sh ] && exec cat >>script; exec sh -c "$1"'
"""Runs a remote command here, and keeps the script that it is given."""

PROGRAMS = {"ssh": SSH, "docker": "exit 0", "mayfly": "echo : script", "sync": "exit 0"}


@pytest.mark.parametrize("example", ["docker-hosts", "self-reboot"])
@pytest.mark.parametrize(
    ("failing", "text"),
    [
        (None, ""),
        ("docker", 'case "$*" in *worker:2) exit 9;; esac'),
        ("docker", '[ "$1" != run ] || exit 9'),
        ("mayfly", "exit 9"),
        ("ssh", "exit 9"),
    ],
)
def test_upgrade(example: str, failing: str | None, text: str, tmp_path: Path) -> None:
    """A failure on a host or of Mayfly stops the upgrade of all hosts."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in (PROGRAMS | ({failing: text} if failing else {})).items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "nodes.txt").write_text("# All.\nnode-1\nnode-2\n")
    script = REPO / "examples" / example / "upgrade.sh"
    done = subprocess.run(
        ["sh", script, "operator"],
        cwd=tmp_path,
        env={"PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == (9 if failing else 0), done.stderr
    if failing:
        # self-reboot runs Mayfly after the upgrade of all hosts, to take back what it wrote.
        assert "node-2" not in done.stdout or (failing, example) == ("mayfly", "self-reboot")
        assert not (tmp_path / "script").exists()
    else:
        assert (tmp_path / "script").read_text() == ": script\n" * 2
