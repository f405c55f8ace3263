"""The files of a directory on this host, read without opening anything but regular files.

Content is read through a `DirectoryTree`. The registry's own root is a `HostDirectory`; a directory
from another host is a `storage.beneath.Beneath`, which follows no link.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mayfly.storage.errors import PathRefused
from mayfly.storage.files import is_absent, open_regular

MOST_ENTRIES = 1_000_000
"""Most entries of a directory that are listed; each costs memory."""


class Opener(Protocol):
    """Opens the file of an extent."""

    def open(self, path: Path) -> int:
        """Open a regular file for reading and return its descriptor.

        Raises:
            FileNotFoundError: there is no regular file of that name.
            OSError: it cannot be opened.
        """


class DirectoryTree(Protocol):
    """The files below one directory, by their full paths."""

    def status(self, path: Path) -> os.stat_result | None:
        """Quick. The status of a file or directory; None if there is none.

        Raises:
            PathRefused: a link leads there, or it is neither a file nor a directory.
        """

    def read(self, path: Path, count: int) -> bytes:
        """Quick. Return the first ``count`` bytes of a small file, or all of it if it is shorter.

        Raises:
            FileNotFoundError: there is no regular file of that name.
            PathRefused: see `status`.
            OSError: it cannot be read.
        """

    def is_file(self, path: Path) -> bool:
        """Quick. Whether there is a regular file that may be read."""

    def is_directory(self, path: Path) -> bool:
        """Quick. Whether there is a directory that may be listed."""

    def entries(self, path: Path) -> list[str]:
        """The names in a directory, unordered; none if there is no directory."""

    def directories(self, path: Path) -> list[str]:
        """The names of the directories in a directory, unordered."""

    def lists_directory(self, path: Path) -> bool:
        """Quick. Whether `directories` of its parent names it; its neighbours are not read."""


class HostDirectory:
    """The files of this host, for a root that its operator made.

    Links to directories are followed, as registry:2 does: an operator may keep a part of the root
    on another disk. A link in the place of a *file* is not: no tool makes one there. While
    repositories are walked, a link is followed only if it leads out of the tree, and below it no
    other link, so that circles of links end.

    Args:
        root: the directory that is walked; None if none is.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root

    def open(self, path: Path) -> int:
        return open_regular(path, os.O_NOFOLLOW)

    def read(self, path: Path, count: int) -> bytes:
        return read_start(self, path, count)

    def status(self, path: Path) -> os.stat_result | None:
        try:
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode):
                return found
            if stat.S_ISLNK(found.st_mode):
                found = path.stat()
        except OSError as error:
            if is_absent(error):
                return None
            raise
        return found if stat.S_ISDIR(found.st_mode) else None

    def is_file(self, path: Path) -> bool:
        return is_kind(self, path, stat.S_ISREG)

    def is_directory(self, path: Path) -> bool:
        return is_kind(self, path, stat.S_ISDIR)

    def entries(self, path: Path) -> list[str]:
        try:
            return os.listdir(path)
        except OSError as error:
            if is_absent(error):
                return []
            raise

    def directories(self, path: Path) -> list[str]:
        try:
            with os.scandir(path) as entries:
                return [
                    entry.name
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False)
                    or (entry.is_symlink() and self._leads_out(entry.path))
                ]
        except OSError as error:
            if is_absent(error):
                return []
            raise

    def lists_directory(self, path: Path) -> bool:
        try:
            mode = os.lstat(path).st_mode
        except OSError as error:
            if is_absent(error):
                return False
            raise
        return stat.S_ISDIR(mode) or (stat.S_ISLNK(mode) and self._leads_out(path))

    def _leads_out(self, link: str | Path) -> bool:
        if self._root is None:
            return False
        with contextlib.suppress(OSError):
            here, root = Path(link).parent.resolve(), self._root.resolve()
            target = Path(link).resolve(strict=True)
            # No directory inside is found twice, and links outside are not followed.
            inside = target.is_relative_to(root) or root.is_relative_to(target)
            return here.is_relative_to(root) and not inside and target.is_dir()
        return False


def is_kind(tree: DirectoryTree, path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether a tree has a file or directory of a kind, and does not refuse it.

    Args:
        tree: the tree.
        path: of the file or directory.
        kind: takes a mode, such as `stat.S_ISREG`.
    """
    try:
        found = tree.status(path)
    except PathRefused:
        return False
    return found is not None and kind(found.st_mode)


def read_start(opener: Opener, path: Path, count: int) -> bytes:
    """Open a small file and return its first ``count`` bytes; see `DirectoryTree.read`."""
    descriptor = opener.open(path)
    try:
        return os.read(descriptor, count)
    finally:
        os.close(descriptor)


HOST = HostDirectory()
"""Opens any file of this host by its path."""
