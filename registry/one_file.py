"""The one file that runs (``deploy/onefile``), and the content that `mayfly pack` put into it.

With a bundle packed in it serves itself: commands that take bundles take its own, and the settings
that were packed are its defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mayfly.storage.bundle.packed import Packed

_started_as: Path | None = None


class Defaults(NamedTuple):
    """Settings and a script that were packed with a bundle.

    Attributes:
        settings: texts by key.
        script: a shell script to run; None without one.
    """

    settings: Mapping[str, tuple[str, ...]]
    script: str | None

    @property
    def command(self) -> tuple[str, ...]:
        """The words of the command that runs the script; none without one."""
        if self.script is None:
            return ()
        return (*interpreter(self.script), "-c", self.script, "script")


def interpreter(script: str) -> tuple[str, ...]:
    """Return the words of the shell that a script names in its first line, or of sh(1)."""
    first = script.partition("\n")[0]
    words = first.removeprefix("#!").split() if first.startswith("#!") else []
    return tuple(words) or ("/bin/sh",)


def start_as(path: str) -> None:
    """Note the path of the one file; ``boot.py`` calls this before anything else."""
    global _started_as
    _started_as = Path(path)


def path() -> Path | None:
    """Return the path of the one file that runs; None in an installed Mayfly."""
    return _started_as


def bundles() -> tuple[Path, ...]:
    """Return the path of the one file that runs if a bundle is packed in it, otherwise no path.

    Raises:
        BundleInvalid: the file was cut short.
    """
    return () if _started_as is None or _packed() is None else (_started_as,)


def defaults() -> Defaults:
    """Return the defaults that were packed into the one file that runs.

    Raises:
        BundleInvalid: see `bundles`.
    """
    packed = _packed()
    if packed is None:
        return Defaults({}, None)
    settings, script = packed.document.get("settings"), packed.document.get("script")
    texts = settings if isinstance(settings, dict) else {}
    return Defaults(
        {key: tuple(map(str, values)) for key, values in texts.items()},
        script if isinstance(script, str) else None,
    )


@cache
def _packed() -> Packed | None:
    if _started_as is None:
        return None
    from mayfly.storage.bundle.packed import read

    descriptor = os.open(_started_as, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read(descriptor)
    finally:
        os.close(descriptor)
