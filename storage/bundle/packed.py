"""A bundle behind the one file of `make dist`, as `mayfly pack` writes it and any Mayfly reads it.

    launcher │ table │ runtime │ document │ bundle
             └ where the launcher's ELF header says that it ends, on a page

The table says where the rest lies (``deploy/onefile`` writes it and reads the runtime by it).
Nothing is searched, so neither the size nor the content of a bundle matters, and since the bundle
is the end of the file, one that was cut short is recognized at once. The document is a JSON object:

    bundle    the bundle's own file name, by which its images without a name are called
    settings  texts by key of a setting, for a file that serves itself
    script    a shell script to run meanwhile, if there is one
"""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable, Mapping
from typing import BinaryIO, NamedTuple

from mayfly.storage import json_object
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.errors import ManifestInvalid
from mayfly.storage.files import copy_range, write_at

PAGE = 4096
"""Table, document and bundle begin at a multiple of it."""

TABLE = struct.Struct("<24s5Q")
"""The fields of `Table`; the number of the runtime's parts and their places follow."""

PART = struct.Struct("<QQ")

_MAGIC = b"mayfly one file"

_ELF = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_ELF_MAGIC, _ELF_64, _ELF_LITTLE_ENDIAN = b"\x7fELF", 2, 1
_MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64"}

MAX_DOCUMENT = 1024 * 1024
MAX_NAME = 255
"""Bytes of a file name on Linux."""


class Place(NamedTuple):
    """A part of a file: ``size`` bytes from ``offset``."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The offset of the byte after it."""
        return self.offset + self.size


class Table(NamedTuple):
    """The first fields of the table in a one file.

    Attributes:
        at: offset of the table.
        end: of the runtime.
        document: empty if nothing is packed.
        bundle: the same.
        machine: the architecture, as uname(1) names it.
    """

    at: int
    end: int
    document: Place = Place(0, 0)
    bundle: Place = Place(0, 0)
    machine: str = ""

    def encode(self) -> bytes:
        """Return these fields as they are in the file."""
        return TABLE.pack(_MAGIC, self.end, *self.document, *self.bundle)


class Packed(NamedTuple):
    """A bundle in a one file.

    Attributes:
        name: the file name that the bundle had.
        bundle: its bytes.
        document: everything that was packed with it; a stranger's, unless the file runs.
    """

    name: str
    bundle: Place
    document: Mapping[str, object]


def end_of_elf(head: bytes) -> int | None:
    """Return where an ELF file of 64 bits ends by its own header, on a page; None for any other.

    Args:
        head: the first bytes of the file.
    """
    if len(head) < _ELF.size:
        return None
    magic, bits, order, *_, sections, _, _, _, _, size, count, _ = _ELF.unpack_from(head)
    if (magic, bits, order) != (_ELF_MAGIC, _ELF_64, _ELF_LITTLE_ENDIAN):
        return None
    return _padded(sections + size * count)


def read_table(descriptor: int) -> Table | None:
    """Return the table of an open file; None if it is no one file.

    Raises:
        BundleInvalid: the file was cut short, or its table is damaged.
    """
    head = os.pread(descriptor, _ELF.size, 0)
    at = end_of_elf(head)
    size = os.fstat(descriptor).st_size
    if at is None or at + TABLE.size > size:
        return None
    magic, end, *places = TABLE.unpack(os.pread(descriptor, TABLE.size, at))
    if magic.rstrip(b"\0") != _MAGIC:
        return None
    if end > size:
        raise BundleInvalid(
            f"the file has {size} bytes, and its runtime ends at {end}: it was cut short, copy it "
            "again"
        )
    number = _ELF.unpack(head)[4]
    machine = _MACHINES.get(number, f"machine {number}")
    table = Table(at, end, Place(*places[:2]), Place(*places[2:]), machine)
    if end <= at or (table.bundle.size and not _is_in_order(table)):
        raise BundleInvalid("the table of the one file is damaged: copy it again")
    return table


def _is_in_order(table: Table) -> bool:
    """Whether runtime, document and bundle follow one another, and the document can be read."""
    document, bundle = table.document, table.bundle
    follows = table.end <= document.offset and document.end <= bundle.offset
    return follows and document.size <= MAX_DOCUMENT


def read(descriptor: int) -> Packed | None:
    """Return the bundle in an open file; None if the file is no one file, or has no bundle.

    Raises:
        BundleInvalid: the file was cut short, or its table or packed document is damaged.
    """
    table = read_table(descriptor)
    if table is None or not table.bundle.size:
        return None
    size = os.fstat(descriptor).st_size
    if table.bundle.end != size:
        raise BundleInvalid(
            f"the file has {size} bytes, and {table.bundle.end} were packed: it was cut short or "
            "appended to, copy it again"
        )
    data = os.pread(descriptor, table.document.size, table.document.offset)
    try:
        document = json_object.read(data)
    except ManifestInvalid:
        raise BundleInvalid("the packed document is damaged: copy it again") from None
    name = document.get("bundle")
    if not isinstance(name, str) or not _is_file_name(name):
        raise BundleInvalid("the packed document names no bundle: pack it again")
    return Packed(name, table.bundle, document)


def write(
    output: BinaryIO,
    runtime: int,
    bundle: int,
    place: Place,
    document: Mapping[str, object],
    progress: Callable[[int], None] = lambda size: None,
) -> None:
    """Write a one file with a bundle; holes stay holes.

    Args:
        output: a new file.
        runtime: descriptor of a one file; a bundle in it is left out.
        bundle: descriptor of a file with a bundle that can be served in place.
        place: of the bundle in that file.
        document: see above.
        progress: called with the bytes copied since the last call.

    Raises:
        BundleInvalid: the runtime is no one file, the document is too large or its name of the
            bundle cannot be read, or a file was cut short.
        OSError: it cannot be written.
    """
    table = read_table(runtime)
    if table is None:
        raise BundleInvalid("it is not the one file that make dist builds")
    name = document["bundle"]
    if not isinstance(name, str) or not _is_file_name(name):
        raise BundleInvalid(f"{name!r} cannot be the name of a packed bundle: rename it")
    text = json.dumps(document, ensure_ascii=True).encode()
    if len(text) > MAX_DOCUMENT:
        raise BundleInvalid(f"settings and script take more than {MAX_DOCUMENT} bytes")
    words = Place(_padded(table.end), len(text))
    content = Place(_padded(words.end), place.size)
    target = output.fileno()
    _copy(runtime, Place(0, table.end), target, 0, progress)
    write_at(target, Table(table.at, table.end, words, content).encode(), table.at)
    write_at(target, text, words.offset)
    os.truncate(target, content.end)
    _copy(bundle, place, target, content.offset, progress)


def _copy(source: int, place: Place, target: int, at: int, progress: Callable[[int], None]) -> None:
    """Copy a part of a file without its holes to ``at`` in the target."""
    offset = place.offset
    while offset < place.end:
        start = _data_after(source, offset, place.end)
        progress(start - offset)
        offset = start
        end = min(os.lseek(source, start, os.SEEK_HOLE), place.end) if start < place.end else start
        count = end - offset
        if copy_range(source, offset, count, target, at + offset - place.offset, progress) < count:
            raise _cut_short()
        offset = end


def _data_after(source: int, offset: int, end: int) -> int:
    """Return where data begins after a hole, or ``offset`` if there is none; at most ``end``."""
    try:
        return min(os.lseek(source, offset, os.SEEK_DATA), end)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        # Also where the file ends: a file that was cut short is no hole.
        if os.fstat(source).st_size < end:
            raise _cut_short() from None
        return end


def _cut_short() -> BundleInvalid:
    return BundleInvalid("it was cut short while it was copied")


def _is_file_name(name: str) -> bool:
    return name.isprintable() and "/" not in name and 1 <= len(name.encode()) <= MAX_NAME


def _padded(size: int) -> int:
    return -(-size // PAGE) * PAGE
