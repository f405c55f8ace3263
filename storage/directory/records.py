"""Records about a blob's bytes, kept beside them: the verified size, or damage.

Both are empty files in the directory of the blob's ``data``, whose names say everything::

    data
    _mayfly_size_1048576                      the content of this digest has so many bytes
    _mayfly_damaged_<inode>_<size>_<mtime>_<ctime>    the file with this stamp has another digest

registry:2 asks for ``data`` alone, passes other names over, and deletes the whole directory.

A size is recorded after bytes were hashed and had their digest. From then on it is true of the
digest, whatever becomes of the file, so a record never goes stale and needs no order on the disk:
without one the file's length is believed, as for files of other writers. An
empty file with a telling name cannot be torn, survives every way of copying a tree (extended
attributes do not), and looking at it is a single stat(2), of a name that is made from the length of
``data``: where that exists, the file has the verified length.
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
"""Files remembered in memory, of each kind: seen as they are, told of, not to be marked."""

_EMPTY = frozenset(digests.of(b"", algorithm) for algorithm in digests.HEX_LENGTHS)
"""The digests of no bytes: the only ones an empty file can have."""


class Records:
    """The records of one store's blobs. Reading is quick; writing needs no sync.

    Args:
        layout: of the store.
        trusted: whether records beside the blobs count; in somebody else's directory they may be
            forged.
    """

    def __init__(self, layout: Layout, *, trusted: bool = True) -> None:
        self._layout = layout
        self._trusted = trusted
        self._seen: dict[Digest, Stamp] = {}
        self._unwritten: dict[Digest, Stamp] = {}
        self._logged: set[Digest] = set()

    def whole(self, digest: Digest, status: os.stat_result) -> bool:
        """Quick. Whether a blob's file can be its content, by the records.

        A file that is as it was when this was last asked costs no call; else one stat(2), or of
        another writer's file, a look at the directory.

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
        """Quick. Whether the content of a digest is known to have this size."""
        return self._layout.record(digest, f"{_SIZE}{size}").exists()

    def verified(self, digest: Digest, size: int) -> None:
        """Record that bytes were hashed and had this digest; older records are deleted.

        Nothing is raised where the disk refuses: the record is a help, the blob is there without.
        """
        record = self._layout.record(digest, f"{_SIZE}{size}")
        with contextlib.suppress(OSError):
            _make(record)
            self._drop(digest, but=record.name)

    def damaged(self, digest: Digest) -> None:
        """Record that the file, as it is now, was hashed and has another digest."""
        data = self._layout.data(digest)
        status = data.stat()
        self._seen.pop(digest, None)
        try:
            # This changes its ctime, which voids what other processes remember of the file.
            os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))
            status = data.stat()
            record = self._layout.record(digest, _mark(status))
            _make(record)
        except OSError:
            if len(self._unwritten) < _MOST_REMEMBERED:
                self._unwritten[digest] = stamp_of(status)
            return
        # After that: a record of the same length would be believed first.
        self._drop(digest, but=record.name)

    def log_damage(self, digest: Digest) -> None:
        """Log, once, that a blob is there but damaged."""
        if digest not in self._logged and len(self._logged) < _MOST_REMEMBERED:
            self._logged.add(digest)
            logger.warning(
                "%s is damaged and not served: push it again, or mend it with "
                "mayfly verify --repair",
                digest,
            )

    def drop(self, digest: Digest) -> None:
        """Delete the records of a blob that was removed."""
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
    # Without the device, whose number a restart may change: the mark lies on the same one.
    return _DAMAGED + "_".join(map(str, stamp_of(status)[1:]))


def _make(record: Path) -> None:
    """Make an empty file like the blob's directory."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(record, flags, 0o644)
    try:
        inherit(descriptor, record.parent.stat())
    finally:
        os.close(descriptor)
