"""Compressed bundles: recognized by their first bytes, expanded for an import.

They cannot be served by offset, unless they are zstd with a list of frames (`seekable`); a server
names the command that expands them. An import expands the file beside the store first, at most as
far as `bombs` allows.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import IO, NamedTuple

from mayfly.storage.bundle.bombs import expands_too_far, most_expanded
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.seekable import read_frame_list
from mayfly.storage.files import open_regular, translate_disk_full

_READ_SIZE = 1024 * 1024


class Compression(NamedTuple):
    """A kind of compression: its name, and the command that expands a file."""

    name: str
    command: str


_MAGIC = {
    b"\x1f\x8b": Compression("gzip", "gzip --decompress --keep"),
    b"\x28\xb5\x2f\xfd": Compression("zstd", "zstd --decompress --keep"),
    b"\xfd7zXZ\x00": Compression("xz", "xz --decompress --keep"),
    b"BZh": Compression("bzip2", "bzip2 --decompress --keep"),
}


def compression_of(path: Path) -> Compression | None:
    """Return the compression of a file; None for a plain file, and for one that can be served.

    Raises:
        OSError: it cannot be read.
    """
    with _opened(path) as file:
        # With a list of frames that cannot be used it is like any other zstd file.
        with contextlib.suppress(BundleInvalid):
            if read_frame_list(file.fileno()) is not None:
                return None
        start = file.read(8)
    return next((found for magic, found in _MAGIC.items() if start.startswith(magic)), None)


def expand(path: Path, target: Path, progress: Callable[[int], None]) -> None:
    """Expand a compressed file to ``target``.

    Args:
        path: of the compressed file.
        target: a new file.
        progress: called with the bytes of the compressed file read since the last call.

    Raises:
        BundleInvalid: it is damaged, expands too far, or the package that reads it is missing.
        StorageFull: it does not fit.
    """
    limit = most_expanded(path.stat().st_size)
    written = position = 0
    with _opened(path) as raw, _open(path, raw) as source, target.open("xb") as output:
        while piece := _read(path, source):
            written += len(piece)
            if written > limit:
                raise BundleInvalid(f"{path}: {expands_too_far().message}")
            with translate_disk_full():
                output.write(piece)
            progress(raw.tell() - position)
            position = raw.tell()


def _opened(path: Path) -> IO[bytes]:
    return os.fdopen(open_regular(path), "rb")


def zstandard_reader(path: Path, raw: IO[bytes]) -> IO[bytes]:
    """Return a stream of the content of a zstd file.

    Raises:
        BundleInvalid: the package that reads zstd is not installed.
    """
    try:
        import zstandard
    except ImportError:
        raise BundleInvalid(
            f"{path}: reading zstd takes the package zstandard (pip install "
            f"'mayfly-registry[zstd]'); or run: zstd --decompress --keep {quote(str(path))}"
        ) from None
    decompressor = zstandard.ZstdDecompressor()
    reader: IO[bytes] = decompressor.stream_reader(raw, read_across_frames=True)
    return reader


def _open(path: Path, raw: IO[bytes]) -> IO[bytes]:
    found = compression_of(path)
    match found.name if found else "":
        case "gzip":
            return gzip.open(raw)  # type: ignore[return-value]
        case "xz":
            return lzma.open(raw)
        case "bzip2":
            return bz2.open(raw)
        case _:
            return zstandard_reader(path, raw)


def _read(path: Path, source: IO[bytes]) -> bytes:
    try:
        return source.read(_READ_SIZE)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise BundleInvalid(f"{path}: it is damaged or cut short: {error}") from None
    except Exception as error:
        # zstandard's own error is known only where the package is.
        if type(error).__name__ != "ZstdError":
            raise
        raise BundleInvalid(f"{path}: it is damaged or cut short: {error}") from None
