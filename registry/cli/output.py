"""The file that a command writes: it appears under its name only when complete and on the disk."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mayfly.registry.settings.errors import ConfigError
from mayfly.storage.errors import DISK_FULL, StorageFull
from mayfly.storage.files import replacing


def check_output(output: Path) -> None:
    """See that an archive may take this path: a device there would be replaced by it.

    Raises:
        ConfigError: something that is not a regular file is there.
    """
    if output.exists() and not output.is_file():
        raise ConfigError(f"{output} exists and is not a regular file: name a file to write")


@contextlib.contextmanager
def writing(output: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a file to write; it takes its name when the block ends.

    Args:
        output: made or replaced.
        mode: of the file, less the umask.

    Raises:
        ConfigError, StorageFull: it cannot be written.
    """
    check_output(output)
    draft = output.with_name(f".{output.name}.partial")
    try:
        with replacing(output, temporary=draft, mode=mode) as file:
            yield file
    except OSError as error:
        reason = f"{output} cannot be written: {error.strerror}"
        if error.errno == errno.EFBIG:
            reason += " (FAT32 has files below 4 GiB: bundle create --volume-size 3GiB)"
        raise (StorageFull if error.errno in DISK_FULL else ConfigError)(reason) from None
