"""Proofs that a bundle's bytes have their digests: hashed once and remembered.

Nothing is hashed at start. Content is hashed while it is sent for the first time, once for all
clients that receive it then. The sender holds back the last byte until the proof is established; if
that fails, it is never sent. Proofs are kept in the state directory, as lines

    device inode size mtime_ns ctime_ns offset length algorithm:hex

for a part of a file with that stamp. A write gives the file another change time, which cannot be
set back, so that its lines no longer apply. If only the change time moved, as after a chmod or the
removal of one of its names, the content is proven again; if the modification time or size changed,
the file was written to, and it is refused. A lost line only costs hashing again, so the file of
proofs is appended to without syncing, and is begun anew when it has grown too large.

A write through a memory mapping moves the file's times only if the page was written back since its
last write, and times move in the steps of the kernel's clock. So written pages are submitted to the
disk before they are hashed, which makes the next write visible, and a file that has just changed is
hashed a moment later. On tmpfs, which has no disk, writes through a mapping stay unseen.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from mayfly.storage import digest as digests
from mayfly.storage.bundle.errors import BundleChanged
from mayfly.storage.bundle.seekable import FramedExtent, Frames
from mayfly.storage.digest import CANONICAL, Digest
from mayfly.storage.directory_tree import HOST, Opener
from mayfly.storage.errors import ContentCorrupt, DigestInvalid, Interrupted, StorageError
from mayfly.storage.files import Stamp, stamp_of
from mayfly.storage.interface import Extent, open_file

FILE_NAME = "verified"
_MAX_FILE_SIZE = 32 * 1024 * 1024
_READ_SIZE = 1024 * 1024

_SYNC_FILE_RANGE_WRITE = 2
"""From linux/fs.h."""

_CLOCK_STEP_NS = 20_000_000
"""Nanoseconds; longer than a tick of the kernel's clock, within which two changes look alike."""

Progress = Callable[[int], None]
"""Called with the number of bytes read since the last call."""


class Piece(NamedTuple):
    """Bytes of a file: ``size`` from ``offset`` of ``path``, as long as it has this stamp.

    If it has ``frames``, the offset is that of decompressed bytes.
    """

    path: Path
    offset: int
    size: int
    stamp: Stamp
    opener: Opener = HOST
    frames: Frames | None = None

    def open(self) -> io.FileIO:
        """Open the file; see `storage.interface.Extent.open`."""
        return open_file(self.opener, self.path)

    def read(self, file: io.FileIO, offset: int, count: int) -> bytes:
        """Return up to ``count`` bytes of the open file, from ``offset`` of the piece."""
        count = min(count, self.size - offset)
        if self.frames is not None:
            return self.frames.read(self.offset + offset, count)
        return os.pread(file.fileno(), count, self.offset + offset)


class Problem(StrEnum):
    """Why content of a bundle is not served."""

    DIGEST_MISMATCH = "digest_mismatch"
    FILE_CHANGED = "file_changed"
    FILE_GONE = "file_gone"
    FILE_REFUSED = "file_refused"


class BundleFault(NamedTuple):
    """Content of a bundle that turned out to be wrong, and is not served.

    Attributes:
        digest: of the content as it should be.
        bundle: as the operator named it.
        problem: the kind of fault.
        file: with the bytes, by its real path; None if that is not known.
        first, last: the range of the bytes in the file.
    """

    digest: Digest
    bundle: str
    problem: Problem
    file: str | None = None
    first: int | None = None
    last: int | None = None


_Key = tuple[Stamp, int, int, str]
"""A part of a file, and the algorithm of its digest."""


class Proofs:
    """The digests that were measured, shared by all bundles of one server.

    Args:
        state_dir: keeps them, made when missing; None to keep them in memory only.

    Attributes:
        on_fault: called with each fault, once for a digest of a bundle, from any thread.
    """

    def __init__(self, state_dir: Path | None) -> None:
        self._file: Path | None = None
        self._measured: dict[_Key, str] = {}
        if state_dir is not None:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = state_dir / FILE_NAME
            self._measured = _load(self._file)
        self._lock = threading.Lock()
        self._interrupted = threading.Event()
        self._passing = threading.local()
        self._noted: set[tuple[str, Digest]] = set()
        self._unreadable: set[_Key] = set()
        self.on_fault: Callable[[BundleFault], None] = lambda fault: None

    def extent(self, piece: Piece, digest: Digest, bundle: str) -> Extent:
        """Quick. Return the extent of content, with its proof.

        Args:
            piece: where the content lies.
            digest: it should have.
            bundle: it is in, as the operator named it.

        Raises:
            ContentCorrupt: it is known to have another digest.
        """
        proof = PieceProof(self, piece, digest, bundle)
        measured = self.measured(piece, digest.algorithm)
        if piece.size == 0:
            # Empty content has no last byte to hold back: it is right or wrong at once.
            measured = digests.of(b"", digest.algorithm)
        is_unreadable = _key(piece, digest.algorithm) in self._unreadable
        if is_unreadable or (measured is not None and measured != digest):
            raise proof.corrupt()
        where = piece.path, piece.offset, piece.size
        if piece.frames is None:
            return Extent(*where, opener=piece.opener, proof=proof)
        return FramedExtent(*where, opener=piece.opener, proof=proof, frames=piece.frames)

    def measured(self, piece: Piece, algorithm: str = CANONICAL) -> Digest | None:
        """Quick. Return the digest that a piece had when it was hashed; None if it never was."""
        encoded = self._measured.get(_key(piece, algorithm))
        return Digest(algorithm, encoded) if encoded else None

    def measure(
        self, piece: Piece, wanted: Digest | None = None, progress: Progress | None = None
    ) -> Digest:
        """Hash a piece and remember its digest.

        Args:
            piece: to be hashed.
            wanted: the digest it should have. Another result is remembered for this run only: the
                machine may be at fault, and a restart hashes again.
            progress: see `Progress`.

        Raises:
            BundleChanged: the file changed since the piece was found.
            ContentCorrupt: its bytes cannot be decompressed, which is remembered for this run.
            Interrupted: `interrupt` was called.
        """

        def step(count: int) -> None:
            if self._interrupted.is_set():
                raise Interrupted("the server is stopping")
            if progress is not None:
                progress(count)

        algorithm = wanted.algorithm if wanted else CANONICAL
        key = _key(piece, algorithm)
        try:
            digest = _hash(piece, algorithm, step)
        except BundleChanged:
            raise
        except ContentCorrupt:
            self._unreadable.add(key)
            raise
        with self._lock:
            known = self._measured.get(key) == digest.hex
            self._measured[key] = digest.hex
        if self._file is not None and not known and wanted in (None, digest):
            _append(self._file, key, digest)
        return digest

    def note(self, fault: BundleFault, error: StorageError | None = None) -> None:
        """Report a fault once; the caller raises ``error`` for it."""
        if error is not None:
            error.reported = True
        if getattr(self._passing, "on", False):
            # Found while the images of another fault are read; reported when it is requested.
            return
        with self._lock:
            known = (fault.bundle, fault.digest) in self._noted
            self._noted.add((fault.bundle, fault.digest))
        if not known:
            self._passing.on = True
            try:
                self.on_fault(fault)
            finally:
                self._passing.on = False

    def interrupt(self) -> None:
        """End all hashing in other threads, and hash no more."""
        self._interrupted.set()


@dataclass(frozen=True, slots=True)
class PieceProof:
    """The proof of a piece; see `storage.interface.FileProof`."""

    proofs: Proofs
    piece: Piece
    digest: Digest
    bundle: str = field(compare=False)

    def __str__(self) -> str:
        """Return a line for the operator: the content, and where it lies."""
        first, last = self.piece.offset, self.piece.offset + self.piece.size - 1
        return f"{self.digest}, bytes {first} to {last} of {self.piece.path.resolve()}"

    def of(self, descriptor: int) -> PieceProof:
        """See `storage.interface.FileProof`: this proof, or a new one if the change time moved."""
        stamp = stamp_of(os.fstat(descriptor))
        if stamp == self.piece.stamp:
            return self
        if not stamp.is_same_file(self.piece.stamp):
            raise self._changed()
        return replace(self, piece=self.piece._replace(stamp=stamp))

    @property
    def holds(self) -> bool:
        """See `storage.interface.Proof`."""
        return self.proofs.measured(self.piece, self.digest.algorithm) == self.digest

    def establish(self, progress: Progress | None = None) -> None:
        """See `storage.interface.Proof`."""
        try:
            measured = self.proofs.measure(self.piece, self.digest, progress)
        except BundleChanged:
            raise self._changed() from None
        except ContentCorrupt:
            raise self.corrupt() from None
        if measured != self.digest:
            raise self.corrupt()

    def corrupt(self) -> ContentCorrupt:
        """See `storage.interface.Proof`."""
        error = ContentCorrupt(
            f"content {self.digest} is corrupt in the bundle", {"digest": str(self.digest)}
        )
        self.proofs.note(self._fault(Problem.DIGEST_MISMATCH), error)
        return error

    def _changed(self) -> BundleChanged:
        error = changed()
        self.proofs.note(self._fault(Problem.FILE_CHANGED), error)
        return error

    def _fault(self, problem: Problem) -> BundleFault:
        piece = self.piece
        first, last = piece.offset, piece.offset + piece.size - 1
        return BundleFault(
            self.digest, self.bundle, problem, str(piece.path.resolve()), first, last
        )


def changed() -> BundleChanged:
    """Return the error for a file that was written to after the bundle was opened."""
    return BundleChanged("the bundle was changed while it is served: restart to serve the new one")


def _hash(piece: Piece, algorithm: str, progress: Progress) -> Digest:
    made = digests.hasher(algorithm)
    with piece.open() as file:
        descriptor = file.fileno()
        _settle(piece, descriptor)
        for part in _parts(piece, descriptor):
            made.update(part)
            progress(len(part))
        # After the last read: a write before it would have changed the stamp.
        if stamp_of(os.fstat(descriptor)) != piece.stamp:
            raise changed()
    return Digest(algorithm, made.hexdigest())


def _parts(piece: Piece, descriptor: int) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a piece in parts; each is valid until the next."""
    position, end = piece.offset, piece.offset + piece.size
    buffer = memoryview(bytearray(min(_READ_SIZE, max(piece.size, 1))))
    while position < end:
        if piece.frames is None:
            count = os.preadv(descriptor, [buffer[: end - position]], position)
            part: bytes | memoryview = buffer[:count]
        else:
            part = piece.frames.read(position, min(_READ_SIZE, end - position))
        if not part:
            break
        yield part
        position += len(part)


def _settle(piece: Piece, descriptor: int) -> None:
    """Make every later write to a piece visible in its file's stamp."""
    # Imported by the first hashing, not by every start.
    import ctypes

    # Submitting is enough, and does not wait. If it is refused, there are no dirty pages.
    is_all = piece.frames is not None  # a size of 0 stands for the rest of the file
    ctypes.CDLL(None).sync_file_range(
        ctypes.c_int(descriptor),
        ctypes.c_int64(0 if is_all else piece.offset),
        ctypes.c_int64(0 if is_all else piece.size),
        ctypes.c_uint(_SYNC_FILE_RANGE_WRITE),
    )
    age = time.time_ns() - piece.stamp.ctime_ns
    if 0 <= age < _CLOCK_STEP_NS:
        time.sleep((_CLOCK_STEP_NS - age) / 1e9)


def _key(piece: Piece, algorithm: str) -> _Key:
    return piece.stamp, piece.offset, piece.size, algorithm


def _append(file: Path, key: _Key, digest: Digest) -> None:
    stamp, offset, size, _ = key
    # A newline first: a line that a full disk cut short then spoils no other. One write, so that
    # lines of several processes do not mix.
    line = "\n" + " ".join(map(str, (*stamp, offset, size, digest))) + "\n"
    with contextlib.suppress(OSError):
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def _load(file: Path) -> dict[_Key, str]:
    try:
        if file.stat().st_size > _MAX_FILE_SIZE:
            file.unlink()
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    found: dict[_Key, str] = {}
    for line in lines:
        fields = line.split()
        if len(fields) != 8:
            continue
        try:
            *parts, offset, size = map(int, fields[:7])
            digest = digests.parse(fields[7].decode("ascii"))
        except (ValueError, DigestInvalid):
            continue
        found[Stamp(*parts), offset, size, digest.algorithm] = digest.hex
    return found
