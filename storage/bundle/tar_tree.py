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
from mayfly.storage.directory_tree import is_kind
from mayfly.storage.errors import PathRefused


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

    def status(self, path: Path) -> os.stat_result | None:
        name = self._name(path)
        made = self.root.stat()
        for _, tar in self._tars:
            try:
                piece = tar.locate(name)
            except BundleInvalid as error:
                raise PathRefused(error.message) from None
            if piece is not None:
                return _like(made, stat.S_IFREG | 0o444, piece.size)
            if tar.is_directory(name):
                return _like(made, stat.S_IFDIR | 0o555, 0)
        return None

    def read(self, path: Path, count: int) -> bytes:
        name = self._name(path)
        found: dict[bytes, str] = {}
        for label, tar in self._tars:
            try:
                piece = tar.locate(name)
            except BundleInvalid as error:
                raise PathRefused(error.message) from None
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
        return is_kind(self, path, stat.S_ISREG)

    def is_directory(self, path: Path) -> bool:
        return is_kind(self, path, stat.S_ISDIR)

    def entries(self, path: Path) -> list[str]:
        name = self._name(path)
        return [*dict.fromkeys(one for _, tar in self._tars for one in tar.entries(name))]

    def directories(self, path: Path) -> list[str]:
        return [name for name in self.entries(path) if self.is_directory(path / name)]

    def lists_directory(self, path: Path) -> bool:
        return self.is_directory(path)

    def _name(self, path: Path) -> str:
        name = str(path.relative_to(self.root))
        return "" if name == "." else name


def _like(status: os.stat_result, mode: int, size: int) -> os.stat_result:
    """Return a status with the times of the tar, whose every member changes with it."""
    fields = (mode, *status[1:6], size, *status[7:10])
    times = {f"st_{kind}time_ns": getattr(status, f"st_{kind}time_ns") for kind in "amc"}
    return os.stat_result(fields, times)
