"""Free space: whether an announced blob fits, checked before its first byte is received.

Some space stays reserved: a push writes small files last (links, the manifest, a tag), and they
must fit after the layers. So blobs may not use the reserve, and everything else may. The free space
is the filesystem's (statvfs(2)); a quota may end earlier, and then the write itself fails.
"""

from __future__ import annotations

import os
from pathlib import Path

from mayfly.storage.errors import DoesNotFit, StorageFull
from mayfly.storage.text import format_size

LARGEST_RESERVE = 64 * 1024 * 1024
"""Bytes of the default reserve; on a small filesystem it is a hundredth of its size."""


class Space:
    """The space for blobs in a directory's filesystem.

    Args:
        directory: of the store.
        reserve: bytes kept free; None for the default.
    """

    def __init__(self, directory: Path, reserve: int | None = None) -> None:
        self._directory = directory
        self._reserve = reserve

    @property
    def reserved(self) -> int:
        """Quick. Bytes that blobs leave free."""
        return self._reserved(os.statvfs(self._directory))

    def _reserved(self, found: os.statvfs_result) -> int:
        if self._reserve is not None:
            return self._reserve
        return min(LARGEST_RESERVE, found.f_blocks * found.f_frsize // 100)

    def check(self, size: int) -> None:
        """Quick. Check that ``size`` more bytes fit.

        Raises:
            DoesNotFit: they do not; the message names the sizes.
            StorageFull: nothing does.
        """
        found = os.statvfs(self._directory)
        free = found.f_bavail * found.f_frsize
        reserve = self._reserved(found)
        if size + reserve <= free:
            return
        sizes = {"size": size, "free": free, "reserve": reserve}
        text = (
            f"{format_size(size)} more do not fit, {format_size(free)} are free, of which "
            f"{format_size(reserve)} stay reserved"
        )
        if free <= reserve:
            raise StorageFull(f"no space left in the registry's storage: {text}", sizes)
        raise DoesNotFit(f"not enough space left in the registry's storage: {text}", sizes)
