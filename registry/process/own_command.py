"""The program ``mayfly`` of `run`'s command: this very program, first in the command's ``PATH``.

A host may have only a packed file, and an environment of pip need not be in ``PATH``. So a private
directory gets an entry ``mayfly``: a link to the one file that runs, or else a script that starts
the interpreter of this process with the modules that it imported.

The directory may be on a file system that is mounted noexec. A link works there; the script is then
kept in a file in memory (memfd_create(2)), which no mount option concerns, and the entry is a
link to that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import mayfly
from mayfly.registry import one_file
from mayfly.registry.process.child import OWN_COMMAND

logger = logging.getLogger("mayfly")

_MFD_EXEC = 0x10
"""From linux/memfd.h; needed where vm.memfd_noexec is 1."""

_START = (
    "import sys; root = {root!r}; root in sys.path or sys.path.insert(0, root); "
    "from mayfly.__main__ import main; main()"
)
"""``python -m`` would look in the working directory of the command first."""


@contextlib.contextmanager
def own_command(directory: Path) -> Iterator[Path | None]:
    """Make a directory, mode 0700, with the entry `OWN_COMMAND`.

    The caller removes the directory; the entry works until the end of the block.

    Args:
        directory: absolute; must not exist.

    Yields:
        The directory; None if no ``PATH`` can have it, which is logged.

    Raises:
        OSError: it cannot be made.
    """
    if os.pathsep in str(directory):
        logger.warning(
            "the command does not find this mayfly in its PATH: the name of --state-dir has %r",
            os.pathsep,
        )
        yield None
        return
    directory.mkdir(mode=0o700)
    entry = directory / OWN_COMMAND
    program = one_file.path()
    if program is not None:
        entry.symlink_to(program)
        yield directory
        return
    script = _script().encode()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(entry, flags, 0o700), "wb") as file:
        file.write(script)
    # access(2) considers how the file system is mounted, also for root.
    if os.access(entry, os.X_OK):
        yield directory
        return
    try:
        memory = _memory_file()
    except OSError:
        _warn_of_noexec(directory)
        yield None
        return
    try:
        os.write(memory, script)
        entry.unlink()
        entry.symlink_to(f"/proc/{os.getpid()}/fd/{memory}")
        if os.access(entry, os.X_OK):
            yield directory
            return
        _warn_of_noexec(directory)
        yield None
    finally:
        os.close(memory)


def _warn_of_noexec(directory: Path) -> None:
    logger.warning(
        "the command does not find this mayfly in its PATH: nothing in %s may be executed, nor in "
        "memory (vm.memfd_noexec); name a --state-dir on another file system",
        directory,
    )


def _memory_file() -> int:
    """Return the descriptor of a new file in memory that may be executed."""
    try:
        return os.memfd_create(OWN_COMMAND, os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError:  # before Linux 6.3, or forbidden by vm.memfd_noexec
        return os.memfd_create(OWN_COMMAND, os.MFD_CLOEXEC)


def _script() -> str:
    assert mayfly.__file__ is not None
    start = _START.format(root=str(Path(mayfly.__file__).parent.parent))
    return f'#!/bin/sh\nexec {quote(sys.executable)} -P -c {quote(start)} "$@"\n'
