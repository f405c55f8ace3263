"""The end of the bytes that each transfer under way may have sent, kept across a kill.

A kill loses the ends of transfers, which the ledger's file does not have. An upper bound is kept
here: a table of offsets in memory that is shared with a file. The kernel has each store at once, so
it costs the byte path next to nothing and survives ``kill -9``. The file is not synced: after a
power cut, no byte of a transfer that was under way counts.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from mayfly.storage.files import replacing

SLOTS = 16_384
"""Transfers at a time. Of further ones no byte counts as arrived if the server is killed."""

_OFFSET = struct.Struct("<Q")
_SIZE = SLOTS * _OFFSET.size


class SentOffsets:
    """A new table; it replaces the file of an earlier server.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with replacing(path, durable=False) as file:
            # A store to a page that a full disk has no room for would kill the process.
            os.posix_fallocate(file.fileno(), 0, _SIZE)
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._table = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._free = list(range(SLOTS - 1, -1, -1))

    def take(self, offset: int) -> int | None:
        """Take a slot for a transfer that begins at an offset; None if all are taken."""
        if not self._free:
            return None
        slot = self._free.pop()
        self.set(slot, offset)
        return slot

    def set(self, slot: int, offset: int) -> None:
        """Set the end of the bytes that a transfer may have sent."""
        _OFFSET.pack_into(self._table, slot * _OFFSET.size, offset)

    def release(self, slot: int) -> None:
        """Release the slot of a transfer whose end is in the ledger's file."""
        self._free.append(slot)

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


def read_offsets(path: Path) -> list[int]:
    """Return the offsets of an earlier server's transfers, by slot; empty without a file.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        data = path.read_bytes()[:_SIZE]
    except FileNotFoundError:
        return []
    complete = len(data) - len(data) % _OFFSET.size
    return [offset for (offset,) in _OFFSET.iter_unpack(data[:complete])]
