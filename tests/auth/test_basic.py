"""Basic header values."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.auth.basic import MAX_LENGTH, parse_basic
from mayfly.auth.errors import CredentialsInvalid

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def _encode(data: bytes) -> str:
    return "Basic " + base64.b64encode(data).decode()


@settings(deadline=None)
@given(TEXTS.filter(lambda name: ":" not in name), TEXTS)
def test_round_trip(name: str, password: str) -> None:
    """Name and password come back, colons in the password included."""
    assert parse_basic(_encode(f"{name}:{password}".encode())) == (name, password)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Basic",
        "Basic ",
        "Bearer YTpi",
        "BasicYTpi",
        "Basic YTpi!",
        "Basic YTp\u0456",
        "Basic YTpi\n",
        "Basic YT pi",
        "Basic YTpiYQ",
        _encode(b"no-colon"),
        _encode(b"\xff\xfe:x"),
        _encode(b"a:" + b"x" * MAX_LENGTH),
    ],
)
def test_refused(value: str) -> None:
    """Anything else is refused in the same words."""
    with pytest.raises(CredentialsInvalid, match="invalid user name or password"):
        parse_basic(value)


def test_scheme_in_any_case() -> None:
    """The scheme's case does not matter (RFC 9110, 11.1)."""
    assert parse_basic("bAsIc YTpi") == ("a", "b")
