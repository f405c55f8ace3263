"""The state directory: one server at a time, and nothing of a dead one left to mislead.

    lock              flock(2)ed while a server lives; the kernel lets go of it whatever kills it
    ready.json        the port answers; who reads it need not ask
    control.sock      `control`
    coverage.jsonl    `ledger`; stays across restarts until the upgrade is covered
    report.json       of the last run
    signing.key       what `mayfly credentials` signs with
    credentials.json  the users of ``--auth auto``
    run-XXXXXX/       private files of `mayfly run`'s command

What a server that was killed left of ready.json, control.sock and run-* is removed by the next one
that gets the lock, and so are files that other parts of the server say must not outlive it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Self

from registry.config import ConfigError

_LOCK = "lock"
_READY = "ready.json"
CONTROL_SOCKET = "control.sock"
LEDGER = "coverage.jsonl"
REPORT = "report.json"
PRIVATE_PREFIX = "run-"

SIGNING_KEY = "signing.key"
CREDENTIALS = "credentials.json"

SHORT_LIVED = (SIGNING_KEY, CREDENTIALS)
"""What ends with the server that made it, and is removed after one that was killed."""


class StateDir:
    """A state directory that this process holds. Make it with `claim`.

    Attributes:
        path: of it.
        repaired: names of what a killed server had left and `claim` removed.
    """

    def __init__(self, path: Path, lock: int, short_lived: frozenset[str]) -> None:
        self.path = path
        self._short_lived = short_lived
        self.repaired = self._repair()
        self._lock: int | None = lock

    @classmethod
    def claim(cls, path: Path, short_lived: Collection[str] = ()) -> StateDir:
        """Take the directory, made if need be, and tidy it.

        Args:
            path: of it.
            short_lived: names of further files that must not outlive the server.

        Raises:
            ConfigError: a server lives in it, or it cannot be used.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"--state-dir {path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
            return cls(path, lock, frozenset({_READY, CONTROL_SOCKET, *short_lived}))
        except BlockingIOError:
            holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise ConfigError(
                f"a Mayfly (pid {holder}) already runs with the state directory {path}; "
                f"end it with: mayfly stop --state-dir {path}, or choose another --state-dir"
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
            if entry.name in self._short_lived:
                entry.unlink(missing_ok=True)
            elif entry.name.startswith(PRIVATE_PREFIX) and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                continue
            removed.append(entry.name)
        return tuple(sorted(removed))
