"""Words for people that storage and registry share."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 image``, ``3 images``.

    Args:
        count: how many.
        noun: for one, with a verb if one follows (``manifest is``).
        plural: for any other number; ``noun`` with an s if "".
    """
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def counted_of(count: int, total: int, noun: str) -> str:
    """Return a part of a number of things: ``0 of 1 node``, ``1 of 3 nodes``."""
    return f"{count} of {counted(total, noun)}"


def format_size(size: int) -> str:
    """Return a number of bytes as text: ``512 B``, ``1.4 GiB``."""
    amount = float(size)
    for unit in _UNITS:
        if amount < 1024 or unit == _UNITS[-1]:
            break
        amount /= 1024
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
