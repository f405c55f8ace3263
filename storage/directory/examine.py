"""Hash blobs whose size a manifest contradicts, and record the result.

A manifest may give any size, so it cannot hide a blob; but a difference is a reason to check. One
thread hashes the files one after the other, each once while it stays unchanged. A good file gets a
record of its size, which settles every later contradiction. A bad one gets a record of its damage:
from then on the blob is unknown until good bytes are pushed, imported or found in a bundle.
"""

from __future__ import annotations

import contextlib
import logging
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.gate import Gate
from mayfly.storage.directory.layout import Layout
from mayfly.storage.directory.records import Records
from mayfly.storage.directory_tree import HostDirectory
from mayfly.storage.errors import Interrupted
from mayfly.storage.files import open_regular, stamp_of

logger = logging.getLogger("mayfly")

_READ_SIZE = 1024 * 1024
_MOST_WAITING = 256
"""Most blobs waiting to be hashed; past it further contradictions are ignored."""

_ATTEMPTS = 3
"""How often a file is hashed that changes meanwhile."""

_FILES = HostDirectory()


class Examiner:
    """The examiner of one store. Safe for use from several threads."""

    def __init__(self, layout: Layout, records: Records, gate: Gate) -> None:
        self._layout = layout
        self._records = records
        self._gate = gate
        self._thread = ThreadPoolExecutor(1, "examine")
        self._waiting: set[Digest] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def suspect(self, digest: Digest) -> None:
        """Quick. Queue a blob to be hashed in the background."""
        with self._lock:
            if digest in self._waiting or len(self._waiting) >= _MOST_WAITING:
                return
            self._waiting.add(digest)
        try:
            self._thread.submit(self._examine_waiting, digest)
        except RuntimeError:  # closed
            self._waiting.discard(digest)

    def close(self) -> None:
        """Stop hashing; no record is made of blobs that were not read to the end."""
        self._closing.set()
        self._thread.shutdown(cancel_futures=True)

    def record_size(self, digest: Digest, size: int) -> None:
        """Record the size of a blob that was hashed and had its digest."""
        if not self._records.is_verified(digest, size):
            with self._gate.referring():
                self._records.record_size(digest, size)

    def _examine_waiting(self, digest: Digest) -> None:
        try:
            with contextlib.suppress(Interrupted):
                self.examine(digest)
        except OSError as error:
            logger.warning("blob %s cannot be read: %s", digest, error.strerror)
        finally:
            self._waiting.discard(digest)

    def examine(self, digest: Digest, *, again: bool = False) -> bool:
        """Hash a blob's file now, record the outcome, and return whether it has its digest.

        Args:
            digest: of the blob.
            again: also hash a blob whose size was verified before.

        Raises:
            Interrupted: the store is being closed.
            OSError: the file cannot be read.
        """
        data = self._layout.data(digest)
        for _ in range(_ATTEMPTS):
            before = _FILES.status(data)
            if before is None or not stat.S_ISREG(before.st_mode):
                return False
            if not self._records.may_be_whole(digest, before):
                return False
            if not again and self._records.is_verified(digest, before.st_size):
                return True
            try:
                actual, size = hash_file(data, digest.algorithm, self._step)
            except FileNotFoundError:
                return False
            if actual == digest:
                self.record_size(digest, size)
                return True
            # Exclusively: a concurrent push of good bytes must keep its record.
            with self._gate.removing():
                after = _FILES.status(data)
                if after is not None and stamp_of(after) == stamp_of(before):
                    self._records.record_damage(digest)
                    self._records.log_damage(digest)
                    return False
        return False

    def _step(self, _size: int) -> None:
        if self._closing.is_set():
            raise Interrupted("the store is being closed")


def hash_file(
    path: Path, algorithm: str, progress: Callable[[int], None] = lambda size: None
) -> tuple[Digest, int]:
    """Read a file to its end and return its digest and the number of its bytes.

    Args:
        path: of the file.
        algorithm: of the digest.
        progress: called with the size of each piece that was read.

    Raises:
        OSError: it cannot be read.
    """
    made = digests.hasher(algorithm)
    size = 0
    with open(open_regular(path), "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        while piece := file.read(_READ_SIZE):
            made.update(piece)
            size += len(piece)
            progress(len(piece))
    return Digest(algorithm, made.hexdigest()), size
