"""Durable changes to a directory tree: the only place that makes bytes visible.

Publishing writes a temporary file on the same filesystem, syncs it, renames it into place and syncs
the directory (see `storage.files`). A crash at any point leaves the old state or the new one. After
power loss a directory entry exists only if its parent was synced, so directories made on the way
are also synced into their parents.

A visible file may not be synced yet: its writer may be about to sync it, or have died before that.
So call `Publisher.confirm` before relying on a file, and `Publisher.confirm_absent` before relying
on its absence.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from mayfly.storage.errors import DISK_FULL, Interrupted
from mayfly.storage.files import is_locked, lock, locked, sync, translate_disk_full

logger = logging.getLogger("mayfly")

_MAX_KNOWN = 20_000
"""Most paths known to be durable that are kept in memory."""

_MAX_ATTEMPTS = 64
"""Attempts to rename a file into a directory that others remove meanwhile."""

_REMOVALS = 8
"""Attempts to remove a tree into which a file may still be published that was on its way."""

_SHARED_ATTEMPTS = 8
"""Attempts after which no other thread of this process may prune directories meanwhile."""


def _nothing() -> None:
    """The default for ``then``."""


_DIRECTORY_BITS, _FILE_BITS = 0o2777, 0o666
"""The bits of the root's mode that a new directory and a new file inherit."""


class Publisher:
    """Publishes into the tree under ``root``; its temporary files lie below ``scratch``.

    Safe for use from several threads, and by several processes on one tree: each process has its
    own directory below ``scratch``, which it keeps locked.

    Args:
        root: the top of the tree.
        scratch: where temporary files go, below ``root``.
        kept: directories that stay even when they are empty.
        store: the directory above ``root`` whose owner, group and mode new files inherit; ``root``
            by default.
    """

    def __init__(
        self,
        root: Path,
        scratch: Path,
        kept: Collection[Path] = (),
        store: Path | None = None,
    ) -> None:
        self._root = root
        self._store = store or root
        self._wanted = kept
        self._scratch_parent = scratch
        self._scratch = scratch / uuid.uuid4().hex
        self._kept = {root, *kept, self._scratch}
        self._alive: int | None = None
        self._is_closed = False
        self._root_status: os.stat_result | None = None
        self._durable: set[Path] = set()
        self._lock = threading.RLock()

    @property
    def scratch(self) -> Path:
        """This process's own directory; removed by `close`, or once the process is gone.

        Raises:
            Interrupted: the publisher is closed: nothing would remove it again.
            StorageFull: it cannot be made.
        """
        with self._lock:
            if self._is_closed:
                raise Interrupted("the store is closed")
            if self._alive is None:
                with translate_disk_full(), locked(self._scratch_parent):
                    self._make_scratch()
        return self._scratch

    def open(self) -> None:
        """Make the root, and remove unfinished files of processes that are gone.

        On a disk without a free block it is opened all the same: content can be removed then.
        """
        self._make_root(self._store)
        self._root_status = self._store.stat()
        self._make_root(self._root)
        for directory in (*self._wanted, self._scratch_parent):
            self.make_directory(directory)
        # One process at a time: another could take the new directory for a dead process's.
        with locked(self._scratch_parent):
            self._tidy()
            try:
                self._make_scratch()
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise

    def tidy(self) -> None:
        """Remove unfinished files of processes that are gone."""
        with locked(self._scratch_parent):
            self._tidy()

    def close(self) -> None:
        """Remove the scratch directory; nothing can be published any more."""
        with self._lock:
            self._is_closed = True
            shutil.rmtree(self._scratch, ignore_errors=True)
            if self._alive is not None:
                os.close(self._alive)
                self._alive = None

    def write(self, target: Path, data: bytes, then: Callable[[], None] = _nothing) -> None:
        """Publish ``data`` as the file ``target``, in place of any there was.

        Args:
            target: made or replaced.
            data: its content.
            then: called once the file has its name; entries made beside it are synced with it.

        Raises:
            StorageFull: nothing was changed.
        """
        with translate_disk_full():
            temporary = self.scratch / uuid.uuid4().hex
            try:
                with temporary.open("xb") as file:
                    self._inherit_from_root(file.fileno())
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self._rename(temporary, target, then)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def sync(self, source: Path) -> None:
        """Sync a finished file, so that `adopt` has little left to write.

        Raises:
            StorageFull: ``source`` is where it was.
        """
        with translate_disk_full():
            sync(source)

    def adopt(self, source: Path, target: Path, then: Callable[[], None] = _nothing) -> None:
        """Publish the finished file ``source``, on the same filesystem, as ``target``.

        Args:
            source: no longer there afterwards.
            target: made or replaced.
            then: see `write`.

        Raises:
            StorageFull: ``source`` is where it was.
        """
        with translate_disk_full():
            sync(source)
            self._rename(source, target, then)

    def private_directory(self) -> Path:
        """Make a directory among the temporary files, which is removed once this process is gone.

        Raises:
            StorageFull: nothing was changed.
        """
        with translate_disk_full():
            directory = self.scratch / uuid.uuid4().hex
            self._new_directory(directory)
            return directory

    def confirm(self, target: Path) -> None:
        """Make a file durable that any process has published; do nothing if there is none."""
        with self._lock:
            if target in self._durable:
                return
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            sync(target)
            self.make_directory(target.parent)
            sync(target.parent)
            self._remember(target)

    def confirm_absent(self, target: Path) -> None:
        """Make the absence of a file or tree durable, and prune empty directories after that."""
        directory = target.parent
        while True:
            try:
                sync(directory)
                break
            except (FileNotFoundError, NotADirectoryError):
                directory = directory.parent
        self.prune(target.parent)

    def put_directory(self, target: Path, files: Mapping[str, bytes]) -> None:
        """Make a directory with these files visible in one step; nothing is synced.

        Raises:
            StorageFull: nothing was changed.
        """
        with translate_disk_full():
            draft = self.scratch / uuid.uuid4().hex
            try:
                self._new_directory(draft)
                for name, data in files.items():
                    with (draft / name).open("xb") as file:
                        self._inherit_from_root(file.fileno())
                        file.write(data)
                self._move(draft, target)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise

    def remove(self, target: Path) -> bool:
        """Durably remove a file and directories that are empty then; return whether it existed."""
        with self._lock:
            self._durable.discard(target)
        try:
            target.unlink()
            removed = True
        except FileNotFoundError:
            removed = False
        self.confirm_absent(target)
        return removed

    def remove_tree(self, directory: Path) -> bool:
        """Durably remove a directory in one step; return whether it existed.

        It is renamed away first: a file that is published into it meanwhile goes to a new directory
        and is not lost to the slower removal of the old one.
        """
        # Without an own directory, beside those of others: any start removes it from there.
        place = self._scratch_parent if self._alive is None else self._scratch
        doomed = place / uuid.uuid4().hex
        with self._lock:
            try:
                directory.rename(doomed)
            except FileNotFoundError:
                return False
            self._durable.discard(directory)
            for parent, directories, files in os.walk(doomed):
                here = directory / Path(parent).relative_to(doomed)
                self._durable.difference_update(here / name for name in (*directories, *files))
        try:
            self.confirm_absent(directory)
        finally:
            # A rename that found its directory before it was moved away may end in it only now.
            for _ in range(_REMOVALS):
                shutil.rmtree(doomed, ignore_errors=True)
                if not doomed.exists():
                    break
        return True

    def make_directory(self, directory: Path) -> None:
        """Make a directory and its parents, each synced into its own parent."""
        with self._lock:
            if directory in self._durable and directory.is_dir():
                return
        if directory != self._root:
            self.make_directory(directory.parent)
        with contextlib.suppress(FileExistsError):
            self._new_directory(directory)
        # Also if another thread made it a moment ago and has not synced it yet.
        if directory != self._root:
            sync(directory.parent)
        self._remember(directory)

    def prune(self, directory: Path) -> None:
        """Remove a directory and its parents as far as they are empty."""
        while directory not in self._kept:
            with self._lock:
                try:
                    directory.rmdir()
                except OSError:
                    return
                self._durable.discard(directory)
            directory = directory.parent

    def _remember(self, path: Path) -> None:
        with self._lock:
            if len(self._durable) >= _MAX_KNOWN:
                self._durable.clear()
            self._durable.add(path)

    def _make_scratch(self) -> None:
        """Make this process's own directory; its parent is locked."""
        self._new_directory(self._scratch)
        self._alive = os.open(self._scratch, os.O_RDONLY | os.O_CLOEXEC)
        lock(self._alive)

    def _tidy(self) -> None:
        for leftover in self._scratch_parent.iterdir():
            if not is_locked(leftover):
                shutil.rmtree(leftover, ignore_errors=True)

    def _make_root(self, directory: Path) -> None:
        """Make the root and its parents, and sync each into its parent."""
        if directory == directory.parent or directory.is_mount():
            return
        if directory == self._store and self._root_status is not None:
            return  # made and synced a moment ago
        self._make_root(directory.parent)
        if not directory.is_dir():
            with contextlib.suppress(FileExistsError):
                if self._root_status is not None:
                    self._new_directory(directory)
                else:
                    # Images are private, unless the operator makes the directory with another mode.
                    directory.mkdir(0o700 if directory == self._store else 0o777)
        # A parent may not be ours to read.
        with contextlib.suppress(PermissionError):
            sync(directory.parent)

    def _new_directory(self, directory: Path) -> None:
        """Make a directory like the root.

        Raises:
            FileExistsError: there is something of that name.
        """
        directory.mkdir()
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._inherit_from_root(descriptor)
        finally:
            os.close(descriptor)

    def _inherit_from_root(self, descriptor: int) -> None:
        if self._root_status is not None:
            inherit(descriptor, self._root_status)

    def _rename(self, source: Path, target: Path, then: Callable[[], None]) -> None:
        self._move(source, target)
        then()
        # If the directory was removed since then, that happened after the publication.
        with contextlib.suppress(FileNotFoundError):
            sync(target.parent)
            self._remember(target)

    def _move(self, source: Path, target: Path) -> None:
        for attempt in range(_MAX_ATTEMPTS):
            alone = self._lock if attempt >= _SHARED_ATTEMPTS else contextlib.nullcontext()
            try:
                with alone:
                    self.make_directory(target.parent)
                    source.rename(target)
                return
            except FileNotFoundError:
                # The directory was pruned or removed in between: make it again.
                if not source.exists():
                    raise
            except (IsADirectoryError, NotADirectoryError):
                self._displace(target)
        raise OSError(errno.EBUSY, "directory is removed again and again", str(target.parent))

    def _displace(self, target: Path) -> None:
        """Move away an entry of the wrong kind: a directory for a file, or a file for a directory.

        It is kept, since it may be data of an operator.
        """
        between = [path for path in target.parents if path.is_relative_to(self._root)]
        way = (path for path in reversed(between) if path.is_file() and not path.is_symlink())
        obstacle = next(way, target)
        kept = self._scratch_parent.parent / "displaced" / uuid.uuid4().hex
        self.make_directory(kept.parent)
        with contextlib.suppress(FileNotFoundError):
            obstacle.rename(kept)
            logger.warning("%s stood in the way of %s: moved to %s", obstacle, target, kept)


def inherit(descriptor: int, parent: os.stat_result) -> None:
    """Give a file or directory made by this process the owner, group and mode of a directory.

    So a store that belongs to a server's user stays theirs when root imports into it. Without the
    right to change owners nothing is changed.
    """
    made = os.fstat(descriptor)
    if made.st_uid != os.geteuid():
        return  # made by the owner of the tree, not by this process
    if (made.st_uid, made.st_gid) != (parent.st_uid, parent.st_gid):
        owner = parent.st_uid if made.st_uid == 0 else -1
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, owner, parent.st_gid)
    mode = parent.st_mode & (_DIRECTORY_BITS if stat.S_ISDIR(made.st_mode) else _FILE_BITS)
    if stat.S_IMODE(made.st_mode) != mode:
        with contextlib.suppress(PermissionError):
            os.fchmod(descriptor, mode)
