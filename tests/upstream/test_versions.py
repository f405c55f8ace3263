"""Ranges of versions against examples of semver.org and of Masterminds/semver's documentation."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mayfly.registry.upstream import versions

IN_ORDER = (
    *("1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2"),
    *("1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "v1.2", "1.10", "2"),
)


def test_order() -> None:
    """semver.org, 11: numbers by value, text by its bytes, a release after its pre-releases."""
    found = [versions.parse(text) for text in IN_ORDER]
    for first, second in pairwise(found):
        assert first is not None
        assert second is not None
        assert first < second
    assert versions.parse("1.0.0+a") == versions.parse("v1.0.0+b")


@pytest.mark.parametrize("tag", ["latest", "1.2.3.4", "1.", "", "1-", "a1.2", "9" * 20])
def test_other_tags_are_no_versions(tag: str) -> None:
    """They are in no range."""
    assert versions.parse(tag) is None


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (">=1.2", "1.2 1.2.0 2 v9.1", "1.1.9 1.2.0-rc1 2.0.0-rc1"),
        (">1.2", "1.3 2", "1.2 1.2.9 1.1"),
        (">1.2.3", "1.2.4", "1.2.3"),
        ("<=1.2", "1.2 1.2.9 1", "1.3"),
        ("<2", "1.9.9 0.1", "2 2.0.0-rc1"),
        ("1.2", "1.2.0 1.2.9", "1.3 1.1"),
        ("=1.2.3", "1.2.3 v1.2.3", "1.2.4"),
        ("!=1.2.3", "1.2.4", "1.2.3"),
        ("!=1.2", "1.3.0", "1.2.5"),
        ("1.x", "1.0 1.99", "2.0"),
        ("1.2.*", "1.2.3", "1.3"),
        ("*", "0.0.1 9", "1.0.0-rc1"),
        ("~1.2.3", "1.2.3 1.2.9", "1.3 1.2.2"),
        ("~1", "1.9", "2"),
        ("^1.2.3", "1.2.3 1.9", "2.0.0 1.2.2"),
        ("^0.2.3", "0.2.9", "0.3.0"),
        ("^0.0.3", "0.0.3", "0.0.4"),
        ("^0", "0.9", "1.0"),
        ("1.2 - 1.4.5", "1.2 1.4.5", "1.4.6 1.1"),
        (">=1.2 <2", "1.5", "2.0 1.1"),
        (">= 1.2, < 3.0.0", "2.9", "3.0.0"),
        ("<1 || >=2", "0.5 2.1", "1.5"),
        (">=1.2.0-0", "1.2.0-rc1 1.3.0-beta", "1.1"),
        ("1.2.3-rc.1", "1.2.3-rc.1", "1.2.3"),
    ],
)
def test_ranges(text: str, inside: str, outside: str) -> None:
    """Each with versions on both sides."""
    test = versions.in_range(text)
    for tags, expected in ((inside, True), (outside, False)):
        for tag in tags.split():
            version = versions.parse(tag)
            assert version is not None
            assert test(version) is expected, tag


@pytest.mark.parametrize(
    "text", ["", " ", "latest", ">=", "1.2.3.4", ">=1,,<2", "1 || ", "1" * 2000]
)
def test_other_texts_are_no_ranges(text: str) -> None:
    """They are refused when the list is read."""
    with pytest.raises(ValueError, match="range"):
        versions.in_range(text)
