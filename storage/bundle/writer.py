"""Write an OCI layout tar whose blobs arrive in any order, and resume after an interruption.

Names and sizes are known before the first blob is fetched, and so is every blob's place in the file
(`ArchiveLayout`). Blobs are written side by side at their offsets; the same inputs give the same
file in whatever order they arrive. A journal beside the unfinished file lists finished parts:

    .up.tar.partial            the tar, with holes
    .up.tar.partial.journal    {"layout": …} then {"digest", "at", "size", "have"} lines

A later run resumes from it. If the list of images has changed meanwhile, finished blobs are copied
to their new places. The journal is not synced with the file: after a power loss, or where a stick
was pulled out, it may list blobs that the file lacks, so a later run hashes them (`Draft.check`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mayfly.storage import digest as digests
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.digest import Digest
from mayfly.storage.errors import DigestInvalid, StorageFull
from mayfly.storage.files import copy_range, stamp_at, stamp_of, sync, try_lock, write_at
from mayfly.storage.text import format_size

_BLOCK = 512
RECORD = 20 * _BLOCK
"""Tar files end on a multiple of this (POSIX pax, ustar)."""

_PIECE = 1024 * 1024
_NOTE_EVERY = 8 * 1024 * 1024
NOTHING_MORE: Mapping[str, bytes] = {}


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a blob's content in the archive, in bytes."""

    at: int
    size: int


@dataclass(frozen=True, slots=True)
class ArchiveLayout:
    """An archive before it is written.

    Attributes:
        fixed: headers and documents, each with its offset.
        blobs: the place of each blob's content.
        size: bytes of the whole archive.
    """

    fixed: tuple[tuple[int, bytes], ...]
    blobs: Mapping[Digest, Place]
    size: int

    @property
    def identity(self) -> str:
        """A hash that is equal for archives with the same bytes."""
        hasher = hashlib.sha256()
        for at, data in self.fixed:
            hasher.update(b"%d:%d:" % (at, len(data)) + data)
        return hasher.hexdigest()


def lay_out(
    index: bytes,
    documents: Mapping[Digest, bytes],
    blobs: Iterable[tuple[Digest, int]],
    more: Mapping[str, bytes] = NOTHING_MORE,
) -> ArchiveLayout:
    """Lay out ``oci-layout``, ``index.json``, the manifests, then the blobs in their order.

    Args:
        index: the content of ``index.json``.
        documents: manifests by digest.
        blobs: digests and sizes in bytes.
        more: other files by name.
    """
    fixed: list[tuple[int, bytes]] = []
    places: dict[Digest, Place] = {}
    at = 0

    def add(name: str, size: int, data: bytes | None) -> int:
        nonlocal at
        header = _header(name, size)
        fixed.append((at, header))
        begin = at + len(header)
        if data is not None:
            fixed.append((begin, data))
        at = begin + size + -size % _BLOCK
        return begin

    layout = b'{"imageLayoutVersion": "1.0.0"}'
    add("oci-layout", len(layout), layout)
    add("index.json", len(index), index)
    for name, data in more.items():
        add(name, len(data), data)
    for digest, body in documents.items():
        add(_name(digest), len(body), body)
    for digest, size in blobs:
        if digest not in documents and digest not in places:
            places[digest] = Place(add(_name(digest), size, None), size)
    end = at + 2 * _BLOCK
    return ArchiveLayout(tuple(fixed), places, end + -end % RECORD)


def room_for(digest: Digest, size: int) -> int:
    """Bytes that a blob takes in an archive, its header included."""
    return len(_header(_name(digest), size)) + size + -size % _BLOCK


def is_written(output: Path, layout: ArchiveLayout) -> bool:
    """Whether an archive with these bytes is there already; reads all of it."""
    try:
        file = os.open(output, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if os.fstat(file).st_size != layout.size:
            return False
        if any(os.pread(file, len(data), at) != data for at, data in layout.fixed):
            return False
        return all(_has_digest(file, place, digest) for digest, place in layout.blobs.items())
    except OSError:
        return False
    finally:
        os.close(file)


def check_space(archives: Sequence[tuple[Path, ArchiveLayout]]) -> None:
    """Check that there is space for archives of one directory, before they are begun.

    Raises:
        StorageFull: there is not.
        OSError: the directory cannot be looked at.
    """
    needed = sum(layout.size - _taken(output, layout) for output, layout in archives)
    if needed <= 0:
        return
    parent = archives[0][0].parent
    found = os.statvfs(parent)
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and needed > free:  # some network filesystems say 0 of everything
        raise StorageFull(
            f"{parent}: {format_size(needed)} are needed, {format_size(free)} are free; "
            "nothing was fetched"
        )


def _taken(output: Path, layout: ArchiveLayout) -> int:
    """Return the bytes that an earlier run's file takes, if `Draft` resumes from it.

    The file of another layout is kept beside the new one until its blobs are copied.
    """
    known = _read_journal(_journal_path(output))
    if known is None or known.layout != layout.identity:
        return 0
    with contextlib.suppress(FileNotFoundError):
        return _partial_path(output).stat().st_blocks * _BLOCK
    return 0


def _has_digest(file: int, place: Place, digest: Digest) -> bool:
    hasher = digests.hasher(digest.algorithm)
    for piece in _read(file, place.at, place.size):
        hasher.update(piece)
    return hasher.hexdigest() == digest.hex


def _name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


class Draft:
    """An archive that is being written; a context manager. `publish` gives it its name.

    Without `publish` the unfinished file is kept for a later run.

    Args:
        output: the archive's path.
        layout: of the whole archive.

    Raises:
        BundleInvalid: another process is writing the same archive.
        OSError: the file cannot be made.
    """

    def __init__(self, output: Path, layout: ArchiveLayout) -> None:
        self._output = output
        self._layout = layout
        self._partial = _partial_path(output)
        self._journal_path = _journal_path(output)
        self._old = output.with_name(f".{output.name}.partial.old")
        self._old_journal = output.with_name(f".{output.name}.partial.old.journal")
        self._have: dict[Digest, int] = {}
        self._noted: dict[Digest, int] = {}
        self._complete: set[Digest] = set()
        self._lock = _locked(output)
        try:
            self._resume()
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._file, self._journal, self._lock):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def have(self, digest: Digest) -> int:
        """Return the number of bytes of a blob, from its start, that are in the file."""
        return self._have.get(digest, 0)

    def is_complete(self, digest: Digest) -> bool:
        """Whether a blob is in the file and its digest was checked."""
        return digest in self._complete

    def read(self, digest: Digest, count: int) -> Iterator[bytes]:
        """Yield the first ``count`` bytes of a blob in pieces, to hash them again."""
        place = self._layout.blobs[digest]
        yield from _read(self._file, place.at, min(count, place.size))

    def write(self, digest: Digest, at: int, data: bytes) -> None:
        """Write a piece of a blob, ``at`` bytes from its start."""
        place = self._layout.blobs[digest]
        assert at + len(data) <= place.size
        write_at(self._file, data, place.at + at)
        have = self._have[digest] = at + len(data)
        # A whole blob is noted by `complete` only, after its digest was checked.
        if have < place.size and have - self._noted.get(digest, 0) >= _NOTE_EVERY:
            self._note(digest, have)

    def check(self, digest: Digest) -> bool:
        """Hash all of a blob that an earlier run wrote; discard it if it has another digest."""
        if not self._is_right(digest):
            self.restart(digest)
            return False
        self._complete.add(digest)
        return True

    def complete(self, digest: Digest) -> None:
        """Note that a blob is whole and has its digest."""
        size = self._layout.blobs[digest].size
        self._have[digest] = size
        self._complete.add(digest)
        self._note(digest, size)

    def restart(self, digest: Digest) -> None:
        """Discard the bytes of a blob that turned out to be wrong."""
        self._have.pop(digest, None)
        self._note(digest, 0)

    def sync(self) -> None:
        """Sync the bytes written so far, so that `publish` has little left to wait for.

        Raises:
            OSError: bytes could not be written. Linux reports that once.
        """
        os.fdatasync(self._file)

    def publish(self) -> None:
        """Sync the archive and give it its name.

        Raises:
            OSError: it cannot be written.
        """
        assert all(self.is_complete(digest) for digest in self._layout.blobs)
        os.fsync(self._file)
        self._partial.rename(self._output)
        sync(self._output.parent)
        self._journal_path.unlink(missing_ok=True)
        _lock_path(self._output).unlink(missing_ok=True)

    def _resume(self) -> None:
        known = _read_journal(self._journal_path)
        is_there = self._partial.exists()
        is_same = is_there and known is not None and known.layout == self._layout.identity
        if is_there and not is_same:
            # Kept as a source, so that nothing is fetched twice. The journal is renamed first:
            # after a kill in between no journal names blobs of a missing file.
            if known is not None:
                self._journal_path.replace(self._old_journal)
            self._partial.replace(self._old)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._partial, flags, 0o644)
        os.ftruncate(self._file, self._layout.size)
        for at, data in self._layout.fixed:
            write_at(self._file, data, at)
        self._journal = os.open(self._journal_path, flags | os.O_APPEND, 0o644)
        if is_same and known is not None:
            self._take(known)
        else:
            os.ftruncate(self._journal, 0)
            self._append({"layout": self._layout.identity})
            self._salvage()

    def _take(self, known: _Progress) -> None:
        """Resume from the journal of an earlier run for the same archive."""
        for digest, (place, have) in known.have.items():
            if self._layout.blobs.get(digest) == place:
                self._have[digest] = self._noted[digest] = have

    def _salvage(self) -> None:
        """Copy finished blobs from the unfinished file of another list of images."""
        known = _read_journal(self._old_journal)
        if known is not None and self._old.exists():
            source = os.open(self._old, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                for digest, (place, have) in known.have.items():
                    wanted = self._layout.blobs.get(digest)
                    if wanted is None or wanted.size != place.size or have != place.size:
                        continue
                    copy_range(source, place.at, place.size, self._file, wanted.at)
                    if self._is_right(digest):
                        self.complete(digest)
            finally:
                os.close(source)
        self._old.unlink(missing_ok=True)
        self._old_journal.unlink(missing_ok=True)

    def _is_right(self, digest: Digest) -> bool:
        return _has_digest(self._file, self._layout.blobs[digest], digest)

    def _note(self, digest: Digest, have: int) -> None:
        place = self._layout.blobs[digest]
        self._noted[digest] = have
        self._append({"digest": str(digest), "at": place.at, "size": place.size, "have": have})

    def _append(self, entry: Mapping[str, object]) -> None:
        os.write(self._journal, json.dumps(entry).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class _Progress:
    layout: str
    have: dict[Digest, tuple[Place, int]]


def _read_journal(path: Path) -> _Progress | None:
    """Read a journal; None without one. A line cut short by a kill ends it."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    entries: list[dict[str, Any]] = []
    for line in lines[:-1]:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    if not entries or not isinstance(entries[0], dict):
        return None
    have: dict[Digest, tuple[Place, int]] = {}
    for entry in entries[1:]:
        try:
            place = Place(int(entry["at"]), int(entry["size"]))
            have[digests.parse(entry["digest"])] = (place, int(entry["have"]))
        except (KeyError, TypeError, ValueError, DigestInvalid):
            break
    return _Progress(str(entries[0].get("layout")), have)


def _partial_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def _journal_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial.journal")


def _lock_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial.lock")


def _locked(output: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    path = _lock_path(output)
    while True:
        descriptor = os.open(path, flags, 0o644)
        if not try_lock(descriptor):
            os.close(descriptor)
            raise BundleInvalid(f"{output}: another mayfly is writing it")
        # `publish` of another process may have removed it since it was opened.
        mine = stamp_of(os.fstat(descriptor))
        now = stamp_at(path)
        if now is not None and now.is_same_file(mine):
            return descriptor
        os.close(descriptor)


def _read(descriptor: int, at: int, count: int) -> Iterator[bytes]:
    end = at + count
    while at < end:
        piece = os.pread(descriptor, min(_PIECE, end - at), at)
        if not piece:
            raise OSError(f"the file ends at byte {at}")
        yield piece
        at += len(piece)
