"""Durations as text: a number and ``s``, ``m``, ``h`` or ``d``."""

from __future__ import annotations

import re

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_NEVER = "never"

EXPECTED = "expected a number and s, m, h or d, as in 90s, 10m, 4h or 2d"


def parse(text: str) -> float:
    """Parse a duration, which may be zero, into seconds.

    Raises:
        ValueError: the text is not a duration.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(EXPECTED)
    return float(int(found[1]) * _UNITS[found[2]])


def parse_timeout(text: str) -> float | None:
    """Parse a timeout above zero into seconds; ``never`` is None.

    Raises:
        ValueError: the text is neither.
    """
    if text == _NEVER:
        return None
    try:
        seconds = parse(text)
    except ValueError:
        raise ValueError(f"{EXPECTED}, or never") from None
    if not seconds:
        raise ValueError("expected more than 0; never switches it off")
    return seconds


def exact(seconds: float) -> str:
    """Format whole seconds in the largest unit without a remainder, so that `parse` reads them."""
    whole = round(seconds)
    for unit, size in _UNITS.items():
        if whole and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def readable(seconds: float) -> str:
    """Format a duration for people: ``4.2s``, ``12m 5s``, ``3h 0m 12s``, ``2d 4h 0m``."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24}h {minutes}m"
    return f"{hours}h {minutes}m {rest}s" if hours else f"{minutes}m {rest}s"
