"""A file of JSON lines, each of which carries the hash of the one before.

A line that is changed, removed or added breaks the chain at that place. Only the end can be cut off
unseen; the hash of the last line, the *head*, is in the report, and `telemetry.chain.check` finds
it again.

The file is renamed to ``FILE.1`` before it grows beyond `MAX_FILE_BYTES`, ``FILE.1`` to ``FILE.2``
and so on; `KEPT_FILES` of those are kept. The chain runs through all of them. After a crash it
continues after the last whole line. The rest of a line that the crash cut off stays, and the next
line has its size and hash.

One server at a time writes to a file: it holds the file's lock, which ends with the process. After
a rename it locks the new file. A server that starts in the moment between takes over the chain, and
the one before can write no more.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mayfly.registry.telemetry import events
from mayfly.registry.telemetry.events import Event
from mayfly.registry.threads import in_thread
from mayfly.storage.files import try_lock

MAX_FILE_BYTES = 16 * 1024 * 1024
"""Size at which the file is renamed, in bytes."""

KEPT_FILES = 9
"""Renamed files that are kept; with the one written that is 160 MiB at most."""

MAX_LINE_BYTES = 64 * 1024
"""An event is far shorter: each value that a client chose is cut (`events.short`)."""

FIRST = ""
"""The ``previous`` of the first line of a chain."""


class Head(NamedTuple):
    """The last line of a chain: its number from 1, and its SHA-256 as hexadecimal digits."""

    number: int
    digest: str


class ChainedFile:
    """Appends events. Belongs to one event loop; call `append` from one task at a time.

    A pipe or terminal is written as it is, without rotation or lock.

    Args:
        path: made with mode 0600 if it is not there.

    Raises:
        OSError: it cannot be written or read, or another server writes to it.
    """

    def __init__(self, path: Path) -> None:
        self._locked = -1
        """Descriptor of the file, which holds its lock."""
        descriptor = _private(str(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            self._path = path.resolve()
            found = os.fstat(descriptor)
            self._regular = stat.S_ISREG(found.st_mode)
            self._size = 0
            if self._regular:
                self._hold(descriptor)
        finally:
            os.close(descriptor)
        self.head = Head(0, FIRST)
        self._torn = b""
        """The rest of a last line that a crash cut off."""
        self._separator = b""
        """Ends a last line without a newline."""
        if self._regular:
            self._resume()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let another server write to the file."""
        if self._locked >= 0:
            os.close(self._locked)
            self._locked = -1

    def _hold(self, descriptor: int) -> None:
        """Lock the file that is open, if it is not the one that is locked.

        Raises:
            BlockingIOError: another server writes to it or has, or renamed it just now.
        """
        if self._locked >= 0 and os.path.sameopenfile(descriptor, self._locked):
            return
        locked = os.dup(descriptor)  # the lock belongs to both, and stays with this one
        try:
            in_place = try_lock(locked) and os.path.samestat(os.fstat(locked), self._path.stat())
            size = os.fstat(locked).st_size
            # A file that another server has begun continues after a line unknown to this one.
            if not in_place or (self._locked >= 0 and size > 0):
                raise BlockingIOError(errno.EWOULDBLOCK, "another server writes to it")
        except BaseException:
            os.close(locked)
            raise
        self.close()
        self._locked = locked
        self._size = size

    def _resume(self) -> None:
        """Go on behind the last line of the file, or of the file renamed last if it is empty."""
        for path in (self._path, _numbered(self._path, 1)):
            tail = _tail(path)
            if not tail:
                continue
            whole, _, torn = tail.rpartition(b"\n")
            if whole:
                self.head = _head_of(whole.rpartition(b"\n")[2])
            if path == self._path and torn:
                last = _head_of(torn)
                if last.number == self.head.number + 1:  # only its newline is missing
                    self.head, self._separator = last, b"\n"
                else:
                    self._torn, self._separator = torn, b"\n"
            if self.head.digest:
                return

    async def append(self, added: Iterable[Event]) -> None:
        """Write events and wait until they are on the disk.

        Raises:
            OSError: none of them is written.
        """
        head, lines = self.head, []
        if self._torn:
            resumed = events.new("resume")
            resumed["torn"] = {
                "bytes": len(self._torn),
                "sha256": hashlib.sha256(self._torn).hexdigest(),
            }
            added = (resumed, *added)
        for event in added:
            head, line = _chain(head, event)
            lines.append(line)
        if not lines:
            return
        data = self._separator + b"".join(lines)
        if self._is_full(len(data)):
            await in_thread(self._rotate)
        await self._write(data)
        self.head = head
        self._torn = self._separator = b""

    def _is_full(self, size: int) -> bool:
        # The end of a line, and the line that names a torn one, are in the same file.
        may_rotate = self._regular and bool(self._size) and not self._separator
        return may_rotate and self._size + size > MAX_FILE_BYTES

    async def _write(self, data: bytes) -> None:
        # Imported only where there is such a file.
        import aiofiles

        async with aiofiles.open(self._path, "ab", buffering=0, opener=_private) as file:
            if self._regular:
                await in_thread(self._hold, file.fileno())
            try:
                left = memoryview(data)
                while left:
                    left = left[await file.write(left) :]
                if self._regular:
                    await in_thread(os.fdatasync, file.fileno())
            except OSError:
                if self._regular:
                    # The part that a full disk took would be a torn line.
                    await in_thread(os.ftruncate, file.fileno(), self._size)
                raise
        self._size += len(data)

    def _rotate(self) -> None:
        for number in range(KEPT_FILES - 1, 0, -1):
            if (older := _numbered(self._path, number)).exists():
                older.replace(_numbered(self._path, number + 1))
        self._path.replace(_numbered(self._path, 1))
        self._size = 0


def files(path: Path) -> list[Path]:
    """Return the file and those renamed from it, oldest first; only those that exist."""
    numbered = (_numbered(path, number) for number in range(KEPT_FILES, 0, -1))
    return [one for one in (*numbered, path) if one.exists()]


def digest_of(line: bytes) -> str:
    """Return the hash of a line without its newline, which the next line carries."""
    return hashlib.sha256(line).hexdigest()


def _chain(head: Head, event: Event) -> tuple[Head, bytes]:
    record = {"number": head.number + 1, "previous": head.digest, **event}
    line = json.dumps(record, separators=(",", ":")).encode()
    return Head(head.number + 1, digest_of(line)), line + b"\n"


def _head_of(line: bytes) -> Head:
    try:
        number = json.loads(line)["number"]
    except (ValueError, KeyError, TypeError, RecursionError):
        number = 0
    return Head(number if isinstance(number, int) else 0, digest_of(line))


def _tail(path: Path) -> bytes:
    """The end of a file: at least its last whole line and any text after it."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - 2 * MAX_LINE_BYTES)
            file.seek(start)
            tail = file.read()
            if start and tail.count(b"\n") < 2:  # power loss may leave any number of zeros
                file.seek(0)
                return file.read()
            return tail
    except FileNotFoundError:
        return b""


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
