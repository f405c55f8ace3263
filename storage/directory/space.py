"""Room on the disk: whether bytes that are announced will fit, known before the first is taken.

Some room stays free: what a push writes last is small (links, the manifest, a tag), and it should
find its place after the layers have. So bytes of blobs stop short of the reserve, and nothing else
does. What the filesystem says is free counts (statvfs(2)); a quota may end earlier, and then the
write itself is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

from mayfly.storage.errors import StorageFull

LARGEST_RESERVE = 64 * 1024 * 1024
"""Bytes kept free when nobody said how many, or a hundredth of a filesystem that is small."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Space:
    """The room for blobs where a directory lies.

    Args:
        directory: of the store.
        reserve: bytes kept free; None picks some.
    """

    def __init__(self, directory: Path, reserve: int | None = None) -> None:
        self._directory = directory
        self._reserve = reserve

    def check(self, size: int) -> None:
        """Quick. Make sure that so many bytes more fit.

        Raises:
            StorageFull: they do not; the message names the sizes.
        """
        found = os.statvfs(self._directory)
        free = found.f_bavail * found.f_frsize
        reserve = self._reserve
        if reserve is None:
            reserve = min(LARGEST_RESERVE, found.f_blocks * found.f_frsize // 100)
        if size + reserve > free:
            raise StorageFull(
                f"no space left in the registry's storage: {format_size(size)} more do not fit, "
                f"{format_size(free)} are free, of which {format_size(reserve)} stay reserved",
                {"size": size, "free": free, "reserve": reserve},
            )


def format_size(size: int) -> str:
    """Bytes for people: ``512 B``, ``1.4 GiB``."""
    amount = float(size)
    for unit in _UNITS:
        if amount < 1024 or unit == _UNITS[-1]:
            break
        amount /= 1024
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
