"""Paste commands on a node that is a directory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


def paste(
    text: str, root: Path, path: str = "", shell: Sequence[str] = ("sh", "-eu")
) -> subprocess.CompletedProcess[bytes]:
    """Run commands whose paths are the node's; what they leave has such paths again.

    Args:
        text: the commands.
        root: of the node's file system.
        path: directories of its programs, before those of this host.
        shell: that reads them.
    """
    below = str(root).encode()
    _replace(root / "var/lib", b"/etc/", below + b"/etc/")
    for top in ("/etc/", "/var/lib/"):
        text = text.replace(top, f"{root}{top}")
    try:
        return subprocess.run(
            [*shell, "-c", "umask 022; . /dev/stdin"],
            input=text.encode(),
            env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
            capture_output=True,
            check=True,
            timeout=60,
        )
    finally:
        for directory in ("etc", "var/lib"):
            _replace(root / directory, below, b"")


def break_off(text: str, root: Path, directory: Path) -> None:
    """Paste commands in a terminal that dies while the first file is written.

    Args:
        directory: for the program that kills it.
    """
    directory.mkdir(exist_ok=True)
    (directory / "chmod").write_text("#!/bin/sh\nkill -9 $PPID\n")
    (directory / "chmod").chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError):
        paste(text, root, str(directory))
    assert list(root.rglob(".*.mayfly"))


def _replace(directory: Path, old: bytes, new: bytes) -> None:
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink() and old in (content := path.read_bytes()):
            path.write_bytes(content.replace(old, new))
