"""The state directory: used by one server at a time, and tidied after a crash.

    lock              flock(2)ed while a server runs; the kernel releases it at any end
    ready.json        exists while the port answers (`control.readiness`)
    control.sock      `control.socket`: a link to the socket in the runtime directory, or the socket
    report.json       of the last run
    run-XXXXXX/       private files of `mayfly run`'s command
    ca.*, tls.*       `registry.pki.authority`

and the files of a run, which outlive a server that is killed (`runs`). ready.json, control.sock and
run-* of such a server are removed by the next one that gets the lock.

The server trusts every file in the directory, a CA's key included. So no other user may write the
directory or rename a directory of its path, and its files must be regular files of the same user.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from shlex import quote
from typing import Self

from mayfly.registry.settings.errors import ConfigError, unusable
from mayfly.storage.files import WRITABLE_BY_OTHERS, exposed_mode, open_regular, try_lock

LOCK = "lock"
READY = "ready.json"
CONTROL_SOCKET = "control.sock"
LEDGER = "coverage.jsonl"
SENT_OFFSETS = "coverage.reach"
REPORT = "report.json"
PRIVATE_PREFIX = "run-"

SIGNING_KEY = "signing.key"
CREDENTIALS = "credentials.json"

_SHORT_LIVED = frozenset({READY, CONTROL_SOCKET})
_MAX_SMALL = 1024 * 1024
"""Bytes; ``ready.json`` with 10,000 names of nodes takes less."""

_MAX_LINKS = 40
"""Links in the path to a state directory, as in path_resolution(7)."""

FILES = (
    LOCK,
    READY,
    LEDGER,
    SENT_OFFSETS,
    REPORT,
    SIGNING_KEY,
    CREDENTIALS,
    "run.json",
    "verified",
    "ca.crt",
    "ca.key",
    "tls.crt",
    "tls.key",
)
"""Files that a server reads or replaces in a state directory."""

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class StateDir:
    """A state directory that this process has locked. Make it with `claim`.

    Attributes:
        path: of the directory.
        repaired: names of entries of a killed server that `claim` removed.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.repaired = self._repair()
        self._lock: int | None = lock

    @classmethod
    def claim(cls, path: Path) -> StateDir:
        """Lock the directory, made if it is missing, and tidy it.

        Raises:
            ConfigError: a server uses it, it cannot be used, or other users may write it.
        """
        try:
            check_path(path)
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_path(path)
            check_owner(path)
            check_files(path)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(path / LOCK, flags, 0o600)
        except OSError as error:
            raise unusable("--state-dir", path, error) from None
        try:
            if not try_lock(lock):
                holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
                raise ConfigError(
                    f"a Mayfly (pid {holder}) already runs with the state directory {path}; "
                    f"end it with: mayfly stop --state-dir {quote(str(path))}, "
                    "or choose another --state-dir"
                )
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
            return cls(path, lock)
        except ConfigError:
            os.close(lock)
            raise
        except OSError as error:
            os.close(lock)
            raise unusable("--state-dir", path, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Tidy the directory and unlock it. A second call does nothing."""
        if self._lock is not None:
            self._repair()
            os.close(self._lock)
            self._lock = None

    def _repair(self) -> tuple[str, ...]:
        """Remove entries that only a running server has; call with the lock held."""
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


def check_owner(path: Path) -> None:
    """Check that no other user, except root, could have put files in a state directory.

    Raises:
        ConfigError: it belongs to another user, or others may write it.
        OSError: its attributes cannot be read.
    """
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"--state-dir {path} belongs to user {found.st_uid} and Mayfly runs as "
            f"{os.geteuid()}: its owner could have put a CA key or users in it; "
            "name a directory of your own, or one that does not exist yet"
        )
    mode = exposed_mode(found, WRITABLE_BY_OTHERS)
    if mode is not None:
        raise ConfigError(
            f"--state-dir {path} can be written by other users (mode {mode}): they could have "
            f"put a CA key or users in it; {_remedy(path, found)}, or if all in it is yours run: "
            f"chmod go-w {quote(str(path))}"
        )


def _remedy(path: Path, found: os.stat_result) -> str:
    if _keeps_entries(path, found):
        inside = quote(str(path / "mayfly"))
        return f"name a directory in it that does not exist yet, such as {inside}"
    return "name another directory"


def check_path(path: Path) -> None:
    """Check that no other user, except root, could replace the directory ``path`` by another one.

    Every directory and link of the path must belong to root or to this user, and a directory that
    others may write must protect its entries from renaming: by its sticky bit, or as the root of a
    volume, such as a pod's. Of a directory that does not exist yet, the existing part counts.

    Raises:
        ConfigError: another user could replace it.
        OSError: attributes cannot be read.
    """
    here = Path("/")
    waiting = list(reversed(path.absolute().parts[1:]))
    links = 0
    while waiting:
        name = waiting.pop()
        if name == "..":
            here = here.parent
            continue
        inside = here / name
        try:
            found = inside.lstat()
        except FileNotFoundError:
            return
        is_link = stat.S_ISLNK(found.st_mode)
        # `check_owner` checks the directory itself, with messages of its own.
        if (waiting or is_link) and found.st_uid not in (0, os.geteuid()):
            kind = "link" if is_link else "directory"
            raise ConfigError(
                f"--state-dir {path}: the {kind} {inside} on the way belongs to user "
                f"{found.st_uid}, who could put another directory in its place; name one elsewhere"
            )
        if is_link:
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = inside.readlink()
            waiting += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here = Path("/") if target.is_absolute() else here
            continue
        if waiting and not _keeps_entries(inside, found):
            mode = stat.S_IMODE(found.st_mode)
            raise ConfigError(
                f"--state-dir {path}: other users may write {inside} (mode {mode:04o}) and could "
                f"put another directory in its place; name one elsewhere, or run: "
                f"chmod go-w {quote(str(inside))}"
            )
        here = inside


def _keeps_entries(directory: Path, found: os.stat_result) -> bool:
    """Whether only root and the owners of the directory and of an entry can rename the entry."""
    # Group write is the default where each user has a group of their own, as on Fedora.
    is_open = found.st_mode & stat.S_IWOTH or (
        found.st_mode & stat.S_IWGRP and found.st_gid not in (0, os.getegid())
    )
    return not is_open or bool(found.st_mode & stat.S_ISVTX) or os.path.ismount(directory)


def read_small(file: Path) -> bytes:
    """Return the content of a small file of a state directory, which may be another user's.

    Raises:
        OSError: it is missing, not a regular file, or too large.
    """
    descriptor = open_regular(file)
    try:
        data = os.read(descriptor, _MAX_SMALL + 1)
    finally:
        os.close(descriptor)
    if len(data) > _MAX_SMALL:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(file))
    return data


def check_files(path: Path) -> None:
    """Check that the files of a state directory are regular files of this user or root.

    No file is opened.

    Raises:
        ConfigError: a file is not.
        OSError: attributes cannot be read.
    """
    for name in FILES:
        file = path / name
        try:
            owners = {file.lstat().st_uid}
            found = file.stat()
        except FileNotFoundError:
            continue  # also a dangling link, which is replaced
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is not None:
            raise ConfigError(f"--state-dir {path}: {name} is {kind}, not a file: remove it")
        if others := (owners | {found.st_uid}) - {0, os.geteuid()}:
            raise ConfigError(
                f"--state-dir {path}: {name} belongs to user {min(others)}, who may have planted "
                "it: remove it, or make it yours if you know where it is from"
            )
