"""The files of a bundle by name, in a tar or a directory; never copied or extracted."""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from mayfly.storage.beneath import Beneath
from mayfly.storage.bundle import packed, tar_index
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.frames import FramePool
from mayfly.storage.bundle.seekable import frames_of
from mayfly.storage.bundle.verified import Piece, changed
from mayfly.storage.errors import PathRefused
from mayfly.storage.files import open_regular, stamp_of
from mayfly.storage.text import counted

MAX_DOCUMENT = 16 * 1024 * 1024
"""Largest JSON document in bytes that is read from a bundle."""

BLOBS = "blobs/"
"""Below this path a file's name is the digest of its bytes (image-spec, image-layout.md)."""


class Files(Protocol):
    """Read access to the files of one bundle."""

    def locate(self, name: str) -> Piece | None:
        """Quick. Locate a regular file; None if there is none of that name.

        Raises:
            BundleChanged: the bundle was written to since it was opened.
            BundleInvalid: the name is a link out of the bundle or in circles.
        """

    def entries(self, directory: str) -> list[str]:
        """Return the names in a directory, unordered and each once; none if there is none.

        Args:
            directory: its name; "" for the top of the bundle.

        Raises:
            BundleInvalid: it has too many.
        """

    def close(self) -> None:
        """Close the bundle's files."""


class TarFile:
    """The files of a tar, plain or in a seekable zstd file, by itself or packed in a one file.

    It stays open: a file that replaces it under its name is not read.

    Args:
        path: of the tar.
        pool: that seekable files share.

    Attributes:
        packed_as: the file name of the tar before it was packed; None if it is by itself.

    Raises:
        BundleInvalid: see `storage.bundle.tar_index.scan` and `storage.bundle.packed.read`.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, pool: FramePool) -> None:
        # The path that the operator gives may be a link.
        self._descriptor = open_regular(path)
        try:
            self._stamp = stamp_of(os.fstat(self._descriptor))
            inner = packed.read(self._descriptor)
            if inner and tar_index.is_header(os.pread(self._descriptor, tar_index.BLOCK, 0)):
                raise BundleInvalid("it is a tar and a one file: tools disagree on its content")
            self.packed_as = None if inner is None else inner.name
            self._start = 0 if inner is None else inner.bundle.offset
            self._frames = frames_of(self._descriptor, pool, self._start)
            if self._frames is None:
                self.index = tar_index.scan(self._descriptor, BLOBS, self._start)
            else:
                self.index = tar_index.index_of(self._frames, repeatable=BLOBS)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._opener = OpenFile(self._descriptor)
        self._sorted: list[str] = []

    @property
    def path(self) -> Path:
        """The open file by a path that stays valid."""
        return self._opener.path

    def locate(self, name: str) -> Piece | None:
        place = self.index.locate(name)
        if place is None:
            return None
        stamp = stamp_of(os.fstat(self._descriptor))
        if not stamp.is_same_file(self._stamp):
            raise changed()
        offset = place.offset if self._frames else self._start + place.offset
        # With the current stamp: after a chmod the content is proven again.
        return Piece(self._opener.path, offset, place.size, stamp, self._opener, self._frames)

    def entries(self, directory: str) -> list[str]:
        return [*dict.fromkeys(_entries(self._names(), f"{directory}/" if directory else ""))]

    def is_directory(self, name: str) -> bool:
        """Quick. Whether any member lies in a directory of this name."""
        return any(True for _ in _entries(self._names(), f"{name}/"))

    def _names(self) -> list[str]:
        if not self._sorted:
            self._sorted = sorted(self.index.members)
        return self._sorted

    def close(self) -> None:
        os.close(self._descriptor)


def _entries(names: list[str], prefix: str) -> Iterator[str]:
    """Yield the first part after ``prefix`` of sorted names; a directory's members are skipped."""
    place = bisect_left(names, prefix)
    while place < len(names) and names[place].startswith(prefix):
        first, slash, _ = names[place][len(prefix) :].partition("/")
        yield first
        # "0" follows "/": the first name beyond the directory.
        place = bisect_left(names, f"{prefix}{first}0", place) if slash else place + 1


class OpenFile:
    """See `storage.directory_tree.Opener`: reopens an open file, even if its name is gone."""

    def __init__(self, descriptor: int) -> None:
        self.path = Path(f"/proc/self/fd/{descriptor}")

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class Directory:
    """The files of a directory. Links are not followed: a bundle cannot point out of itself.

    Args:
        tree: the directory; closed with this.
    """

    def __init__(self, tree: Beneath) -> None:
        self.tree = tree

    def locate(self, name: str) -> Piece | None:
        # Joined to the root, such a name would stand for a path of the host.
        if name.startswith("/"):
            return None
        path = self.tree.root / name
        try:
            status = self.tree.status(path)
        except PathRefused as error:
            raise BundleInvalid(error.message) from None
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        return Piece(path, 0, status.st_size, stamp_of(status), self.tree)

    def entries(self, directory: str) -> list[str]:
        try:
            return self.tree.entries(self.tree.root / directory)
        except PathRefused as error:
            raise BundleInvalid(error.message) from None

    def close(self) -> None:
        self.tree.close()


class Below:
    """The files below one directory of a bundle.

    Args:
        files: of the whole bundle; closed with this.
        directory: its name.
    """

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory

    def locate(self, name: str) -> Piece | None:
        return self._files.locate(f"{self._directory}/{name}")

    def entries(self, directory: str) -> list[str]:
        return self._files.entries(f"{self._directory}/{directory}".rstrip("/"))

    def close(self) -> None:
        self._files.close()


def read(piece: Piece, name: str, limit: int = MAX_DOCUMENT) -> bytes:
    """Return the bytes of a small file.

    Raises:
        BundleInvalid: it is larger than ``limit`` bytes.
        BundleChanged: it was written to since it was located.
    """
    if piece.size > limit:
        long = counted(piece.size, "byte")
        raise BundleInvalid(f"file {name} is {long} long, at most {limit} are read")
    with piece.open() as file:
        data = piece.read(file, 0, piece.size)
        if len(data) != piece.size or stamp_of(os.fstat(file.fileno())) != piece.stamp:
            raise changed()
    return data


def read_named(files: Files, name: str, limit: int = MAX_DOCUMENT) -> bytes | None:
    """Return the bytes of the small file ``name``; None if there is none.

    Raises:
        BundleInvalid, BundleChanged: see `Files.locate` and `read`.
    """
    piece = files.locate(name)
    return None if piece is None else read(piece, name, limit)
