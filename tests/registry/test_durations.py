"""Durations as docs/configuration.md describes them."""

from __future__ import annotations

import pytest

from mayfly.registry import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("4h", 14400), ("4d", 345600), ("0s", 0), ("007m", 420)],
)
def test_parse(text: str, seconds: float) -> None:
    """A number and a unit are seconds."""
    assert durations.parse(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "10 m", "m", "-1s", "1.5h", "1h30m", "10M", "1w", "٣s", "9999999999s"]
)
def test_parse_refuses(text: str) -> None:
    """Anything else is refused, and the error says what is expected."""
    with pytest.raises(ValueError, match="90s, 10m, 4h or 2d"):
        durations.parse(text)


def test_timeout() -> None:
    """A timeout may be never, and not zero."""
    assert durations.parse_timeout("never") is None
    assert durations.parse_timeout("5m") == 300
    with pytest.raises(ValueError, match="more than 0"):
        durations.parse_timeout("0m")
    with pytest.raises(ValueError, match="or never"):
        durations.parse_timeout("soon")


@pytest.mark.parametrize("text", ["90s", "10m", "4h", "2d", "0s", "3601s"])
def test_exact_round_trip(text: str) -> None:
    """What is written exactly reads the same."""
    assert durations.exact(durations.parse(text)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (4.25, "4.2s"), (725, "12m 5s"), (10812, "3h 0m 12s"), (190000, "2d 4h 46m")],
)
def test_readable(seconds: float, text: str) -> None:
    """A time that passed is written for people."""
    assert durations.readable(seconds) == text
