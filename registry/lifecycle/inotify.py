"""inotify(7), which Python does not wrap: the kernel's events about a directory's entries."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_CREATE = 0x100
_MOVED_TO = 0x80

_BUFFER = 16 * 1024


class Inotify:
    """Becomes readable when an entry is created in a directory or moved there.

    Raises:
        OSError: the directory is missing, or the kernel allows no more watches.
    """

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise _error(directory)
        if (
            libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _CREATE | _MOVED_TO)
            < 0
        ):
            error = _error(directory)
            self.close()
            raise error

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._descriptor

    def discard(self) -> None:
        """Discard all events so far."""
        try:
            while os.read(self._descriptor, _BUFFER):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Stop watching."""
        os.close(self._descriptor)


def _error(directory: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), str(directory))
