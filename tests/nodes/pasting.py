"""Paste commands on a node that is a directory."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest


def paste(
    text: str,
    root: Path,
    path: str = "",
    shell: Sequence[str] = ("sh", "-eu"),
    **variables: str,
) -> subprocess.CompletedProcess[bytes]:
    """Run commands whose paths are the node's; what they leave has such paths again.

    Args:
        text: the commands.
        root: of the node's file system.
        path: directories of its programs, before those of this host.
        shell: that reads them.
        variables: of its environment.
    """
    below = str(root).encode()
    _replace(root / "var/lib", b"/etc/", below + b"/etc/")
    for top in ("/etc/", "/var/lib/"):
        text = text.replace(top, f"{root}{top}")
    try:
        return subprocess.run(
            [*shell, "-c", "umask 022; . /dev/stdin"],
            input=text.encode(),
            env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}", **variables},
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


_KILLING = """#!/bin/sh
count=$(ls "{directory}/calls" | wc -l)
: >"{directory}/calls/$count"
[ "$count" != {at} ] || kill -9 $PPID
exec {program} "$@"
"""


def killing(directory: Path, at: int) -> str:
    """A directory of programs that change files, of which one call ends its shell instead.

    Args:
        directory: for them; ``calls`` in it has a file for each call.
        at: number of that call, from 0.
    """
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "calls").mkdir(parents=True)
    for name in ("chmod", "cp", "mkdir", "mv", "rm", "rmdir"):
        text = _KILLING.format(directory=directory, at=at, program=shutil.which(name))
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    return str(directory)


def killed_at_each_change(text: str, root: Path, directory: Path, first: str = "") -> Iterator[int]:
    """Paste commands again and again, each time killed at another change, and at last whole.

    Args:
        directory: for the programs of `killing`.
        first: commands that are pasted before each time.

    Yields:
        The number of the change, after each kill.
    """
    for at in range(200):
        if first:
            paste(first, root)
        try:
            paste(text, root, killing(directory, at))
        except subprocess.CalledProcessError:
            yield at
        else:
            assert at == len(list((directory / "calls").iterdir())) > 10
            return
    raise AssertionError("the commands never end")


def way_back(text: str) -> str:
    """The commands that are printed to take others back."""
    back = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   ")]
    return "\n".join(back)


def put_own_hosts(root: Path, host: str = "quay.io") -> Path:
    """Write a hosts.toml that an operator made for a host; the file."""
    file = root / f"etc/containerd/certs.d/{host}/hosts.toml"
    file.parent.mkdir(parents=True)
    file.write_text("# mine\n")
    return file


def _replace(directory: Path, old: bytes, new: bytes) -> None:
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink() and old in (content := path.read_bytes()):
            path.write_bytes(content.replace(old, new))
