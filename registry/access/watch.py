"""Values from files, loaded again when the file changes.

A file is checked when its value is asked for, at most once per `INTERVAL`: one stat through all
symlinks (`storage.files.stamp_at`), which also shows the change of a mounted Secret of Kubernetes,
an edit in place and a file that is renamed over it.

New content counts only if it loads. A broken or missing file leaves the old value in force and is
reported once for each change: a typo must neither open the registry nor close it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from mayfly.auth.errors import AuthError
from mayfly.registry.access.errors import PolicyFileInvalid
from mayfly.storage.files import stamp_at

T = TypeVar("T")

INTERVAL = 1.0
"""Least seconds between two checks of a file."""


class FileBacked(Generic[T]):
    """Returns the current value of a file when called. Safe for use from several threads.

    Args:
        path: of the file.
        loader: returns the value of a path; raises `AuthError` if the content is invalid.
        on_broken: called once for each change that cannot be loaded.
        on_reload: called for each change that is loaded.
        clock: seconds, monotonic.

    Raises:
        AuthError: the first load fails, so that there is no old value to keep.
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
        self._checked = clock()
        # Taken before the load: a change during it is noticed at the next check.
        self._seen = stamp_at(path)
        self._value = loader(path)

    def __call__(self) -> T:
        """Return the value of the file as it is now, or as it last was valid."""
        now = self._clock()
        with self._lock:
            if now - self._checked >= INTERVAL:
                self._checked = now
                self._check()
            return self._value

    def _check(self) -> None:
        stamp = stamp_at(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
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
