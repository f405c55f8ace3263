"""Files on disk: opened safely, recognized by a stamp, locked, synced, replaced at once.

A file that is replaced is written beside its target, synced, renamed and synced into its directory,
so that a crash at any point leaves the old file or the new one::

    temporary ──write──► fsync ──rename──► target ──► fsync of the directory

The order follows the guarantees of ext4 and XFS; see fsync(2), rename(2) and Pillai et al., "All
File Systems Are Not Created Equal" (OSDI 2014). `storage.directory.publish` builds on these
functions for a tree of files that several processes change at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mayfly.storage.errors import DISK_FULL, StorageFull

WRITABLE_BY_OTHERS = 0o022
"""Mode bits that let another user than the owner write."""

OPEN_TO_OTHERS = 0o027
"""Mode bits that the file of a secret may not have: group write, anything for others.

So 0600 passes, and 0640 for a key group (Debian's ssl-cert, a Kubernetes fsGroup), as PostgreSQL's
server keys; 0644 does not.
"""

_COPIED_AT_ONCE = 16 * 1024 * 1024
_READ_AT_ONCE = 1024 * 1024
"""Bytes: in the kernel, and by reading."""

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY
_NO_WAIT = os.O_NONBLOCK
"""A pipe without a writer would block its opener forever."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


# Opening


def open_regular(path: Path, flags: int = 0) -> int:
    """Open a regular file for reading, without waiting for anything.

    Args:
        path: of the file.
        flags: more flags of open(2), such as ``O_NOFOLLOW``.

    Raises:
        FileNotFoundError: there is none, or it is a pipe, a device or the like.
    """
    try:
        descriptor = os.open(path, _READ | _NO_WAIT | flags)
    except OSError as error:
        # A link where none is followed; a socket or a device without a driver.
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            raise not_regular(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_regular(path)
    return descriptor


def not_regular(path: Path) -> FileNotFoundError:
    """The error for something else where a file should be."""
    return FileNotFoundError(errno.ENOENT, "it is no regular file", str(path))


def is_absent(error: OSError) -> bool:
    """Whether an error means that the path does not exist; links in a circle also lead nowhere."""
    return isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ELOOP


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of some bytes at an offset of a file.

    Raises:
        OSError: they cannot be written; some may be.
    """
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, offset)
        left, offset = left[count:], offset + count


def copy_range(
    source: int,
    offset: int,
    count: int,
    target: int,
    at: int,
    progress: Callable[[int], None] = lambda copied: None,
) -> int:
    """Copy a part of a file in the kernel, or by reading; return the number of bytes copied.

    copy_file_range(2) shares blocks on Btrfs and XFS.

    Args:
        source: a descriptor to read from, beginning at byte ``offset``.
        count: bytes to copy; fewer are only where the source ends before.
        target: a descriptor to write to, beginning at byte ``at``.
        progress: called with the number of bytes copied since the last call.

    Raises:
        OSError: they cannot be read or written.
    """
    copied = 0
    while copied < count:
        begin, wanted = offset + copied, min(_COPIED_AT_ONCE, count - copied)
        try:
            done = os.copy_file_range(source, target, wanted, begin, at + copied)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            piece = os.pread(source, min(wanted, _READ_AT_ONCE), begin)
            write_at(target, piece, at + copied)
            done = len(piece)
        if not done:
            break
        copied += done
        progress(done)
    return copied


# Recognizing


class Stamp(NamedTuple):
    """Tells whether a file still has the content it had.

    A writer can set the modification time of a file back, but not its change time. The change time
    also moves when a file is renamed, linked, or given another mode.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    def is_same_file(self, other: Stamp) -> bool:
        """Whether both are of one file whose size and modification time stayed the same.

        The content may have changed all the same; only equal stamps exclude that.
        """
        return self[:4] == other[:4]


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp in a stat result."""
    return Stamp(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def stamp_at(path: Path) -> Stamp | None:
    """Return the stamp of the file a path leads to, through links; None if there is none.

    Kubernetes changes a mounted Secret by a new directory and a link to it, which shows as another
    inode.
    """
    try:
        return stamp_of(path.stat())
    except OSError:
        return None


def exposed_mode(status: os.stat_result, forbidden: int) -> str | None:
    """Return a file's mode as text, such as ``0644``, if it has a forbidden bit; None otherwise."""
    mode = stat.S_IMODE(status.st_mode)
    return f"{mode:04o}" if mode & forbidden else None


# Locking


def lock(descriptor: int, *, shared: bool = False) -> None:
    """Lock an open file or directory, and wait for the holders of its lock.

    The lock belongs to the open file: it ends when the last duplicate of the descriptor is closed,
    whatever ends the process. flock(2) is unfair: shared holders can starve an exclusive one.
    """
    fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def try_lock(descriptor: int) -> bool:
    """Lock an open file or directory unless another holds its lock; return whether it is locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(directory: Path) -> bool:
    """Whether a living process holds the lock of a directory; True if there is no directory."""
    try:
        descriptor = os.open(directory, _DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return True
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(directory: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a directory, for threads and processes alike; wait for it if need be.

    Raises:
        OSError: the directory cannot be opened.
    """
    # A descriptor for each holder: the lock belongs to the open file, not to the thread.
    descriptor = os.open(directory, _DIRECTORY)
    try:
        lock(descriptor, shared=shared)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_at_once(directory: Path, *, mode: int = 0o700) -> Iterator[None]:
    """Make a directory if need be and hold its lock; fail if another process holds it.

    Args:
        directory: that is locked. Its holder may remove it.
        mode: of a directory that is made.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the directory cannot be made or opened.
    """
    descriptor = None
    while descriptor is None:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        descriptor = _lock_by_name(directory)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock_by_name(directory: Path) -> int | None:
    """Return the descriptor that holds the lock; None if the directory was removed meanwhile."""
    try:
        descriptor = os.open(directory, _DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        if not try_lock(descriptor):
            raise BlockingIOError(errno.EWOULDBLOCK, "it is locked", str(directory))
        # Its last holder may have removed it: a lock on a directory without a name excludes nobody.
        if os.path.samestat(os.fstat(descriptor), directory.stat()):
            return descriptor
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


# Writing


@contextlib.contextmanager
def translate_disk_full() -> Iterator[None]:
    """Raise `StorageFull` for "no space" and "quota exceeded"; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise StorageFull("no space left in the registry's storage") from error
        raise


def sync(path: Path) -> None:
    """Make a file's content, or a directory's entries, survive a power cut (fsync(2)).

    Raises:
        OSError: there is no such file, or the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _NO_WAIT)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Attributes:
    """Mode and owner of a file.

    Attributes:
        mode: the permission bits.
        owner: uid and gid; None for the caller's own.
        mtime_ns: nanoseconds since the epoch; None for now.
        xattrs: extended attributes, ACLs and the SELinux label among them.
    """

    mode: int
    owner: tuple[int, int] | None = None
    mtime_ns: int | None = None
    xattrs: Mapping[str, bytes] = field(default_factory=dict)

    def apply(self, descriptor: int) -> None:
        """Give them to an open file.

        Raises:
            OSError: the owner, mode or time cannot be set.
        """
        if self.owner is not None:
            os.fchown(descriptor, *self.owner)
        os.fchmod(descriptor, self.mode)
        for name, value in self.xattrs.items():
            # A label this filesystem or user cannot set is inherited from the directory.
            with contextlib.suppress(OSError):
                os.setxattr(descriptor, name, value)
        if self.mtime_ns is not None:
            os.utime(descriptor, ns=(self.mtime_ns, self.mtime_ns))


def temporary_of(target: Path) -> Path:
    """Return the path where a file is written before it takes ``target``'s place.

    The name follows from the target's, so that a cleanup after a crash finds it. Its ending keeps
    it out of every reader of such directories: docker takes ``*.crt``, containers/image ``*.conf``,
    containerd ``hosts.toml``.
    """
    return target.with_name(f".{target.name}.mayfly")


@contextlib.contextmanager
def replacing(
    target: Path,
    *,
    temporary: Path | None = None,
    mode: int = 0o600,
    flags: int = 0,
    durable: bool = True,
) -> Iterator[BinaryIO]:
    """Open a file that takes ``target``'s place when the block ends; a link there is replaced.

    Args:
        target: made or replaced.
        temporary: where it is written meanwhile, in the same directory; `temporary_of` by default.
        mode: of the file, less the umask.
        flags: more flags of open(2), such as ``O_APPEND``.
        durable: False for a file that means nothing after a power cut: it is not synced.

    Raises:
        OSError: ``target`` is as it was, unless syncing its directory failed.
    """
    temporary = temporary or temporary_of(target)
    temporary.unlink(missing_ok=True)
    try:
        flags |= os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.rename(target)
    except BaseException:
        with contextlib.suppress(OSError):  # where the directory is the fault
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(target.parent)


def replace_file(
    target: Path, content: bytes, attributes: Attributes, *, durable: bool = True
) -> None:
    """Replace a file, or make it, with the mode and owner it must have from its first byte.

    Args:
        target: made or replaced; a link there is replaced.
        content: of the file.
        attributes: of the file.
        durable: see `replacing`.

    Raises:
        OSError: see `replacing`.
    """
    # 0600 until the owner is right: nobody else may open it meanwhile.
    with replacing(target, durable=durable) as file:
        file.write(content)
        file.flush()
        attributes.apply(file.fileno())


def replace_by_link(target: Path, points_to: str, owner: tuple[int, int]) -> None:
    """Put a symbolic link in place as ``target``, at once and durably.

    Raises:
        OSError: ``target`` is as it was.
    """
    temporary = temporary_of(target)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(points_to)
    os.chown(temporary, *owner, follow_symlinks=False)
    temporary.rename(target)
    sync(target.parent)
