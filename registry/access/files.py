"""Reads and writes bytes of the files that decide on access, and checks their modes.

Reading follows symlinks, because Kubernetes mounts a Secret as a symlink into ``..data``. The file
at the end must be regular and have none of the permission bits that its kind forbids. The open file
is checked, so that it cannot be replaced between check and read.

Writing refuses a symlink: replacing one would cut a mount off from its source, and following one
could change a file elsewhere. A write is atomic and durable (`storage.files`). A new file gets mode
0600, or 0640 in a directory with the setgid bit, whose group it gets. An existing one keeps its
owner and its group's right to read. So ``mayfly user add`` run by root locks no server out.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mayfly.registry.access.errors import PolicyFileInvalid
from mayfly.storage import files as storage_files
from mayfly.storage.files import (
    WRITABLE_BY_OTHERS,
    Attributes,
    exposed_mode,
    open_regular,
    replace_file,
)

MAX_SIZE = 1024 * 1024
"""Largest file read, in bytes: some ten thousand users."""

NOT_WRITABLE_BY_OTHERS = WRITABLE_BY_OTHERS
"""Forbidden bits of a file that others may read and must not change: htpasswd, grants.toml."""

PRIVATE = 0o077
"""Forbidden bits of a file that is itself a secret: a signing key. Reading by the group is allowed
where root owns the file: root gave it to that group, as a Kubernetes Secret volume's fsGroup does.
"""

_KEPT_BITS = 0o640


def read(path: Path, forbidden: int) -> bytes:
    """Read a whole file.

    Args:
        path: the file, or a symlink to it.
        forbidden: `NOT_WRITABLE_BY_OTHERS` or `PRIVATE`.

    Raises:
        PolicyFileInvalid: it is missing, unreadable, not regular, larger than `MAX_SIZE`, or open
            to others.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            _check(path, os.fstat(file.fileno()), forbidden)
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise PolicyFileInvalid(
            path, f"cannot be read ({error.strerror})", "check the path and its permissions"
        ) from error
    if len(data) > MAX_SIZE:
        raise PolicyFileInvalid(path, f"is larger than {MAX_SIZE} bytes", "shorten it")
    return data


def _check(path: Path, found: os.stat_result, forbidden: int) -> None:
    if forbidden == PRIVATE and found.st_uid == 0:
        forbidden &= ~stat.S_IRGRP
    mode = exposed_mode(found, forbidden)
    if mode is None:
        return
    if forbidden & stat.S_IROTH:
        what = f"is open to other users (mode {mode}) and holds a secret"
        remedy = f"run: chmod 600 {path} (in a Kubernetes Secret volume: defaultMode: 0440)"
    else:
        what = f"can be written by other users (mode {mode})"
        remedy = f"run: chmod go-w {path}"
    raise PolicyFileInvalid(path, what, remedy)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock for changes of the files in ``path``'s directory, among all processes.

    The lock is on the directory, so no lock file remains. Read, change and `write` inside it.

    Raises:
        PolicyFileInvalid: the directory is missing or cannot be opened.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(storage_files.locked(path.parent))
        except OSError as error:
            raise PolicyFileInvalid(
                path.parent, f"cannot be opened ({error.strerror})", "make the directory first"
            ) from error
        yield


def write(path: Path, data: bytes) -> None:
    """Replace a file atomically, or make it; after a crash there is the old or the new one.

    Raises:
        PolicyFileInvalid: ``path`` is a symlink or not a regular file, or writing failed; the
            old file is as it was.
    """
    try:
        replace_file(path, data, _attributes(path, _writable(path)))
    except OSError as error:
        raise PolicyFileInvalid(
            path, f"cannot be written ({error.strerror})", "the old file is unchanged"
        ) from error


def _writable(path: Path) -> os.stat_result | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        raise PolicyFileInvalid(path, "is a symlink", "name the file it points to")
    if not stat.S_ISREG(found.st_mode):
        raise PolicyFileInvalid(path, "is not a regular file", "name a file")
    return found


def _attributes(path: Path, before: os.stat_result | None) -> Attributes:
    if before is None:
        return Attributes(0o640 if path.parent.stat().st_mode & stat.S_ISGID else 0o600)
    mode = 0o600 | (before.st_mode & _KEPT_BITS)
    return Attributes(mode, (before.st_uid, before.st_gid))
