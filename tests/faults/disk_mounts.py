"""Small filesystems that are really full, over quota, read-only or broken."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.process import find_program, need, need_root

MIB = 1024 * 1024


def run(*argv: str | Path) -> None:
    """Run a program of the system that has to succeed."""
    path = find_program(str(argv[0])) or str(argv[0])
    done = subprocess.run([path, *map(str, argv[1:])], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"


@contextmanager
def mounted(point: Path, *argv: str | Path) -> Iterator[Path]:
    """A mount, gone at the end whatever still lies in it."""
    need_root()
    point.mkdir()
    run("mount", *argv, point)
    try:
        yield point
    finally:
        run("umount", point)
        point.rmdir()


@contextmanager
def tmpfs(point: Path, size: int) -> Iterator[Path]:
    """A filesystem in memory of a number of bytes."""
    with mounted(point, "-t", "tmpfs", "-o", f"size={size}", "tmpfs") as found:
        yield found


def _need_loop() -> None:
    need_root()
    if not Path("/dev/loop-control").exists():
        pytest.skip("needs loop devices (a kernel with CONFIG_BLK_DEV_LOOP)")


def _image(file: Path, size: int, *mkfs: str) -> None:
    with file.open("wb") as made:
        made.truncate(size)
    run(*mkfs, file)


@contextmanager
def ext4(point: Path, size: int) -> Iterator[Path]:
    """An ext4 of a number of bytes in a file beside the mount."""
    _need_loop()
    need("mkfs.ext4")
    image = point.with_suffix(".img")
    _image(image, size, "mkfs.ext4", "-q", "-m", "0")
    with mounted(point, "-o", "loop", image) as found:
        yield found


@contextmanager
def with_quota(point: Path) -> Iterator[Path]:
    """A Btrfs with quotas on; see `limit`."""
    _need_loop()
    need("mkfs.btrfs", "btrfs")
    if "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs a kernel with Btrfs (CONFIG_BTRFS_FS)")
    image = point.with_suffix(".img")
    _image(image, 256 * MIB, "mkfs.btrfs", "-q", "--mixed")
    with mounted(point, "-o", "loop", image) as found:
        run("btrfs", "quota", "enable", found)
        yield found


def limit(point: Path, size: int | None) -> None:
    """Set the quota of a `with_quota`; None lifts it."""
    run("btrfs", "qgroup", "limit", str(size) if size is not None else "none", point)


@contextmanager
def thin(point: Path) -> Iterator[Path]:
    """An ext4 that promises 64 MiB on a disk that has some 24: a write fails when it is synced.

    Its image is sparse and lies on a smaller filesystem.
    """
    _need_loop()
    need("mkfs.ext4")
    with tmpfs(point.with_suffix(".disk"), 24 * MIB) as disk:
        image = disk / "image"
        _image(image, 64 * MIB, "mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal")
        with mounted(point, "-o", "loop,errors=continue", image) as found:
            yield found


def free(point: Path) -> int:
    """Bytes that are free."""
    found = os.statvfs(point)
    return found.f_bavail * found.f_frsize


def fill(point: Path, leave: int) -> Path:
    """A file that takes all but a number of bytes of the room."""
    ballast = point / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free(point) - leave))
    return ballast
