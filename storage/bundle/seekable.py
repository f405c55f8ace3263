"""Seekable zstd files: frames that are decompressed one by one, wherever content is asked for.

Format: zstd's ``contrib/seekable_format/zstd_seekable_compression_format.md``. The file is a row of
frames; a last, skippable frame lists the size of each, before and after compression:

    0x184D2A5E  length  { compressed  decompressed  [checksum] } …  frames  flags  0x8F92EAB1

Other readers of zstd skip that list and decompress everything, so both must see the same: the
frames that are listed have to fill the file, and each has to have the size that is listed. The
checksums are not needed, since every blob is proven by its digest.

Sent bytes pass through small files in memory, so that slow clients keep no frames; `frames` has
the bounds.
"""

from __future__ import annotations

import asyncio
import io
import os
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

from mayfly.storage.bundle.bombs import expands_too_far, most_expanded
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.frames import FramePool
from mayfly.storage.errors import ContentCorrupt
from mayfly.storage.files import write_at
from mayfly.storage.interface import Extent, OpenExtent, Sink, open_file
from mayfly.storage.text import counted

FRAME_SIZE = 1024 * 1024
"""Bytes of each frame that Mayfly writes."""

_TABLE_MAGIC = 0x184D2A5E
_FOOTER_MAGIC = 0x8F92EAB1
_HEADER = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
_HAS_CHECKSUMS = 0x80
_RESERVED = 0x7C

_MAX_FRAMES = 1_000_000
_MAX_FRAME = 8 * 1024 * 1024
"""Largest frame in bytes, decompressed: all of it is in memory at once, for each byte of it."""

_MAX_COMPRESSED = _MAX_FRAME + 1024 * 1024
"""Largest frame in the file: incompressible data grows by a few bytes in each block."""

_COPY_SIZE = 1024 * 1024


class FrameList(NamedTuple):
    """The list at the end of a seekable file.

    Attributes:
        compressed: the size of each frame in the file.
        sizes: the size of each frame, decompressed.
    """

    compressed: array[int]
    sizes: array[int]


class Frames:
    """The frames of a seekable file as one row of bytes. Safe for use from several threads.

    Args:
        descriptor: of the file; not closed here, and used by its own position only.
        listed: the frames.
        pool: that all seekable files of a server share.
        start: of the first frame in the file.

    Attributes:
        size: bytes of all frames, decompressed.
    """

    def __init__(self, descriptor: int, listed: FrameList, pool: FramePool, start: int = 0) -> None:
        self._descriptor = descriptor
        self._places = array("Q", accumulate(listed.compressed, initial=start))
        self._starts = array("Q", accumulate(listed.sizes, initial=0))
        self.size = self._starts[-1]
        self.pool = pool

    def read(self, offset: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``offset``; fewer only at the end.

        Raises:
            ContentCorrupt: a frame is damaged, or is not as it is listed.
        """
        found = bytearray()
        end = min(offset + count, self.size)
        while offset < end:
            number = bisect_right(self._starts, offset) - 1
            begin = offset - self._starts[number]
            frame = self.pool.frame((self, number), partial(self._decompress, number))
            piece = frame[begin : begin + end - offset]
            offset += len(piece)
            if offset == end and not found:
                return piece
            found += piece
        return bytes(found)

    def _decompress(self, number: int) -> bytes:
        zstandard = _library()
        place, end = self._places[number], self._places[number + 1]
        size = self._starts[number + 1] - self._starts[number]
        data = os.pread(self._descriptor, end - place, place)
        try:
            stated = zstandard.get_frame_parameters(data).content_size
            # Without this check a frame could have any size that it states be allocated.
            if stated not in (size, zstandard.CONTENTSIZE_UNKNOWN):
                raise ContentCorrupt(f"{self._name(number)} is not of the size that is listed")
            found: bytes = zstandard.ZstdDecompressor().decompress(
                data, max_output_size=size, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise ContentCorrupt(f"{self._name(number)} is damaged: {error}") from None
        if len(found) != size:
            raise ContentCorrupt(f"{self._name(number)} is not of the size that is listed")
        return found

    def _name(self, number: int) -> str:
        return f"the zstd frame at byte {self._places[number]}"


def frames_of(descriptor: int, pool: FramePool, start: int = 0) -> Frames | None:
    """Return the frames of an open file; None if it is not a seekable zstd file.

    Args:
        descriptor: of the file.
        pool: that all seekable files of a server share.
        start: of the part of the file that is read, to its end.

    Raises:
        BundleInvalid: see `read_frame_list`.
    """
    listed = read_frame_list(descriptor, start)
    return None if listed is None else Frames(descriptor, listed, pool, start)


def read_frame_list(descriptor: int, start: int = 0) -> FrameList | None:
    """Return the list of frames of an open file; None if it is not a seekable zstd file.

    Args:
        descriptor: of the file.
        start: of the part of the file that is read, to its end.

    Raises:
        BundleInvalid: the list is damaged or too long, the frames are too large, together they
            expand too far, or zstd cannot be read here.
    """
    end = os.fstat(descriptor).st_size
    size = end - start
    if os.pread(descriptor, 4, start) != b"\x28\xb5\x2f\xfd" or size < _HEADER.size + _FOOTER.size:
        return None
    count, flags, magic = _FOOTER.unpack(os.pread(descriptor, _FOOTER.size, end - _FOOTER.size))
    if magic != _FOOTER_MAGIC:
        return None
    width = 12 if flags & _HAS_CHECKSUMS else 8
    length = count * width + _FOOTER.size
    table_at = end - length - _HEADER.size
    if count > _MAX_FRAMES:
        raise BundleInvalid(f"the zstd file has {counted(count, 'frame')}, at most {_MAX_FRAMES}")
    is_whole = table_at >= start and not flags & _RESERVED
    if not is_whole or _read_header(descriptor, table_at) != (_TABLE_MAGIC, length):
        raise BundleInvalid("the list of frames at the end of the zstd file is damaged")
    table = memoryview(os.pread(descriptor, count * width, table_at + _HEADER.size))
    compressed, sizes = array("L"), array("L")
    for entry in struct.iter_unpack("<II4x" if width == 12 else "<II", table):
        compressed.append(entry[0])
        sizes.append(entry[1])
    if sum(compressed) != table_at - start:
        raise BundleInvalid(
            "the frames that the zstd file lists do not fill it: tools disagree on its content; "
            "compress it again"
        )
    if max(sizes, default=0) > _MAX_FRAME or max(compressed, default=0) > _MAX_COMPRESSED:
        raise BundleInvalid(
            f"the zstd file has frames of more than {_MAX_FRAME // 2**20} MiB: import it, or "
            "compress it again in smaller ones"
        )
    if sum(sizes) > most_expanded(size):
        raise expands_too_far()
    _library()
    return FrameList(compressed, sizes)


def _read_header(descriptor: int, at: int) -> tuple[int, int]:
    magic, length = _HEADER.unpack(os.pread(descriptor, _HEADER.size, at))
    return magic, length


def _library() -> Any:
    """Return the package that reads zstd.

    Raises:
        BundleInvalid: it is not installed.
    """
    try:
        import zstandard
    except ImportError:
        raise BundleInvalid(
            "reading zstd takes the package zstandard (pip install 'mayfly-registry[zstd]')"
        ) from None
    return zstandard


@dataclass(frozen=True, slots=True)
class FramedExtent(Extent):
    """Content in a seekable zstd file; ``offset`` is that of the bytes, decompressed."""

    frames: Frames = field(kw_only=True, repr=False)

    def open(self) -> OpenExtent:
        return _OpenFramed(self, open_file(self.opener, self.path), self.frames)


class _OpenFramed(OpenExtent):
    """An open `FramedExtent`; its file is the compressed one."""

    def __init__(self, extent: Extent, file: io.FileIO, frames: Frames) -> None:
        super().__init__(extent, file)
        self._frames = frames

    def read(self, offset: int, count: int) -> bytes:
        count = max(min(count, self.extent.size - offset), 0)
        return self._frames.read(self.extent.offset + offset, count)

    def copy_to(self, target: int, at: int, progress: Callable[[int], None]) -> None:
        done = 0
        while done < self.extent.size:
            piece = self.read(done, _COPY_SIZE)
            write_at(target, piece, at + done)
            done += len(piece)
            progress(len(piece))

    async def send(self, sink: Sink, offset: int, count: int) -> None:
        while count > 0:
            # A file for each part: the kernel sends its pages later, which must not change.
            with (
                self._frames.pool.unsent(count) as part,
                await self._in_memory(offset, part) as file,
            ):
                await sink.send_file(file, 0, part)
            offset, count = offset + part, count - part

    async def _in_memory(self, offset: int, count: int) -> io.FileIO:
        """Return a file with decompressed bytes; an empty one if they are damaged.

        The sink cuts the connection where a file ends early.
        """
        # In another thread: decompressing a frame takes milliseconds.
        loop = asyncio.get_running_loop()
        try:
            part = await loop.run_in_executor(self._frames.pool.threads, self.read, offset, count)
        except ContentCorrupt:
            part = b""
            if self.extent.proof is not None:
                self.extent.proof.corrupt()
        file = io.FileIO(os.memfd_create("mayfly-frames", os.MFD_CLOEXEC), "r+b")
        try:
            os.pwrite(file.fileno(), part, 0)
        except BaseException:
            file.close()
            raise
        return file


class SeekableWriter:
    """A stream that writes a seekable zstd file.

    Args:
        output: takes the compressed bytes; not closed here.
        level: of compression.

    Raises:
        ImportError: the package that writes zstd is not installed.
    """

    def __init__(self, output: Any, level: int = 3) -> None:
        import zstandard

        self._output = output
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._waiting = bytearray()
        self._entries = bytearray()
        self._position = 0

    def write(self, data: bytes | memoryview) -> int:
        """Compress bytes."""
        self._waiting += data
        self._position += len(data)
        while len(self._waiting) >= FRAME_SIZE:
            self._add(bytes(self._waiting[:FRAME_SIZE]))
            del self._waiting[:FRAME_SIZE]
        return len(data)

    def tell(self) -> int:
        """Return the number of bytes written, before compression."""
        return self._position

    def finish(self) -> None:
        """Write the last frame and the list of frames."""
        if self._waiting:
            self._add(bytes(self._waiting))
        count = len(self._entries) // _HEADER.size
        self._output.write(_HEADER.pack(_TABLE_MAGIC, len(self._entries) + _FOOTER.size))
        self._output.write(self._entries)
        self._output.write(_FOOTER.pack(count, 0, _FOOTER_MAGIC))

    def _add(self, data: bytes) -> None:
        frame = self._compressor.compress(data)
        self._output.write(frame)
        self._entries += _HEADER.pack(len(frame), len(data))
