"""The entries of a layer, read as a stream: a tar, plain or compressed.

`tarfile` parses the headers; the bytes that it may read for one entry are bounded, and with them
the memory that a hostile layer can make it use. Sources: OCI image-spec, layer.md; POSIX.1-2017
``pax``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from mayfly.storage.errors import StorageError
from mayfly.storage.interface import Content
from mayfly.storage.reading import ContentStream

MAX_RATIO = 200
_FLOOR = 1024 * 1024 * 1024
"""Bytes that any layer may expand to, however small it is."""

_HEADERS = 2 * 1024 * 1024
"""Bytes of headers before one entry's content; Go's archive/tar takes 1 MiB of each kind."""

_LONGEST_PATH = 4096
_PIECE = 1024 * 1024
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe",
}

Progress = Callable[[int], None]
"""Called with the number of bytes of the layer expanded since the last call."""


class LayerInvalid(StorageError):
    """A layer that cannot be read as a tar."""


class Entry(NamedTuple):
    """An entry of a layer.

    Attributes:
        path: below the root, without a slash at either end; "" is the root itself.
        kind: file, directory, symlink, hardlink, device or pipe.
        mode: permission bits.
        owner: user and group id.
        size: bytes of a file's content.
        target: of a link.
        content: a key that differs between files of different content; b"" for others.
    """

    path: str
    kind: str
    mode: int
    owner: tuple[int, int]
    size: int
    target: str
    content: bytes


def entries(content: Content, progress: Progress = lambda size: None) -> Iterator[Entry]:
    """Read a layer from start to end.

    Raises:
        LayerInvalid: it is not a tar, is damaged, or would exhaust its reader.
        OSError: it cannot be read.
    """
    limit = max(content.size * MAX_RATIO, _FLOOR)
    with content.open() as opened:
        source = _expanded(ContentStream(opened))
        stream = _Forward(source, limit, progress)
        try:
            yield from _entries(stream)
        except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
            raise LayerInvalid(f"it cannot be read as a tar: {error}") from None
        except (ValueError, IndexError, OverflowError, RecursionError) as error:
            # tarfile's own reactions to headers that contradict themselves.
            raise LayerInvalid(f"its tar headers are invalid: {error}") from None
        except Exception as error:
            if type(error).__name__ != "ZstdError":  # known only where the package is
                raise
            raise LayerInvalid(f"it is damaged: {error}") from None


def _entries(stream: _Forward) -> Iterator[Entry]:
    stream.allow(_HEADERS)
    with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]
        while True:
            stream.allow(_HEADERS)
            member = archive.next()
            if member is None:
                break
            archive.members = []  # tarfile would keep them
            archive.pax_headers.clear()  # and global headers, which Go's reader does not apply
            yield _entry(member, stream)
    if stream.ended_in_header:
        raise LayerInvalid("it is damaged: a tar header is invalid")


def _entry(member: tarfile.TarInfo, stream: _Forward) -> Entry:
    if member.issparse():
        raise LayerInvalid(f"{member.name[:200]!r} is stored as a sparse file")
    kind = _KINDS.get(member.type, "file")
    path = posixpath.normpath("/" + member.name).strip("/")
    if len(path) > _LONGEST_PATH or len(member.linkname) > _LONGEST_PATH:
        raise LayerInvalid("it has a path that is longer than Linux takes")
    if member.size < 0:  # read(-1) would read all of the layer
        raise LayerInvalid("its tar headers are invalid: an entry has a negative size")
    content = b""
    size = member.size if kind == "file" else 0
    if kind == "file":
        stream.seek(member.offset_data)
        content = stream.hash(size)
    owner = (member.uid, member.gid)
    return Entry(path, kind, member.mode & 0o7777, owner, size, member.linkname, content)


def _expanded(stream: ContentStream) -> IO[bytes]:
    raw = io.BufferedReader(stream, _PIECE)
    begin = raw.peek(4)[:4]
    if begin.startswith(_GZIP):
        return gzip.GzipFile(fileobj=raw, mode="rb")  # type: ignore[return-value]
    if begin.startswith(_ZSTD):
        try:
            import zstandard
        except ImportError:
            raise LayerInvalid(
                "reading zstd takes the package zstandard (pip install 'mayfly-registry[zstd]')"
            ) from None
        # Frames may ask for a window of any size, which is allocated.
        decompressor = zstandard.ZstdDecompressor(max_window_size=128 * 1024 * 1024)
        reader: IO[bytes] = decompressor.stream_reader(raw, read_across_frames=True)
        return reader
    return raw


class _Forward:
    """A stream that `tarfile` can use as a file: readable, and seekable forward."""

    def __init__(self, source: IO[bytes], limit: int, progress: Progress) -> None:
        self._source = source
        self._limit = limit
        self._progress = progress
        self._at = 0
        self._allowed = 0
        self.ended_in_header = False

    def allow(self, count: int) -> None:
        """Allow ``count`` bytes to be read until the next call; skipped bytes do not count."""
        self._allowed = count

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        """Skip to a later position."""
        if position < self._at:
            raise LayerInvalid("its tar headers are invalid: an entry lies before another's end")
        while self._at < position:
            if not self._take(min(_PIECE, position - self._at)):
                break
        return self._at

    def read(self, count: int = -1) -> bytes:
        """Read for a header."""
        if not 0 <= count <= self._allowed:
            raise LayerInvalid(f"the headers of an entry are longer than {_HEADERS} bytes")
        self._allowed -= count
        found = bytearray()
        while len(found) < count and (piece := self._take(count - len(found))):
            found += piece
        self.ended_in_header = len(found) == tarfile.BLOCKSIZE and any(found)
        return bytes(found)

    def hash(self, count: int) -> bytes:
        """Read content and return its hash."""
        hasher = hashlib.blake2b(digest_size=16)
        left = count
        while left:
            piece = self._take(min(_PIECE, left))
            if not piece:
                raise LayerInvalid("it ends in the middle of a file")
            hasher.update(piece)
            left -= len(piece)
        return hasher.digest()

    def _take(self, count: int) -> bytes:
        piece = self._source.read(count)
        self._at += len(piece)
        self._progress(len(piece))
        if self._at > self._limit:
            raise LayerInvalid(f"it expands to more than {MAX_RATIO} times its size")
        return piece
