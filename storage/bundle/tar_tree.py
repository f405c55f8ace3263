"""The members of tars as a `storage.directory_tree`: of one, or of several that belong together."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mayfly.storage.bundle.errors import BundleConflict, BundleInvalid
from mayfly.storage.bundle.files import Files, TarFile, read
from mayfly.storage.bundle.verified import Piece
from mayfly.storage.errors import PathRefused

_FILE, _DIRECTORY = stat.S_IFREG | 0o444, stat.S_IFDIR | 0o555
"""Modes of the members."""


class Part(NamedTuple):
    """One of the files or directories that a bundle consists of.

    Attributes:
        label: as the operator named it.
        files: in it.
    """

    label: str
    files: Files


class TarTree:
    """See `storage.directory_tree.DirectoryTree`.

    The paths begin with that of the first tar's open descriptor.

    Args:
        tars: with their names; a small file that two of them have must be the same in both.
    """

    def __init__(self, tars: Sequence[tuple[str, TarFile]]) -> None:
        self._tars = tuple(tars)
        # Not a path of the host: a file that something asks for beside the tree is not found.
        self.root = self._tars[0][1].path
        self._above = f"{self.root}/"

    def status(self, path: Path) -> os.stat_result | None:
        found = self._find(self._name(path))
        return None if found is None else _like(self.root.stat(), *found)

    def read(self, path: Path, count: int) -> bytes:
        name = self._name(path)
        found: dict[bytes, str] = {}
        for label, tar in self._tars:
            piece = _locate(tar, name)
            if piece is not None:
                start = read(piece._replace(size=min(piece.size, count)), name)
                found.setdefault(start, label)
        if len(found) > 1:
            raise BundleConflict(
                f"file {name} differs between {' and '.join(found.values())}: import them one "
                "after the other, the newest last"
            )
        if not found:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return next(iter(found))

    def is_file(self, path: Path) -> bool:
        return self._is(self._name(path), _FILE)

    def is_directory(self, path: Path) -> bool:
        return self._is(self._name(path), _DIRECTORY)

    def entries(self, path: Path) -> list[str]:
        name = self._name(path)
        return [*dict.fromkeys(one for _, tar in self._tars for one in tar.entries(name))]

    def directories(self, path: Path) -> list[str]:
        above = self._name(path)
        before = f"{above}/" if above else ""
        return [name for name in self.entries(path) if self._is(before + name, _DIRECTORY)]

    def lists_directory(self, path: Path) -> bool:
        return self.is_directory(path)

    def _find(self, name: str) -> tuple[int, int] | None:
        """Return mode and size of a file or directory; None if there is none.

        Raises:
            PathRefused: see `status`.
        """
        for _, tar in self._tars:
            piece = _locate(tar, name)
            if piece is not None:
                return _FILE, piece.size
            if tar.is_directory(name):
                return _DIRECTORY, 0
        return None

    def _is(self, name: str, mode: int) -> bool:
        try:
            found = self._find(name)
        except PathRefused:
            return False
        return found is not None and found[0] == mode

    def _name(self, path: Path) -> str:
        # As text: `Path.relative_to` takes longer than all else that a question costs.
        name = str(path)
        if name == self._above[:-1]:
            return ""
        if not name.startswith(self._above):
            raise ValueError(f"{name} is not below {self.root}")
        return name[len(self._above) :]


def _locate(tar: TarFile, name: str) -> Piece | None:
    try:
        return tar.locate(name)
    except BundleInvalid as error:
        raise PathRefused(error.message) from None


def _like(status: os.stat_result, mode: int, size: int) -> os.stat_result:
    """Return a status with the times of the tar, whose every member changes with it."""
    fields = (mode, *status[1:6], size, *status[7:10])
    times = {f"st_{kind}time_ns": getattr(status, f"st_{kind}time_ns") for kind in "amc"}
    return os.stat_result(fields, times)
