"""A file of JSON lines that outlives a kill of its writer.

Each entry is appended with one ``write``, so that ``kill -9`` does not lose it. Entries are not
synced: a power cut ends the nodes' pulls, too, and may lose the last entries. Torn and foreign
lines are skipped. `LedgerFile.replace` replaces the file atomically, so that it does not grow
without end.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mayfly.storage.files import replacing

Entry = dict[str, Any]
"""One line."""


class LedgerFile:
    """One such file.

    Args:
        path: of the file.
        version: first line of the file; a file with another first line counts as empty.
        older: first lines of older versions that are also read.

    Attributes:
        lines: number of lines in the file.
        older: whether the file that was read is of an older version.
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
        """Yield the entries of the file; none if it is missing.

        Raises:
            OSError: the file exists and cannot be read.
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
        """Append an entry, if there is a file to write to.

        Raises:
            OSError: the last line may be torn; call `close` and continue without the file.
        """
        if self._file is not None:
            _write(self._file, [entry])
            self.lines += 1

    def replace(self, entries: Iterable[Entry]) -> None:
        """Replace the file atomically, and append to the new one from now on.

        Raises:
            OSError: the old file is unchanged.
        """
        lines = [self._version, *entries]
        with contextlib.ExitStack() as undo:
            with replacing(self._path, flags=os.O_APPEND, durable=False) as file:
                descriptor = os.dup(file.fileno())
                undo.callback(os.close, descriptor)
                _write(descriptor, lines)
            undo.pop_all()
        self.close()
        self._file = descriptor
        self.lines = len(lines)

    def close(self) -> None:
        """Stop writing; the file stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Stop writing, and remove the file."""
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
