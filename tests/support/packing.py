"""A stand-in for the one file, as `mayfly pack` and readers of bundles see it; deploy/packages."""

from __future__ import annotations

import functools
import importlib
import struct
import sys
from pathlib import Path
from types import ModuleType

from mayfly.storage.bundle.packed import PAGE, Table
from tests.support.commands import mayfly
from tests.support.process import REPO

X86_64 = 62
PARTS = b"loader, interpreter, modules"


def stand_in(path: Path, machine: int = X86_64) -> Path:
    """Write one: an ELF header, a table, and some bytes in place of the runtime."""
    fields = (b"\x7fELF", 2, 1, 2, machine, 1, 0, 64, PAGE - 640, 0, 64, 56, 1, 64, 10, 9)
    head = struct.pack("<4sBB10xHHIQQQIHHHHHH", *fields)
    table = Table(PAGE, PAGE * 2 + len(PARTS)).encode()
    path.write_bytes(head.ljust(PAGE, b"\1") + table.ljust(PAGE, b"\0") + PARTS)
    return path


def pack(bundle: Path, output: Path, *options: object) -> Path:
    """Put a bundle behind a stand-in."""
    runtime = stand_in(output.with_name("stand-in"))
    done = mayfly("pack", bundle, "-o", output, "--runtime", runtime, *options)
    assert done.returncode == 0, done.stderr
    return output


_STARTED = """
import sys
from mayfly.registry import one_file
from mayfly.__main__ import main

one_file.start_as(sys.argv.pop(1))
main()
"""


def command_line_of(file: Path, *words: object) -> list[str]:
    """The command line that starts Mayfly as ``boot.py`` does from a one file."""
    return [sys.executable, "-c", _STARTED, *map(str, (file, *words))]


@functools.cache
def builder() -> ModuleType:
    """Import deploy/packages/build.py, which is not part of what is installed."""
    directory = str(REPO / "deploy/packages")
    sys.path.insert(0, directory)
    try:
        return importlib.import_module("build")
    finally:
        sys.path.remove(directory)
