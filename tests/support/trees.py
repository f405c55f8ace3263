"""Snapshots of a directory tree, and crashes at a chosen change to it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Node = tuple[object, ...]


def snapshot(root: Path) -> dict[str, Node]:
    """All below root that `revert` has to bring back: times of files, but not of directories."""
    return {str(path.relative_to(root)): _look(path) for path in sorted(root.rglob("*"))}


def _look(path: Path) -> Node:
    found = path.lstat()
    owner = (found.st_uid, found.st_gid)
    if stat.S_ISLNK(found.st_mode):
        return ("link", os.readlink(path), owner)  # noqa: PTH115  (not normalised)
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISDIR(found.st_mode):
        return ("directory", mode, owner)
    if not stat.S_ISREG(found.st_mode):
        # Such as an overlay's mark that a file is gone.
        return ("special", found.st_mode, found.st_rdev, owner)
    xattrs = tuple((name, os.getxattr(path, name)) for name in os.listxattr(path))
    return ("file", mode, owner, found.st_mtime_ns, xattrs, path.read_bytes())


class Killed(BaseException):
    """This process does not get any further."""


_CHANGES = frozenset(
    {
        "os.chmod",
        "os.chown",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.setxattr",
        "os.symlink",
        "os.truncate",
        "os.utime",
    }
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Changes:
    """Counts the changes that this process asks the kernel for, and interferes with them.

    An audit hook (PEP 578) sees them all without a line in the code under test, and what it raises
    keeps the change from happening. Hooks cannot be removed, so there is one, mostly idle.

    Attributes:
        seen: the changes asked for.
        interfere: called before each of them with ``seen``.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.interfere: Callable[[int], None] | None = None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.interfere is not None and _is_change(event, arguments):
            self.seen += 1
            self.interfere(self.seen)


def _is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    return event in _CHANGES or (event == "open" and bool(arguments[2] & _WRITING))


_changes: Changes | None = None


@contextlib.contextmanager
def interfering(interfere: Callable[[int], None]) -> Iterator[Changes]:
    """Have ``interfere`` called before each change."""
    global _changes
    _changes = _changes or Changes()
    _changes.seen, _changes.interfere = 0, interfere
    try:
        yield _changes
    finally:
        _changes.interfere = None


@contextlib.contextmanager
def killed_after(changes: int) -> Iterator[None]:
    """Let a number of changes happen and none after them, clean-up included; swallows `Killed`."""

    def kill(seen: int) -> None:
        if seen > changes:
            raise Killed

    with contextlib.suppress(Killed), interfering(kill):
        yield


@contextlib.contextmanager
def full_after(changes: int) -> Iterator[None]:
    """Let the change after a number of others fail for lack of space, and the others happen."""

    def fail(seen: int) -> None:
        if seen == changes + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    with interfering(fail):
        yield
