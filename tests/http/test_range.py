"""`send.parse_range`: RFC 9110 section 14.1.2, by table and against a naive model."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.registry.http.errors import RangeInvalid
from mayfly.registry.http.send import parse_range

TABLE: tuple[tuple[str | None, int, tuple[int, int] | None], ...] = (
    (None, 10, None),
    ("bytes=0-9", 10, (0, 10)),
    ("bytes=0-0", 10, (0, 1)),
    ("bytes=9-9", 10, (9, 1)),
    ("bytes=3-5", 10, (3, 3)),
    ("bytes=3-", 10, (3, 7)),
    ("bytes=0-", 10, (0, 10)),
    ("bytes=-3", 10, (7, 3)),
    ("bytes=-10", 10, (0, 10)),
    ("bytes=-99", 10, (0, 10)),
    ("bytes=5-99999999999999999", 10, (5, 5)),
    ("bytes=007-008", 10, (7, 2)),
    # Several ranges, other units: the whole is sent.
    ("bytes=0-1,3-4", 10, None),
    ("bytes=0-1, -1", 10, None),
    ("items=0-1", 10, None),
    ("", 10, None),
    ("nonsense", 10, None),
    ("bytes", 10, None),
)


@pytest.mark.parametrize(("header", "size", "expected"), TABLE)
def test_range(header: str | None, size: int, expected: tuple[int, int] | None) -> None:
    """The offset and count, clipped to the content, or None for the whole."""
    assert parse_range(header, size) == expected


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("bytes=10-", 10),
        ("bytes=10-10", 10),
        ("bytes=11-20", 10),
        ("bytes=99999999999999999999-", 10),
        ("bytes=-0", 10),
        ("bytes=0-0", 0),
        ("bytes=0-", 0),
        ("bytes=5-4", 10),
    ],
)
def test_unsatisfiable(header: str, size: int) -> None:
    """No byte lies in the range: refused, and the error knows the size."""
    with pytest.raises(RangeInvalid) as refused:
        parse_range(header, size)
    assert refused.value.size == size


@pytest.mark.parametrize(
    "header",
    [
        "bytes=-", "bytes=", "bytes=a-b", "bytes=0", "bytes=0-1x", "bytes=--1", "bytes=1--2",
        "bytes=0x1-2", "bytes=+1-2", "bytes= 0-1", "bytes=0-1 ", "bytes=1.0-2",
        "bytes=\u0661-\u0662", "bytes=0-1\n", "bytes=" + "9" * 5000 + "-",
    ],
)  # fmt: skip
def test_unreadable(header: str) -> None:
    """A byte range outside the grammar is refused or ignored, never guessed at."""
    try:
        assert parse_range(header, 10) is None
    except RangeInvalid as refused:
        assert len(refused.message) < 200


def _model(header: str, size: int) -> set[int] | str:
    """The byte positions that a range of the grammar asks for, by looking at every one."""
    found = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", header)
    if found is None or header == "bytes=-":
        return "not a range"
    first, last = found.groups()
    if not first:
        wanted = {n for n in range(size) if n >= size - int(last)}
    else:
        wanted = {n for n in range(size) if int(first) <= n <= int(last or size)}
    return wanted or "unsatisfiable"


@given(
    first=st.integers(0, 25).map(str) | st.just(""),
    last=st.integers(0, 25).map(str) | st.just(""),
    size=st.integers(0, 20),
)
@settings(max_examples=300, deadline=None)
def test_against_the_model(first: str, last: str, size: int) -> None:
    """Exactly the bytes that the naive model finds."""
    header = f"bytes={first}-{last}"
    expected = _model(header, size)
    try:
        found = parse_range(header, size)
    except RangeInvalid:
        assert isinstance(expected, str)
    else:
        assert found is not None
        offset, count = found
        assert set(range(offset, offset + count)) == expected


@given(
    header=st.text(max_size=30) | st.text("bytes=-0123456789, ", max_size=20),
    size=st.integers(0, 2**63),
)
@settings(max_examples=300, deadline=None)
def test_any_header(header: str, size: int) -> None:
    """Whatever the header: a part of the content, the whole, or `RangeInvalid`."""
    try:
        found = parse_range(header, size)
    except RangeInvalid as refused:
        assert refused.size == size
    else:
        assert found is None or (found[0] >= 0 and found[1] > 0 and sum(found) <= size)
