"""The state directory: one server at a time, and nothing of a dead one left to mislead.

    lock              flock(2)ed while a server lives; the kernel lets go of it whatever kills it
    ready.json        the port answers; who reads it need not ask
    control.sock      `control`: a link to the socket in the runtime directory, or the socket
    report.json       of the last run
    run-XXXXXX/       private files of `mayfly run`'s command
    ca.*, tls.*       `registry.pki.authority`

and the files of a run, which outlive a server that is killed (`runs`). What such a server left of
ready.json, control.sock and run-* is removed by the next one that gets the lock.

Everything in it is believed, a CA's key included, so the directory must be ours and nobody else's
to write.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from pathlib import Path
from shlex import quote
from typing import Self

from mayfly.registry.settings.config import ConfigError

LOCK = "lock"
READY = "ready.json"
CONTROL_SOCKET = "control.sock"
LEDGER = "coverage.jsonl"
REPORT = "report.json"
PRIVATE_PREFIX = "run-"

SIGNING_KEY = "signing.key"
CREDENTIALS = "credentials.json"

_SHORT_LIVED = frozenset({READY, CONTROL_SOCKET})
_WRITABLE_BY_OTHERS = 0o022


class StateDir:
    """A state directory that this process holds. Make it with `claim`.

    Attributes:
        path: of it.
        repaired: names of what a killed server had left and `claim` removed.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.repaired = self._repair()
        self._lock: int | None = lock

    @classmethod
    def claim(cls, path: Path) -> StateDir:
        """Take the directory, made if need be, and tidy it.

        Raises:
            ConfigError: a server lives in it, it cannot be used, or others may write it.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_ours(path)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(path / LOCK, flags, 0o600)
        except OSError as error:
            raise ConfigError(f"--state-dir {path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
            return cls(path, lock)
        except BlockingIOError:
            holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise ConfigError(
                f"a Mayfly (pid {holder}) already runs with the state directory {path}; "
                f"end it with: mayfly stop --state-dir {quote(str(path))}, "
                "or choose another --state-dir"
            ) from None
        except OSError as error:
            os.close(lock)
            raise ConfigError(f"--state-dir {path} cannot be used: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Tidy, and let the next server in. What is already done is not done again."""
        if self._lock is not None:
            self._repair()
            os.close(self._lock)
            self._lock = None

    def _repair(self) -> tuple[str, ...]:
        """Remove what only a living server may have; the lock is ours."""
        removed = []
        for entry in self.path.iterdir():
            if entry.name in _SHORT_LIVED:
                entry.unlink(missing_ok=True)
            elif entry.name.startswith(PRIVATE_PREFIX) and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                continue
            removed.append(entry.name)
        return tuple(sorted(removed))


def check_ours(path: Path) -> None:
    """See that nobody but us, and root, could have put something in a state directory.

    Raises:
        ConfigError: it is somebody else's, or others may write it.
        OSError: it cannot be looked at.
    """
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"--state-dir {path} belongs to user {found.st_uid} and Mayfly runs as "
            f"{os.geteuid()}: its owner could have put a CA key or users in it; "
            "name a directory of your own, or one that does not exist yet"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & _WRITABLE_BY_OTHERS:
        raise ConfigError(
            f"--state-dir {path} can be written by other users (mode {mode:04o}): they could have "
            f"put a CA key or users in it; name a directory in it that does not exist yet, such as "
            f"{path / 'mayfly'}, or if all in it is yours run: chmod go-w {path}"
        )
