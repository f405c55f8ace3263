"""Proof that a bundle's bytes are those of their digests, taken once and remembered.

Nothing is hashed at start. The first time content is sent, it is hashed beside the sending, once
for all who ask for it at that time, and the sender holds back the last bytes until the proof is
there; when it fails they are never sent. What was proven is kept in the state directory, as lines

    device inode size mtime_ns ctime_ns offset length algorithm:hex

for a part of a file as it was. A file that is written to has another change time, which nobody can
set back, so that its lines no longer speak of it. Where only that time moved, as by a chmod or by
removing one of its names, the content is proven anew; where another modification time or size says
that the file was written to, it is refused. Losing lines costs only hashing again, so the file is
appended to without syncing, and is begun anew when it has grown too large.

A write through a mapping of the file moves its times only when a page is first written to since it
went to the disk, and times move in the steps of the kernel's clock. So pages that were written to
are submitted to the disk before they are hashed, which makes the next write show, and a file that
changed this very moment is hashed a moment later. On tmpfs, which has no disk, writes through a
mapping stay unseen.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from mayfly.storage import digest as digests
from mayfly.storage.bundle.errors import BundleChanged
from mayfly.storage.digest import CANONICAL, Digest
from mayfly.storage.errors import ContentCorrupt, DigestInvalid, Interrupted, StorageError
from mayfly.storage.files import Stamp, stamp_of
from mayfly.storage.interface import Extent, open_file
from mayfly.storage.trees import HOST, Opener

FILE_NAME = "verified"
_MAX_FILE_SIZE = 32 * 1024 * 1024
_READ_SIZE = 1024 * 1024

_SYNC_FILE_RANGE_WRITE = 2
"""From linux/fs.h."""

_CLOCK_STEP_NS = 20_000_000
"""Longer than the time between two changes of a file that get the same time."""

Progress = Callable[[int], None]
"""Told how many bytes more were read."""


class Piece(NamedTuple):
    """Bytes of a file: ``size`` from ``offset`` of ``path``, as long as it has this stamp."""

    path: Path
    offset: int
    size: int
    stamp: Stamp
    opener: Opener = HOST

    def open(self) -> io.FileIO:
        """Open the file; see `storage.interface.Extent.open`."""
        return open_file(self.opener, self.path)


class Problem(StrEnum):
    """Why content of a bundle is not served."""

    DIGEST_MISMATCH = "digest_mismatch"
    FILE_CHANGED = "file_changed"
    FILE_GONE = "file_gone"
    FILE_REFUSED = "file_refused"


class BundleFault(NamedTuple):
    """Content of a bundle that was found not to be what it should be, and so is not served.

    Attributes:
        digest: by which it was asked for.
        bundle: as the operator named it.
        problem: with it.
        file: with the bytes, by its own path; None where that is not known.
        first, last: the bytes of the file that it is.
    """

    digest: Digest
    bundle: str
    problem: Problem
    file: str | None = None
    first: int | None = None
    last: int | None = None


_Key = tuple[Stamp, int, int, str]
"""A part of a file and the algorithm of its digest."""


class Proofs:
    """What has been measured, shared by all bundles of one server.

    Args:
        state_dir: where it is remembered, made when missing; None to forget it with the process.

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
        self.on_fault: Callable[[BundleFault], None] = lambda fault: None

    def extent(self, piece: Piece, digest: Digest, bundle: str) -> Extent:
        """Quick. The extent to serve for content, with its proof.

        Args:
            bundle: it is in, as the operator named that.

        Raises:
            ContentCorrupt: it is known to have another digest.
        """
        proof = PieceProof(self, piece, digest, bundle)
        measured = self.measured(piece, digest.algorithm)
        if piece.size == 0:
            # Of nothing, no last byte can be held back: it is right or wrong at once.
            measured = digests.of(b"", digest.algorithm)
        if measured is not None and measured != digest:
            raise proof.corrupt()
        return Extent(piece.path, piece.offset, piece.size, opener=piece.opener, proof=proof)

    def measured(self, piece: Piece, algorithm: str = CANONICAL) -> Digest | None:
        """Quick. The digest that a piece had when it was hashed; None when it never was."""
        encoded = self._measured.get(_key(piece, algorithm))
        return Digest(algorithm, encoded) if encoded else None

    def measure(
        self, piece: Piece, wanted: Digest | None = None, progress: Progress | None = None
    ) -> Digest:
        """Hash a piece and remember what it gave.

        Args:
            wanted: what it ought to give. Another result is remembered for this run only: the
                fault may be the machine's, and a restart looks again.

        Raises:
            BundleChanged: the file is not what it was when the piece was found.
            Interrupted: `interrupt` was called.
        """

        def step(count: int) -> None:
            if self._interrupted.is_set():
                raise Interrupted("the server is stopping")
            if progress is not None:
                progress(count)

        algorithm = wanted.algorithm if wanted else CANONICAL
        digest = _hash(piece, algorithm, step)
        key = _key(piece, algorithm)
        with self._lock:
            known = self._measured.get(key) == digest.hex
            self._measured[key] = digest.hex
        if self._file is not None and not known and wanted in (None, digest):
            _append(self._file, key, digest)
        return digest

    def note(self, fault: BundleFault, error: StorageError | None = None) -> None:
        """Pass a fault on, unless it was before; ``error`` is raised for it."""
        if error is not None:
            error.reported = True
        if getattr(self._passing, "on", False):
            # Found in reading what the fault before it hurts; it is noted when it is asked for.
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
        """End what is being hashed in other threads, and refuse to hash any more."""
        self._interrupted.set()


@dataclass(frozen=True, slots=True)
class PieceProof:
    """The proof of a piece; see `storage.interface.FileProof`."""

    proofs: Proofs
    piece: Piece
    digest: Digest
    bundle: str = field(compare=False)

    def __str__(self) -> str:
        """For the operator: the content and where it lies, the bundle by its own path."""
        first, last = self.piece.offset, self.piece.offset + self.piece.size - 1
        return f"{self.digest}, bytes {first} to {last} of {self.piece.path.resolve()}"

    def of(self, descriptor: int) -> PieceProof:
        """Quick. The proof for the file as it is now, open as the sender's own descriptor.

        It is this one unless the file's change time moved, by a chmod or behind our back.

        Raises:
            BundleChanged: the descriptor's file is not what it was when the content was found.
        """
        stamp = stamp_of(os.fstat(descriptor))
        if stamp == self.piece.stamp:
            return self
        if not stamp.is_same_file(self.piece.stamp):
            raise self._changed()
        return replace(self, piece=self.piece._replace(stamp=stamp))

    @property
    def holds(self) -> bool:
        """Quick. Whether the content is proven."""
        return self.proofs.measured(self.piece, self.digest.algorithm) == self.digest

    def establish(self, progress: Progress | None = None) -> None:
        """Hash the content; afterwards it holds.

        Args:
            progress: told how many bytes more were read; what it raises ends the hashing.

        Raises:
            ContentCorrupt: it has another digest; from now on it is refused.
            BundleChanged: the file was written to.
            Interrupted: the server is stopping.
        """
        try:
            measured = self.proofs.measure(self.piece, self.digest, progress)
        except BundleChanged:
            raise self._changed() from None
        if measured != self.digest:
            raise self.corrupt()

    def corrupt(self) -> ContentCorrupt:
        """The error for content that does not have its digest; the fault is passed on."""
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
    """The error for a file that was written to while it is served."""
    return BundleChanged("the bundle was changed while it is served: restart to serve what it is")


def _hash(piece: Piece, algorithm: str, progress: Progress) -> Digest:
    made = digests.hasher(algorithm)
    buffer = memoryview(bytearray(min(_READ_SIZE, max(piece.size, 1))))
    position, end = piece.offset, piece.offset + piece.size
    with piece.open() as file:
        descriptor = file.fileno()
        _settle(piece, descriptor)
        while position < end:
            count = os.preadv(descriptor, [buffer[: end - position]], position)
            if count == 0:
                break
            made.update(buffer[:count])
            position += count
            progress(count)
        # After the last read: had anything been written before it, the stamp would tell.
        if stamp_of(os.fstat(descriptor)) != piece.stamp:
            raise changed()
    return Digest(algorithm, made.hexdigest())


def _settle(piece: Piece, descriptor: int) -> None:
    """Have every later write to a piece show in its file's stamp."""
    # Imported by the first hashing, not by every start.
    import ctypes

    # Submitting is enough, and does not wait for the disk; what refuses it has no dirty pages.
    ctypes.CDLL(None).sync_file_range(
        ctypes.c_int(descriptor),
        ctypes.c_int64(piece.offset),
        ctypes.c_int64(piece.size),
        ctypes.c_uint(_SYNC_FILE_RANGE_WRITE),
    )
    age = time.time_ns() - piece.stamp.ctime_ns
    if 0 <= age < _CLOCK_STEP_NS:
        time.sleep((_CLOCK_STEP_NS - age) / 1e9)


def _key(piece: Piece, algorithm: str) -> _Key:
    return piece.stamp, piece.offset, piece.size, algorithm


def _append(file: Path, key: _Key, digest: Digest) -> None:
    stamp, offset, size, _ = key
    # A newline first: a line that a full disk cut short then spoils none but itself. One write, so
    # that lines of several processes do not mix.
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
