"""Where browsers keep a session."""

from __future__ import annotations

import pytest

from mayfly.registry.access.sessions import keeps_cookies


@pytest.mark.parametrize(
    ("origin", "keeps"),
    [
        ("https://registry.example/prefix", True),
        ("http://registry.example", False),
        ("http://127.0.0.1:5000", True),
        ("http://[::1]:5000/prefix", True),
        ("http://localhost", True),
        ("http://localhost.example", False),
        ("http://[", False),
        ("http://]", False),
        ("http://[v1.x]", False),
        ("", False),
    ],
)
def test_where_cookies_are_kept(origin: str, keeps: bool) -> None:
    """Over HTTPS and on this machine; a URL that is none is no error."""
    assert keeps_cookies(origin) is keeps
