"""The node's file system: it begins at ``/`` or, for a mounted one, at another directory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mayfly.registry.pki.errors import TrustError
from mayfly.storage.files import sync

_DIRECTORY_MODE = 0o755
_NOT_OURS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY)
"""Errors of rmdir(2): files are in it, or it is a file or a mount point now."""


class NodeRoot:
    """Directories of a node, by their paths as the node sees them."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def real(self, path: str) -> Path:
        """Where a path of the node's is for us.

        Raises:
            TrustError: a symlink on the way leads out of the root.
        """
        real = self.root / path.lstrip("/")
        if real != self.root and not real.parent.resolve().is_relative_to(self.root):
            raise TrustError(f"{real}: a symlink on the way leads out of {self.root}")
        return real

    def missing_parents(self, path: str) -> Iterator[str]:
        """The directories above ``path`` that are not there, outermost first.

        Raises:
            TrustError: a symlink on the way leads out of the root.
        """
        self.real(path)
        for parent in reversed(PurePosixPath(path).parents):
            if not (self.root / parent.relative_to("/")).is_dir():
                yield str(parent)

    def make_directory(self, path: str) -> None:
        """Durably make one directory of ours, if it is not there as it should be.

        Raises:
            OSError: something else is there, or it cannot be made.
        """
        real = self.real(path)
        real.mkdir(exist_ok=True)
        # Whatever the umask: users other than root also run podman.
        if stat.S_IMODE(real.stat().st_mode) != _DIRECTORY_MODE:
            real.chmod(_DIRECTORY_MODE)
        sync(real.parent)

    def remove_directory(self, path: str) -> bool:
        """Durably remove one directory if it is empty; whether it was.

        Raises:
            TrustError: a symlink on the way leads out of the root.
            OSError: it is not there, or may not be removed.
        """
        real = self.real(path)
        try:
            real.rmdir()
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            return False
        sync(real.parent)
        return True

    def has(self, path: str) -> bool:
        """Whether there is anything of that name.

        Raises:
            TrustError: a symlink on the way leads out of the root.
        """
        return os.path.lexists(self.real(path))
