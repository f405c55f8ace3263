"""The disk as the storage tests see it: every step recorded, and any of them made to fail.

The seam is the operating system's own calls (create, write, fsync, mkdir, rename, unlink), so the
code under test may be written in any way. A step that fails has done half of its work where that
is possible: a write has written half of its bytes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import pytest

FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class Step(NamedTuple):
    """One call that changes the disk; ``target`` only for a rename."""

    kind: str
    path: Path
    target: Path | None = None


class Disk:
    """Records the steps since the last `watch`, runs a hook before each, fails the chosen one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[Step] = []
        self._before: Callable[[int], None] = lambda number: None
        self._fail_at: int | None = None
        self._errno = 0
        self._watching = False
        self._patch(monkeypatch)

    def watch(
        self,
        *,
        fail_at: int | None = None,
        error: int = errno.EIO,
        before: Callable[[int], None] = lambda number: None,
    ) -> Self:
        """As a context: the steps inside it are recorded, hooked and failed."""
        self.steps = []
        self._fail_at, self._errno, self._before = fail_at, error, before
        return self

    def __enter__(self) -> Self:
        self._watching = True
        return self

    def __exit__(self, *_: object) -> None:
        self._watching = False

    def step(self, kind: str, path: Path, target: Path | None = None) -> bool:
        """Note a step; whether it is the one that fails."""
        if not self._watching:
            return False
        number = len(self.steps)
        self.steps.append(Step(kind, path, target))
        self._watching = False
        self._before(number)
        self._watching = True
        return number == self._fail_at

    def refuse(self, path: Path) -> OSError:
        """The error of the step that fails."""
        return OSError(self._errno, os.strerror(self._errno), str(path))

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real_open, real_write = os.open, os.write
        real_path_open = Path.open

        def one_path(name: str) -> None:
            real = getattr(os, name)

            def call(path: Any, *args: Any, **kwargs: Any) -> Any:
                # rmtree works on names relative to a descriptor; those are no steps of ours.
                if "dir_fd" not in kwargs and self.step(name, Path(path)):
                    raise self.refuse(Path(path))
                return real(path, *args, **kwargs)

            monkeypatch.setattr(os, name, call)

        def two_paths(name: str) -> None:
            real = getattr(os, name)

            def call(source: Any, target: Any, **kwargs: Any) -> Any:
                if self.step("rename", Path(source), Path(target)):
                    raise self.refuse(Path(target))
                return real(source, target, **kwargs)

            monkeypatch.setattr(os, name, call)

        def open_descriptor(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_CREAT and self.step("create", Path(path)):
                raise self.refuse(Path(path))
            return real_open(path, flags, *args, **kwargs)

        def write(descriptor: int, data: Any) -> int:
            path = path_of(descriptor)
            if self.step("write", path):
                real_write(descriptor, bytes(data)[: len(data) // 2])
                raise self.refuse(path)
            return real_write(descriptor, data)

        real_fsync = os.fsync

        def fsync(descriptor: int) -> None:
            path = path_of(descriptor)
            if self.step("fsync", path):
                raise self.refuse(path)
            real_fsync(descriptor)

        def open_file(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            changes = any(letter in mode for letter in "wax+")
            if changes and self.step("create", path):
                raise self.refuse(path)
            opened = real_path_open(path, mode, *args, **kwargs)
            return _File(opened, self, path) if changes else opened

        for name in ("mkdir", "unlink"):
            one_path(name)
        for name in ("rename", "replace"):
            two_paths(name)
        monkeypatch.setattr(os, "open", open_descriptor)
        monkeypatch.setattr(os, "write", write)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "open", open_file)


class _File:
    """A file opened for writing whose writes are steps."""

    def __init__(self, file: IO[Any], disk: Disk, path: Path) -> None:
        self._file = file
        self._disk = disk
        self._path = path

    def write(self, data: Any) -> int:
        if self._disk.step("write", self._path):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise self._disk.refuse(self._path)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def skip_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync nothing to the disk, which would take most of the time of the tests.

    That everything is synced, and in which order, is what `test_publish_order` shows. The
    descriptor still has to be an open one.
    """
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: os.fstat(descriptor) and None)


def path_of(descriptor: int) -> Path:
    """What an open descriptor refers to."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def prune_everything(root: Path) -> None:
    """Remove every empty directory below ``root``, as another process that tidies up may."""
    for directory, _, _ in os.walk(root, topdown=False):
        if Path(directory) != root and not os.listdir(directory):
            Path(directory).rmdir()
