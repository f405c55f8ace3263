"""Resumable uploads. A session is a directory with the received bytes; its offset is their number.

    begin ──► open ──write*──► open ──commit──► a published blob
                └────────cancel or wrong digest────► nothing

A session survives a restart because its state is the partial file. The running hash is in memory
only: a session that is resumed after a restart is hashed again when it is committed, and so is one
that is committed under another algorithm than it was begun with.

A private upload, whose id no client is given, is among the temporary files: however the process
ends, the next start removes it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mayfly.storage import digest as digests
from mayfly.storage.digest import CANONICAL, Digest
from mayfly.storage.directory.ages import Ages
from mayfly.storage.directory.catalog import upload_directories
from mayfly.storage.directory.layout import Layout
from mayfly.storage.directory.publish import Publisher
from mayfly.storage.directory.writeback import FileSync, Writeback
from mayfly.storage.errors import (
    DigestInvalid,
    Interrupted,
    UploadOffset,
    upload_unknown,
)
from mayfly.storage.files import translate_disk_full
from mayfly.storage.interface import Extent
from mayfly.storage.reference import check_repository

_READ_SIZE = 1024 * 1024

Publish = Callable[[str, Digest, Path], None]
"""How a verified file becomes a blob linked in a repository."""

Forget = Callable[[Path], None]
"""Called with the directory of a session that has ended."""

CheckRoom = Callable[[int], None]
"""Called with the number of bytes to be written; raises StorageFull if they do not fit."""


class DirectoryUpload:
    """One session; see `storage.interface.Upload`."""

    def __init__(
        self,
        name: str,
        directory: Path,
        algorithm: str,
        publish: Publish,
        forget: Forget,
        check_room: CheckRoom,
        writeback: Writeback,
        interrupted: threading.Event,
    ) -> None:
        self._repository = name
        self._directory = directory
        self._data = directory / "data"
        self._publish = publish
        self._forget = forget
        self._check_room = check_room
        self._sync = FileSync(writeback)
        self._interrupted = interrupted
        self._lock = threading.Lock()
        self._hasher = digests.hasher(algorithm)
        self._hashed = 0
        self.algorithm = algorithm

    @property
    def id(self) -> str:
        return self._directory.name

    @property
    def offset(self) -> int:
        try:
            return self._data.stat().st_size
        except FileNotFoundError:
            raise upload_unknown() from None

    def open(self) -> io.FileIO:
        """Open the bytes for reading, while more arrive and also once they are a blob.

        Raises:
            UploadUnknown: it was finished or cancelled meanwhile.
        """
        return io.FileIO(self._open(os.O_RDONLY), "rb")

    def write(self, data: Sequence[bytes | memoryview], at: int) -> None:
        with self._lock, translate_disk_full():
            self._sync.check()
            descriptor = self._open(os.O_WRONLY | os.O_APPEND)
            try:
                offset = os.fstat(descriptor).st_size
                if offset != at:
                    self._sync.wait()  # the file is shorter if bytes were lost
                    raise UploadOffset(f"the upload stands at byte {offset}, not {at}", offset)
                self._check_room(sum(map(len, data)))
                try:
                    written = self._append(descriptor, data)
                    self._sync.written(descriptor, offset + written)
                except OSError:
                    # A partial batch must not count: the client resumes after the last whole one.
                    os.ftruncate(descriptor, offset)
                    raise
            finally:
                os.close(descriptor)
            if self._hashed == offset:
                for piece in data:
                    self._hasher.update(piece)
                self._hashed = offset + written

    def copy(self, extent: Extent, progress: Callable[[int], None] = lambda size: None) -> None:
        """Append the bytes of an extent, shared with their file if the filesystem can do that.

        They are hashed when the session is committed.

        Args:
            extent: to be copied.
            progress: called with the number of bytes copied since the last call.

        Raises:
            UploadUnknown, StorageFull: see `write`.
            OSError: the source cannot be read.
        """
        self._check_room(extent.size)
        with self._lock, translate_disk_full(), extent.open() as source:
            descriptor = self._open(os.O_WRONLY)
            try:
                end = os.lseek(descriptor, 0, os.SEEK_END)
                source.copy_to(descriptor, end, progress)
                self._sync.written(descriptor, end + extent.size)
            finally:
                os.close(descriptor)

    @staticmethod
    def _append(descriptor: int, data: Sequence[bytes | memoryview]) -> int:
        total = 0
        for piece in data:
            view = memoryview(piece)
            while view:
                done = os.write(descriptor, view)
                total += done
                view = view[done:]
        return total

    def commit(self, digest: Digest) -> None:
        with self._lock, translate_disk_full():
            actual = self._digest(digest.algorithm)
            self._sync.wait()
            if actual != digest:
                self._discard()
                raise DigestInvalid(
                    f"content does not match digest {digest}: received {actual}",
                    {"expected": str(digest), "actual": str(actual)},
                )
            try:
                self._publish(self._repository, digest, self._data)
            finally:
                # Also after an error past the rename: without its bytes a session has ended.
                if not self._data.exists():
                    self._discard()

    def cancel(self) -> None:
        with self._lock:
            if not self._data.exists():
                raise upload_unknown()
            self._discard()

    def _digest(self, algorithm: str) -> Digest:
        descriptor = self._open(os.O_RDONLY)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            if algorithm == self.algorithm and self._hashed == os.fstat(descriptor).st_size:
                return Digest(algorithm, self._hasher.hexdigest())
            anew = digests.hasher(algorithm)
            while piece := file.read(_READ_SIZE):
                if self._interrupted.is_set():
                    raise Interrupted("the server is stopping")
                anew.update(piece)
            return Digest(algorithm, anew.hexdigest())

    def _open(self, flags: int) -> int:
        try:
            # Without waiting: a pipe in its place has no reader.
            return os.open(self._data, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise upload_unknown() from None

    def _discard(self) -> None:
        self._sync.cancel()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._forget(self._directory)


class Uploads:
    """The sessions of one store."""

    def __init__(
        self,
        layout: Layout,
        publisher: Publisher,
        publish: Publish,
        check_room: CheckRoom,
        ages: Ages,
    ) -> None:
        self._layout = layout
        self._publisher = publisher
        self._publish = publish
        self._check_room = check_room
        self._ages = ages
        self._writeback = Writeback()
        self._interrupted = threading.Event()
        self._open: dict[Path, DirectoryUpload] = {}
        self._lock = threading.Lock()

    def interrupt(self) -> None:
        """End the hashing of uploads in other threads; the uploads stay."""
        self._interrupted.set()

    def close(self) -> None:
        """Stop background syncs; the sessions stay on disk."""
        self._writeback.close()

    def begin_private(self, name: str, algorithm: str) -> DirectoryUpload:
        """Begin an upload that only the caller can continue."""
        check_repository(name)
        digests.hasher(algorithm)
        directory = self._publisher.private_directory()
        try:
            (directory / "data").touch()
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return self._session(name, directory, algorithm)

    def begin(self, name: str, algorithm: str) -> DirectoryUpload:
        """Begin a session that `find` returns by its id."""
        directory = self._layout.upload(name, str(uuid.uuid4()))
        session = self._session(name, directory, algorithm)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._publisher.put_directory(directory, {"startedat": now.encode(), "data": b""})
        with self._lock:
            self._open[directory] = session
        return session

    def find(self, name: str, upload_id: str) -> DirectoryUpload:
        directory = self._layout.upload(name, upload_id)
        with self._lock:
            session = self._open.get(directory)
            if session is None:
                session = self._session(name, directory, CANONICAL)
            if not (directory / "data").exists():
                self._open.pop(directory, None)
                raise upload_unknown()
            self._open[directory] = session
        return session

    def purge(self, max_age: float) -> int:
        """See `storage.directory.store.DistributionStore.purge_uploads`."""
        is_old = self._ages.older_than(max_age)
        purged = 0
        for uploads in upload_directories(self._layout.repositories):
            with contextlib.suppress(OSError):  # one unreadable directory does not stop the purge
                for directory in list(uploads.iterdir()):
                    # Other files among the sessions are not removed.
                    if directory.is_dir() and self._is_older(directory, is_old):
                        shutil.rmtree(directory, ignore_errors=True)
                        self._forget(directory)
                        purged += 1
        return purged

    @staticmethod
    def _is_older(directory: Path, is_old: Callable[[float], bool]) -> bool:
        # A session of registry:2 may have no data yet; its directory also has a time.
        for path in (directory / "data", directory):
            with contextlib.suppress(OSError):
                return is_old(path.stat().st_mtime)
        return False

    def _session(self, name: str, directory: Path, algorithm: str) -> DirectoryUpload:
        return DirectoryUpload(
            name,
            directory,
            algorithm,
            self._publish,
            self._forget,
            self._check_room,
            self._writeback,
            self._interrupted,
        )

    def _forget(self, directory: Path) -> None:
        with self._lock:
            self._open.pop(directory, None)
        self._publisher.prune(directory.parent)
