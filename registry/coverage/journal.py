"""A file of JSON lines that outlives a kill of its writer.

Each entry is appended with one ``write``: after ``kill -9`` the bytes are the kernel's and stay.
They are not synced, so a power cut may take the last ones; nothing runs after one that could still
count on them. What a torn or foreign line holds is skipped. `Journal.replace` puts a whole new
file in place at once, so that it does not grow without end.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Journal:
    """One such file.

    Args:
        path: of the file.
        version: its first line; a file with another is taken for empty.
        older: first lines that are read, too.

    Attributes:
        lines: in the file.
        older: whether what was read has one of the older first lines.
    """

    def __init__(self, path: Path, version: Entry, *older: Entry) -> None:
        self._path = path
        self._version = version
        self._known_older = older
        self.older = False
        self._file: int | None = None
        self.lines = 0

    @property
    def writing(self) -> bool:
        """Whether `append` has a file to write to."""
        return self._file is not None

    def read(self) -> Iterator[Entry]:
        """The entries of an earlier run.

        Raises:
            OSError: the file is there and cannot be read.
        """
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        if not lines:
            return
        version = _parse(lines[0])
        self.older = version in self._known_older
        if self.older or version == self._version:
            yield from (entry for entry in map(_parse, lines[1:]) if entry is not None)

    def append(self, entry: Entry) -> None:
        """Write one more entry, if there is a file to write to.

        Raises:
            OSError: it may be torn now; `close` and go on without.
        """
        if self._file is not None:
            _write(self._file, [entry])
            self.lines += 1

    def replace(self, entries: Iterable[Entry]) -> None:
        """Put a new file in place, and append to that from here on.

        Raises:
            OSError: the old file is unchanged.
        """
        draft = self._path.with_name(f".{self._path.name}.draft")
        draft.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(draft, flags, 0o600)
        lines = [self._version, *entries]
        try:
            _write(descriptor, lines)
            draft.rename(self._path)
        except BaseException:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        self.close()
        self._file = descriptor
        self.lines = len(lines)

    def close(self) -> None:
        """Write no more; the file stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Write no more, and take the file away."""
        self.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def _write(descriptor: int, entries: list[Entry]) -> None:
    data = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    while data:
        data = data[os.write(descriptor, data) :]


def _parse(line: bytes) -> Entry | None:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None
