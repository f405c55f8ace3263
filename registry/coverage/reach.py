"""How far transfers have got, kept across a kill of the server.

The journal lacks the end of a transfer that a kill cut off. The most that the server had sent is
kept here instead, in a table of numbers that is shared memory with a file: a store to it is the
kernel's at once, so it costs the byte path next to nothing and survives ``kill -9``. It is not
synced: after a power cut, no transfer counts as having got anywhere.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

SLOTS = 16_384
"""Transfers at a time. Of further ones nothing counts as arrived if the server is killed."""

_NUMBER = struct.Struct("<Q")
_SIZE = SLOTS * _NUMBER.size


class Reach:
    """A new table in the place of the one that an earlier server left.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        draft = path.with_name(f".{path.name}.draft")
        draft.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(draft, flags, 0o600)
        try:
            # A store to a page that a full disk has no room for would kill the process.
            os.posix_fallocate(descriptor, 0, _SIZE)
            self._table = mmap.mmap(descriptor, _SIZE)
            draft.rename(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        self._free = list(range(SLOTS - 1, -1, -1))

    def take(self, reached: int) -> int | None:
        """Take a slot for a transfer that has got to an offset; None if all are taken."""
        if not self._free:
            return None
        slot = self._free.pop()
        self.set(slot, reached)
        return slot

    def set(self, slot: int, reached: int) -> None:
        """Note how far a transfer may have got."""
        _NUMBER.pack_into(self._table, slot * _NUMBER.size, reached)

    def give_back(self, slot: int) -> None:
        """The transfer has ended, and the journal says where."""
        self._free.append(slot)

    def remove(self) -> None:
        """Take the file away."""
        self._path.unlink(missing_ok=True)


def read(path: Path) -> list[int]:
    """How far the transfers of an earlier server may have got, by slot; empty without a file.

    Raises:
        OSError: it cannot be read.
    """
    try:
        data = path.read_bytes()[:_SIZE]
    except FileNotFoundError:
        return []
    whole = len(data) - len(data) % _NUMBER.size
    return [number for (number,) in _NUMBER.iter_unpack(data[:whole])]
