"""The limit on the expansion of compressed bundles: beyond it they are decompression bombs."""

from __future__ import annotations

from mayfly.storage.bundle.errors import BundleInvalid

_MAX_RATIO = 100
"""Largest expansion taken: tars of text reach 20, layers that are compressed already 1."""

_FLOOR = 64 * 1024 * 1024
"""Bytes that any file may expand to, however small it is."""


def most_expanded(size: int) -> int:
    """Return how many bytes a compressed file of ``size`` bytes may expand to."""
    return max(size * _MAX_RATIO, _FLOOR)


def expands_too_far() -> BundleInvalid:
    """Return the error for a file that expands further."""
    return BundleInvalid(
        f"it expands to more than {_MAX_RATIO} times its size and is not trusted: expand it by "
        "hand if it is right"
    )
