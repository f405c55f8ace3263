"""Records of a blob's verified size, or of its damage, beside its bytes.

Both are empty files in the directory of the blob's ``data``; the name is the record::

    data
    _mayfly_size_1048576                      the content of this digest has 1048576 bytes
    _mayfly_damaged_<inode>_<size>_<mtime>_<ctime>    the file with this stamp has another digest

registry:2 reads ``data`` only, ignores other names, and deletes the whole directory.

A size is recorded after the bytes were hashed and had their digest. From then on it is true of the
digest, whatever happens to the file. So a record never becomes stale and its write needs no order:
without a record the file's length is believed, as for files of other writers. An empty file cannot
be torn and survives every way of copying a tree (extended attributes do not). Checking it is one
stat(2) of the name made from the length of ``data``: if it exists, the file has the verified size.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.layout import Layout
from mayfly.storage.directory.publish import inherit
from mayfly.storage.files import Stamp, stamp_of

logger = logging.getLogger("mayfly")

_SIZE = "_mayfly_size_"
_DAMAGED = "_mayfly_damaged_"

_MOST_REMEMBERED = 10_000
"""Most files kept in memory of each kind: seen whole, logged, with an unwritten record."""

_EMPTY = frozenset(digests.of(b"", algorithm) for algorithm in digests.HEX_LENGTHS)
"""The digests of no bytes: the only ones an empty file can have."""


class Records:
    """The records of one store's blobs. Reading is quick; writing needs no sync.

    Args:
        layout: of the store.
        trusted: whether records beside the blobs count; in another host's directory they may be
            forged.
    """

    def __init__(self, layout: Layout, *, trusted: bool = True) -> None:
        self._layout = layout
        self._trusted = trusted
        self._seen: dict[Digest, Stamp] = {}
        self._unwritten: dict[Digest, Stamp] = {}
        self._logged: set[Digest] = set()

    def may_be_whole(self, digest: Digest, status: os.stat_result) -> bool:
        """Quick. Whether no record contradicts that a blob's file is its content.

        Costs no system call for a file that is unchanged since the last call, otherwise one
        stat(2), or for another writer's file a listing of its directory.

        Args:
            status: of the ``data`` file, a regular one.
        """
        stamp = stamp_of(status)
        if self._seen.get(digest) == stamp:
            return True
        if not self._is_whole(digest, status):
            return False
        if len(self._seen) >= _MOST_REMEMBERED:
            self._seen.clear()
        self._seen[digest] = stamp
        return True

    def _is_whole(self, digest: Digest, status: os.stat_result) -> bool:
        size = status.st_size
        if size == 0:
            return digest in _EMPTY
        if not self._trusted or self.is_verified(digest, size):
            return True
        names = self._names(digest)
        if _mark(status) in names or any(name.startswith(_SIZE) for name in names):
            return False
        return self._unwritten.get(digest) != stamp_of(status)

    def is_verified(self, digest: Digest, size: int) -> bool:
        """Quick. Whether the content of a digest was verified to have this size."""
        return self._layout.record(digest, f"{_SIZE}{size}").exists()

    def record_size(self, digest: Digest, size: int) -> None:
        """Record that bytes were hashed and had this digest; older records are deleted.

        Errors of the disk are ignored: the blob is complete without a record.
        """
        record = self._layout.record(digest, f"{_SIZE}{size}")
        with contextlib.suppress(OSError):
            _make(record)
            self._drop(digest, but=record.name)

    def record_damage(self, digest: Digest) -> None:
        """Record that the file, as it is now, was hashed and has another digest."""
        data = self._layout.data(digest)
        status = data.stat()
        self._seen.pop(digest, None)
        try:
            # This changes its ctime, so that other processes check the file again.
            os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))
            status = data.stat()
            record = self._layout.record(digest, _mark(status))
            _make(record)
        except OSError:
            if len(self._unwritten) < _MOST_REMEMBERED:
                self._unwritten[digest] = stamp_of(status)
            return
        # Only now: a record of the same size would be believed first.
        self._drop(digest, but=record.name)

    def log_damage(self, digest: Digest) -> None:
        """Log once that a blob is damaged."""
        if digest not in self._logged and len(self._logged) < _MOST_REMEMBERED:
            self._logged.add(digest)
            logger.warning(
                "%s is damaged and not served: push it again, or mend it with "
                "mayfly verify --repair",
                digest,
            )

    def drop(self, digest: Digest) -> None:
        """Delete the records of a removed blob."""
        self._drop(digest, but="")

    def _drop(self, digest: Digest, but: str) -> None:
        for name in self._names(digest):
            if name != but:
                with contextlib.suppress(OSError):
                    self._layout.record(digest, name).unlink()

    def _names(self, digest: Digest) -> list[str]:
        try:
            found = os.listdir(self._layout.data(digest).parent)
        except OSError:
            return []
        return [name for name in found if name.startswith((_SIZE, _DAMAGED))]


def _mark(status: os.stat_result) -> str:
    # Without the device, whose number a restart may change: the record is on the same one.
    return _DAMAGED + "_".join(map(str, stamp_of(status)[1:]))


def _make(record: Path) -> None:
    """Make an empty file with the owner and mode of the blob's directory."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(record, flags, 0o644)
    try:
        inherit(descriptor, record.parent.stat())
    finally:
        os.close(descriptor)
