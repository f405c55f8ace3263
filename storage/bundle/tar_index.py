"""An index of a tar: where each member lies, found by reading the headers only.

Formats: POSIX.1-2017 ``pax`` ("ustar Interchange Format", "pax Header Block") and the GNU tar
manual, "Basic Tar Format". `tarfile` is not used: it takes a damaged header for the end of the
archive, so a bundle overwritten in the middle would pass for a smaller one; this also takes half
the time. Nothing is ever extracted: a name is a key, never a path.

Members that tools read differently are refused: names and links that lead outside, sparse members,
two members of one name that differ (unless the name is the digest of the bytes), and members whose
name, size or place depends on which extension header counts. Go's archive/tar, Python's tarfile,
GNU tar and libarchive differ on each of these, so a member could be hidden from one reader and
shown to another.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.text import counted

BLOCK = 512
"""Size in bytes of a header, and the unit that members are padded to."""

_WINDOW = 8192
"""Bytes read at once: the header after a small member is mostly in the same read."""

_MAX_EXTENSION = 1024 * 1024
"""Largest long name or pax header in bytes (as Go's archive/tar)."""

_MAX_LENGTH_DIGITS = 7
"""Most digits of a pax record's length, which is within an extension header."""

_MAX_MEMBERS = 250_000
"""Most files and links of a bundle; each costs 300 bytes of memory."""

_LONGEST_NAME = 16 * 1024
"""Characters of a name or a link's target; Linux takes paths of 4096 bytes."""

_MAX_NAMES = 32 * 1024 * 1024
"""Characters of all names and targets together."""

_COMPARED = 1024 * 1024
"""Bytes read at once to compare two members of one name."""

_MAX_TRAILING = 1024 * 1024
"""Bytes after the end of the archive that are looked at; GNU tar fills up to 10 KiB, at most 1 MiB
with a large blocking factor."""

_MAX_LINKS = 16
"""Links followed from one name before it counts as a loop."""

_ZEROS = bytes(BLOCK)
_CHECKSUM = slice(148, 156)
_SPACES = b" " * 8


class Kind(Enum):
    """The kinds of members that can be served."""

    FILE = "file"
    HARD_LINK = "hard link"
    SYMBOLIC_LINK = "symbolic link"


_KINDS = {
    b"\0": Kind.FILE,
    b"0": Kind.FILE,
    b"7": Kind.FILE,
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMBOLIC_LINK,
}
_HEADER_ONLY = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
"""Types without a body, whatever their size field says (as Go's archive/tar)."""

_LINKS = frozenset({Kind.HARD_LINK, Kind.SYMBOLIC_LINK})

NOT_A_TAR = "not a tar archive"
_REMEDY = "pack the bundle again with a plain tar"

_REFUSED = {b"S": "is stored as a sparse file", b"M": "continues from another volume"}


class Place(NamedTuple):
    """The position of a member's bytes in the tar."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Member:
    """A file or link of the archive."""

    kind: Kind
    offset: int
    size: int
    target: str


@dataclass(slots=True)
class _Extended:
    """Values of extension headers for the next member."""

    path: str | None = None
    target: str | None = None
    size: int | None = None
    has_pax: bool = False

    def set_path(self, path: str, position: int) -> None:
        """Note a name; "" stands for the one in the member's own header (POSIX, "pax")."""
        self.path = _only(self.path, path or None, position)

    def set_target(self, target: str, position: int) -> None:
        """Note a link's target, as `set_path` does a name."""
        self.target = _only(self.target, target or None, position)


@dataclass(slots=True)
class TarIndex:
    """The files and links of one tar, by normalised name.

    Attributes:
        members: name without ``./`` → member.
        ended: whether the end-of-archive marker was found; without one the tar may have been cut
            between two members.
    """

    members: dict[str, Member] = field(default_factory=dict)
    ended: bool = False

    def locate(self, name: str) -> Place | None:
        """Locate the file ``name``, through the archive's own links; None if it is absent.

        Raises:
            BundleInvalid: a link on the way leads outside the archive or in circles.
        """
        current = name
        for _ in range(_MAX_LINKS):
            member = self.members.get(current)
            if member is None:
                return None
            if member.kind is Kind.FILE:
                return Place(member.offset, member.size)
            base = posixpath.dirname(current) if member.kind is Kind.SYMBOLIC_LINK else ""
            current = _normalise(posixpath.join(base, member.target), name, "links")
        raise BundleInvalid(f"member {name!r} is a link that leads in circles")


class RandomAccess(Protocol):
    """Bytes that are read from any place, such as a file's."""

    @property
    def size(self) -> int:
        """How many there are."""

    def read(self, offset: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``offset``; fewer only at the end."""


class _File:
    """See `RandomAccess`: those of an open file, to its end."""

    def __init__(self, descriptor: int, start: int) -> None:
        self._descriptor = descriptor
        self._start = start
        self.size = os.fstat(descriptor).st_size - start

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self._descriptor, count, self._start + offset)


def scan(descriptor: int, repeatable: str = "", start: int = 0) -> TarIndex:
    """Index an open tar by its headers; see `index_of`.

    Args:
        descriptor: of a regular file; its position is neither used nor moved.
        repeatable: see `index_of`.
        start: of the tar in the file; places in the index begin there.
    """
    return index_of(_File(descriptor, start), repeatable)


def index_of(source: RandomAccess, repeatable: str = "") -> TarIndex:
    """Index a tar by its headers.

    Args:
        source: its bytes.
        repeatable: names with this beginning may occur more than once; the last one counts.

    Raises:
        BundleInvalid: not a tar, cut short, damaged, or with members that cannot be served.
        OSError: it cannot be read.
    """
    index = TarIndex()
    names = 0
    for name, member in _members(source, index):
        known = index.members.get(name)
        names += len(name) + len(member.target)
        if names > _MAX_NAMES or len(index.members) >= _MAX_MEMBERS:
            raise BundleInvalid(
                f"the tar has more than {_MAX_MEMBERS} members, or {_MAX_NAMES} bytes of names"
            )
        is_free = repeatable and name.startswith(repeatable)
        if known is not None and not is_free and not _are_equal(source, known, member):
            raise BundleInvalid(
                f"member {name!r} occurs twice, at bytes {known.offset} and {member.offset}, "
                "and tools disagree on which one counts: unpack it and pack it again"
            )
        index.members[name] = member
    return index


def _are_equal(source: RandomAccess, one: Member, other: Member) -> bool:
    """Whether two members are equal: then it does not matter which of them a tool uses."""
    if (one.kind, one.size, one.target) != (other.kind, other.size, other.target):
        return False
    for start in range(0, one.size, _COMPARED):
        size = min(_COMPARED, one.size - start)
        pieces = {source.read(member.offset + start, size) for member in (one, other)}
        if len(pieces) != 1:
            return False
    return True


def _members(source: RandomAccess, index: TarIndex) -> Iterator[tuple[str, Member]]:
    blocks = _Blocks(source)
    extended = _Extended()
    position = 0
    while block := blocks.header(position):
        kind = block[156:157]
        size = _number(block[124:136], position)
        if kind in (b"x", b"g", b"L", b"K"):
            body = blocks.body(position + BLOCK, size, position)
            _extend(kind, body, extended, position)
            position += BLOCK + _padded(size)
            continue
        if extended.size is not None:
            size = extended.size
        name = extended.path or _name(block)
        known = _KINDS.get(kind)
        if size and (known in _LINKS or (known is Kind.FILE and name.endswith("/"))):
            raise BundleInvalid(
                f"member {name!r} is a link or directory of {size} bytes, and tools disagree on "
                f"where the next one begins: {_REMEDY}"
            )
        if kind in _HEADER_ONLY:
            size = 0
        if kind in _REFUSED:
            raise BundleInvalid(f"member {name!r} {_REFUSED[kind]}: {_REMEDY}")
        start = position + BLOCK
        if start + size > blocks.end:
            raise BundleInvalid(
                f"member {name!r} needs {counted(size, 'byte')} from byte {start}, "
                f"but the file ends at byte {blocks.end}: it was cut short, copy it again"
            )
        if known is not None and not (known is Kind.FILE and name.endswith("/")):
            target = extended.target or _text(block[157:257])
            if len(name) > _LONGEST_NAME or len(target) > _LONGEST_NAME:
                raise BundleInvalid(f"a member's name at byte {position} is too long")
            target = target if known is not Kind.FILE else ""
            yield _normalise(name, name, "points"), Member(known, start, size, target)
        extended = _Extended()
        position = start + _padded(size)
    index.ended = blocks.ended


class _Blocks:
    """The header blocks of a file, read in windows."""

    def __init__(self, source: RandomAccess) -> None:
        self._source = source
        self._window = b""
        self._start = 0
        self.end = source.size
        self.ended = False

    def header(self, position: int) -> bytes | None:
        """Return the header at ``position``; None at the end of the archive."""
        block = self._block(position)
        if not block:
            return None
        if block == _ZEROS:
            following = self._block(position + BLOCK)
            if following not in (_ZEROS, b""):
                raise BundleInvalid(f"the tar has an empty header at byte {position}")
            self.ended = True
            self._check_trailing(position + 2 * BLOCK)
            return None
        if len(block) < BLOCK:
            if position == 0:
                raise BundleInvalid(NOT_A_TAR)
            raise BundleInvalid(f"the file ends in the middle of the tar header at byte {position}")
        _verify(block, position)
        return block

    def _check_trailing(self, position: int) -> None:
        """Refuse a second archive after the first one: readers stop at the end of the first."""
        end = min(self.end, position + _MAX_TRAILING)
        places = range(position, end - BLOCK + 1, BLOCK)
        found = next((place for place in places if self._block(place) != _ZEROS), None)
        if found is not None and is_header(self._block(found)):
            raise BundleInvalid(
                f"another tar follows at byte {found}, and no reader looks beyond the end of the "
                "first: give each a file of its own"
            )

    def body(self, position: int, size: int, header: int) -> bytes:
        """Return the body of an extension header."""
        if size > _MAX_EXTENSION:
            raise BundleInvalid(f"the tar header at byte {header} is {counted(size, 'byte')} long")
        data = self._source.read(position, size)
        if len(data) < size:
            raise BundleInvalid(f"the file ends in the middle of the tar header at byte {header}")
        return data

    def _block(self, position: int) -> bytes:
        offset = position - self._start
        if not 0 <= offset <= len(self._window) - BLOCK:
            self._window = self._source.read(position, _WINDOW)
            self._start, offset = position, 0
        return self._window[offset : offset + BLOCK]


def _verify(block: bytes, position: int) -> None:
    if not is_header(block):
        if position == 0:
            raise BundleInvalid(NOT_A_TAR)
        raise BundleInvalid(
            f"the file is damaged at byte {position}: the tar header's checksum is wrong"
        )


def is_header(block: bytes) -> bool:
    """Whether a block has the checksum that it states."""
    stored = _octal(block[_CHECKSUM])
    # The field counts as spaces while the sum is taken; old tars summed signed bytes.
    total = sum(block) - sum(block[_CHECKSUM]) + sum(_SPACES)
    if stored == total:
        return True
    high = sum(1 for byte in block if byte >= 128)
    high -= sum(1 for byte in block[_CHECKSUM] if byte >= 128)
    return stored is not None and stored == total - 256 * high


def _extend(kind: bytes, body: bytes, extended: _Extended, position: int) -> None:
    match kind:
        case b"L":
            extended.set_path(_text(body), position)
        case b"K":
            extended.set_target(_text(body), position)
        case b"x":
            # Of two, some readers take both and some the last.
            if extended.has_pax:
                raise BundleInvalid(f"two pax headers before byte {position} are for one member")
            extended.has_pax = True
            _pax(body, extended, position)
        case _:
            everyone = _Extended()
            _pax(body, everyone, position)
            if everyone != _Extended():
                # Go's reader ignores them, others do not.
                raise BundleInvalid(
                    f"the global tar header at byte {position} sets a name or size for every "
                    f"member: {_REMEDY}"
                )


def _pax(body: bytes, into: _Extended, position: int) -> None:
    for key, value in _records(body, position):
        if key in (b"path", b"linkpath"):
            if b"\0" in value:
                raise BundleInvalid(f"the pax header at byte {position} has a NUL in a name")
            text = _text(value)
            if key == b"path":
                into.set_path(text, position)
            else:
                into.set_target(text, position)
        elif key == b"size":
            if not value.isdigit() or len(value) > 19:
                raise BundleInvalid(f"the pax header at byte {position} has no valid size")
            into.size = int(value)
        elif key.startswith(b"GNU.sparse."):
            raise BundleInvalid(
                f"the member at byte {position} is stored as a sparse file: {_REMEDY}"
            )


def _records(body: bytes, position: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the ``length key=value`` records of a pax header, read in place: there may be many."""
    start = 0
    while start < len(body):
        space = body.find(b" ", start, start + _MAX_LENGTH_DIGITS + 1)
        length = body[start:space] if space >= 0 else b""
        end = start + (int(length) if length.isdigit() else 0)
        key, equals, value = body[space + 1 : max(end - 1, 0)].partition(b"=")
        if not equals or end > len(body) or body[end - 1 : end] != b"\n":
            raise BundleInvalid(f"the pax header at byte {position} cannot be read")
        yield key, value
        start = end


def _number(data: bytes, position: int) -> int:
    """Read a size: octal text, or binary in GNU's extension for 8 GiB and more."""
    found: int | None
    if data[0] & 0x80:
        found = int.from_bytes(data, "big") & ~(0x80 << 8 * (len(data) - 1))
        if data[0] & 0x40 or found >= 1 << 63:
            found = None
    else:
        found = _octal(data)
    if found is None:
        raise BundleInvalid(f"the tar header at byte {position} has no valid size")
    return found


def _octal(data: bytes) -> int | None:
    text, _, rest = data.partition(b"\0")
    if rest.strip(b"\0 "):
        return None  # some readers continue after the first NUL
    text = text.strip()
    if not text:
        return 0
    # int() would also take signs, underscores and an 0o prefix.
    return int(text, 8) if text.isdigit() and not text.strip(b"01234567") else None


def _name(block: bytes) -> str:
    name = _text(block[0:100])
    # Only POSIX's format has a prefix there; GNU's keeps times.
    if block[257:263] == b"ustar\0" and block[345]:
        return f"{_text(block[345:500])}/{name}"
    return name


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _normalise(path: str, name: str, verb: str) -> str:
    clean = posixpath.normpath(path)
    if clean == ".." or clean.startswith(("/", "../")):
        raise BundleInvalid(f"member {name!r} {verb} outside the archive")
    return clean


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _only(before: str | None, now: str | None, position: int) -> str | None:
    """Merge the fields of extension headers, which must not contradict each other."""
    if before is not None and now != before:
        raise BundleInvalid(
            f"the extension headers before byte {position} give one member two names: {_REMEDY}"
        )
    return now
