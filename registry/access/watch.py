"""Files that are read again when they change.

A file is looked at when somebody asks for its value, at most every `INTERVAL`. Looking is one stat
through all symlinks, so that Kubernetes' way of changing a mounted Secret (a new directory, then
``..data`` swung over to it) shows as another inode. Taken together, device, inode, size, mtime and
ctime also tell an edit in place and a rename over the file.

The new content counts only if it loads. A broken or missing file leaves the old value in force and
is reported once for each change: a typo must not open the registry, nor close it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from mayfly.auth.errors import AuthError
from mayfly.registry.access.errors import PolicyFileInvalid

T = TypeVar("T")

INTERVAL = 1.0
"""Seconds between two looks at a file."""

Signature = tuple[int, int, int, int, int]


class FileBacked(Generic[T]):
    """The current value of a file. Safe for use from several threads.

    Args:
        path: the file.
        loader: makes the value from the path; raises `AuthError` if the content is no good.
        on_broken: told of a change that could not be taken, once; it should be loud.
        on_reload: told of a change that was taken.
        clock: seconds, monotonic.

    Raises:
        AuthError: the first load fails. There is no old value to keep.
    """

    def __init__(
        self,
        path: Path,
        loader: Callable[[Path], T],
        on_broken: Callable[[AuthError], None],
        on_reload: Callable[[Path], None] = lambda path: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._loader = loader
        self._on_broken = on_broken
        self._on_reload = on_reload
        self._clock = clock
        self._lock = threading.Lock()
        self._looked = clock()
        # Taken before the load: a change during it is noticed at the next look.
        self._seen = self._signature()
        self._value = loader(path)

    def __call__(self) -> T:
        """The value, from the file as it is now or as it last was good."""
        now = self._clock()
        with self._lock:
            if now - self._looked >= INTERVAL:
                self._looked = now
                self._look()
            return self._value

    def _look(self) -> None:
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._value = self._loader(self._path)
        except AuthError as error:
            self._on_broken(error)
        except OSError as error:
            self._on_broken(
                PolicyFileInvalid(self._path, f"cannot be read ({error.strerror})", "check it")
            )
        else:
            self._on_reload(self._path)

    def _signature(self) -> Signature | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
