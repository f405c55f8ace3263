"""The errors of settings. It imports errors alone, so that every table may name them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from mayfly.storage.errors import DISK_FULL

_REMEDIES = {
    **dict.fromkeys(DISK_FULL, "free space there, or name another directory"),
    errno.EROFS: "name a directory that can be written",
    errno.EEXIST: "name a directory",
    errno.ENOTDIR: "name a directory",
}

_DENIED = "name a directory that may be read and written by user"
_DENIED_TO_ROOT = (
    "root is denied it by something else than modes, such as SELinux (ausearch --message avc) or "
    "NFS: name another directory"
)


class ConfigError(Exception):
    """A setting that cannot be used; the text names the setting, its source and the remedy."""


def unusable(option: str, directory: Path, error: OSError) -> ConfigError:
    """The error for a directory in which something cannot be read or written, with the remedy."""
    reason = error.strerror or str(error)
    # Of a step by descriptor there is no name, or only that of the descriptor.
    if isinstance(error.filename, str) and Path(error.filename).is_relative_to(directory):
        inside = str(Path(error.filename).relative_to(directory))
        reason = reason if inside == "." else f"{inside}: {reason}"
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = _DENIED_TO_ROOT if os.geteuid() == 0 else f"{_DENIED} {os.geteuid()}"
    else:
        remedy = _REMEDIES.get(error.errno or 0, "")
    ending = remedy and f"; {remedy}"
    return ConfigError(f"{option} {directory} cannot be used: {reason}{ending}")
