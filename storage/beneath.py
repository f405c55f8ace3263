"""A tree (`storage.directory_tree`) for a directory from another host: names never lead outside it.

A link in such a directory may name any file of this host, opening a pipe blocks, and opening a
device may have any effect. So a name is resolved from the directory's descriptor without following
links, and the file is examined (``O_PATH``) before it is opened: only regular files are opened.

    name ──► openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS, O_PATH) ──► fstat ──► open by descriptor
             or, if the kernel has no openat2 or a sandbox forbids it,
             one openat(O_NOFOLLOW | O_PATH) for each component

The last step opens ``/proc/self/fd/N``, which is the inode that was examined.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mayfly.storage.directory_tree import MOST_ENTRIES, is_kind, read_start
from mayfly.storage.errors import PathRefused
from mayfly.storage.files import is_absent

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPENAT2 = 437
"""Number of the system call, which is the same on every architecture (Linux 5.6)."""

_RESOLVE = 0x02 | 0x04 | 0x08
"""RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH, from linux/openat2.h."""

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Lookup = Callable[[int, bytes], int]
"""Returns an ``O_PATH`` descriptor for a name below a directory's descriptor."""


class Beneath:
    """See `storage.directory_tree.DirectoryTree`. Safe in several threads until it is closed.

    Args:
        root: the directory; it may itself be a link, since the operator named it.
        lookup: resolves names; by default the best way that works here.

    Raises:
        OSError: it cannot be opened as a directory.
    """

    def __init__(self, root: Path, lookup: Lookup | None = None) -> None:
        self.root = root.absolute()
        self._descriptor = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lookup = lookup or best_lookup(self._descriptor)

    def close(self) -> None:
        """Close the directory."""
        os.close(self._descriptor)

    def status(self, path: Path) -> os.stat_result | None:
        descriptor = self._look(path)
        if descriptor is None:
            return None
        try:
            return self._checked(descriptor, path)
        finally:
            os.close(descriptor)

    def is_file(self, path: Path) -> bool:
        return is_kind(self, path, stat.S_ISREG)

    def is_directory(self, path: Path) -> bool:
        return is_kind(self, path, stat.S_ISDIR)

    def open(self, path: Path) -> int:
        descriptor = self._look(path)
        if descriptor is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        try:
            if not stat.S_ISREG(self._checked(descriptor, path).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(descriptor)

    def read(self, path: Path, count: int) -> bytes:
        return read_start(self, path, count)

    def entries(self, path: Path) -> list[str]:
        return [entry.name for entry in self._scan(path)]

    def directories(self, path: Path) -> list[str]:
        return [entry.name for entry in self._scan(path) if entry.is_dir(follow_symlinks=False)]

    def lists_directory(self, path: Path) -> bool:
        return self.is_directory(path)

    def _scan(self, path: Path) -> list[os.DirEntry[str]]:
        try:
            looked = self._look(path)
        except PathRefused:
            return []
        if looked is None:
            return []
        try:
            if not stat.S_ISDIR(os.fstat(looked).st_mode):
                return []
            listed = os.open(f"/proc/self/fd/{looked}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            os.close(looked)
        found: list[os.DirEntry[str]] = []
        try:
            with os.scandir(listed) as entries:
                for entry in entries:
                    if len(found) == MOST_ENTRIES:
                        raise PathRefused(
                            f"{self._shown(path)} has more than {MOST_ENTRIES} entries"
                        )
                    # Asked now: later the descriptor may be another file's.
                    entry.is_dir(follow_symlinks=False)
                    found.append(entry)
        finally:
            os.close(listed)
        return found

    def _look(self, path: Path) -> int | None:
        try:
            name = os.fsencode(path.relative_to(self.root))
        except UnicodeEncodeError:  # a lone surrogate, as JSON may hold
            return None
        if b"\0" in name or b".." in name.split(b"/"):
            return None
        try:
            return self._lookup(self._descriptor, name)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EXDEV):
                raise PathRefused(
                    f"a symbolic link leads to {self._shown(path)}: put the files themselves there"
                ) from None
            if is_absent(error) or error.errno == errno.ENAMETOOLONG:
                return None
            raise

    def _checked(self, descriptor: int, path: Path) -> os.stat_result:
        found = os.fstat(descriptor)
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is not None:
            raise PathRefused(f"{self._shown(path)} is {kind}: put the file itself there")
        return found

    def _shown(self, path: Path) -> str:
        return f"file {path.relative_to(self.root)}"


def best_lookup(directory: int) -> Lookup:
    """Return `by_openat2` if the kernel and the sandbox allow that call, otherwise `by_walking`."""
    try:
        found = by_openat2(directory, b".")
    except (OSError, AttributeError):
        # ENOSYS of an older kernel, EPERM of a seccomp filter that does not know the call.
        return by_walking
    os.close(found)
    return by_openat2


def by_openat2(directory: int, name: bytes) -> int:
    """Resolve a name by one call that follows no link.

    Raises:
        OSError: ELOOP if a link is on the way; ENOSYS, EPERM if the call cannot be used.
    """
    # Imported only when a directory is served: it takes milliseconds of the start.
    import ctypes

    how = (ctypes.c_uint64 * 3)(_LOOK, 0, _RESOLVE)
    found: int = _syscall()(
        ctypes.c_long(_OPENAT2),
        ctypes.c_int(directory),
        ctypes.c_char_p(name),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(name))
    return found


def by_walking(directory: int, name: bytes) -> int:
    """Resolve a name component by component, and examine each.

    Raises:
        OSError: ELOOP if a link is on the way, as with openat2.
    """
    current = os.dup(directory)
    parts = name.split(b"/")
    for number, part in enumerate(parts):
        try:
            found = os.open(part, _LOOK, dir_fd=current)
        finally:
            os.close(current)
        current = found
        if number < len(parts) - 1 and stat.S_ISLNK(os.fstat(current).st_mode):
            os.close(current)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(name))
    return current


_known: list[Any] = []


def _syscall() -> Any:
    if not _known:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        library.syscall.restype = ctypes.c_long
        _known.append(library.syscall)
    return _known[0]
