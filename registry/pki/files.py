"""Replace one file durably, with the mode and owner it must have from its first byte.

The sequence is that of `storage.directory.publish` (temporary file, fsync, rename, fsync of the
directory), but the temporary file lies beside its target, not in a scratch directory: a node's
``/etc`` is seldom on the filesystem of anything of ours. Its name follows from the target's, so
the cleanup after a crash knows what to look for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mayfly.registry.pki.errors import TrustError


@dataclass(frozen=True)
class Attributes:
    """Mode and owner of a file.

    ``mode`` is the permission bits; ``owner`` is (uid, gid), None for the caller's own;
    ``mtime_ns`` is nanoseconds since the epoch, None for now; ``xattrs`` carries ACLs and the
    SELinux label.
    """

    mode: int
    owner: tuple[int, int] | None = None
    mtime_ns: int | None = None
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


def temporary_of(target: Path) -> Path:
    """Where a file is written before it takes ``target``'s place.

    The ending hides it from the readers of these directories: docker takes ``*.crt``,
    containers/image ``*.conf``, containerd ``hosts.toml``.
    """
    return target.with_name(f".{target.name}.mayfly")


def publish(target: Path, content: bytes, attributes: Attributes, *, durable: bool = True) -> None:
    """Put ``content`` in place as ``target``, at once and durably; a symlink there is replaced.

    Args:
        target: made or replaced.
        content: of the file.
        attributes: of the file.
        durable: False for a file that means nothing after a power cut: it is not synced.

    Raises:
        OSError: ``target`` is as it was.
    """
    temporary = temporary_of(target)
    temporary.unlink(missing_ok=True)
    try:
        # 0600 until the owner is right: nobody else may open it meanwhile.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            if attributes.owner is not None:
                os.fchown(file.fileno(), *attributes.owner)
            os.fchmod(file.fileno(), attributes.mode)
            for name, value in attributes.xattrs.items():
                # A label this filesystem or user cannot set is the parent directory's business.
                with contextlib.suppress(OSError):
                    os.setxattr(file.fileno(), name, value)
            if attributes.mtime_ns is not None:
                os.utime(file.fileno(), ns=(attributes.mtime_ns, attributes.mtime_ns))
            if durable:
                os.fsync(file.fileno())
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_directory(target.parent)


def publish_link(target: Path, points_to: str, owner: tuple[int, int]) -> None:
    """Put a symlink in place as ``target``, at once and durably.

    Raises:
        OSError: ``target`` is as it was.
    """
    temporary = temporary_of(target)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(points_to)
    os.chown(temporary, *owner, follow_symlinks=False)
    temporary.rename(target)
    fsync_directory(target.parent)


def fsync_directory(directory: Path) -> None:
    """Make the directory's entries survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(directory: Path, *, mode: int = 0o700) -> Iterator[None]:
    """Make ``directory`` if need be, and keep other processes out of it meanwhile.

    Raises:
        TrustError: another process holds it.
        OSError: it cannot be made.
    """
    descriptor = None
    while descriptor is None:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        descriptor = _lock(directory)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(directory: Path) -> int | None:
    """The descriptor that holds the lock; None when the directory went away meanwhile."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed it: a lock on what has no name keeps nobody out.
        if os.path.samestat(os.fstat(descriptor), directory.stat()):
            return descriptor
    except BlockingIOError:
        os.close(descriptor)
        raise TrustError(
            f"{directory}: another mayfly process is at work here; try again when it is done"
        ) from None
    except FileNotFoundError:
        pass
    os.close(descriptor)
    return None
