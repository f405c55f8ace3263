"""Repository globs."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.auth.errors import InputInvalid
from mayfly.auth.globs import MAX_LENGTH, parse_glob


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("app", ["app"], ["apps", "ap", "team/app", "app/x"]),
        ("*", ["app", "a-b"], ["a/b"]),
        ("**", ["app", "a/b", "a/b/c"], []),
        ("team/*", ["team/api"], ["team", "team/api/base", "teams/api", "team/"]),
        ("team/**", ["team/api", "team/api/base"], ["team", "teams/api", "x/team/api"]),
        ("**/cache", ["cache", "a/cache", "a/b/cache"], ["cache/a", "a/mycache"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az", "a/bz", "b/a/z"]),
        ("**/x/**", ["x/a", "a/x/b", "x/x"], ["x", "a/x", "ax/b"]),
        ("te*/a*i", ["team/api", "te/ai"], ["team/apis", "team/x/api", "te/a/i"]),
        ("*-*-*", ["a-b-c", "a--b"], ["a-b", "a-b/c-d"]),
        ("a.c", ["a.c"], ["abc"]),
    ],
)
def test_meaning(pattern: str, matching: list[str], others: list[str]) -> None:
    """Stars mean what the module says."""
    glob = parse_glob(pattern)
    assert [name for name in matching if not glob.matches(name)] == []
    assert [name for name in others if glob.matches(name)] == []


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "a**",
        "**a/b",
        "***",
        "**/**",
        "a/**/**/b",
        "A/*",
        "a?",
        "[ab]",
        "a b",
        "a,b",
        "a:b",
        "{a,b}",
        "a\n",
        "\u00e9",
        "a" * (MAX_LENGTH + 1),
    ],
)
def test_refused(pattern: str) -> None:
    """Text outside the grammar is an error, not a glob that never matches."""
    with pytest.raises(InputInvalid):
        parse_glob(pattern)


def test_specificity() -> None:
    """More literal characters first, then fewer double stars, then fewer stars."""
    ordered = ["**", "*", "a/**", "a/*", "a*/*b", "team/**", "**/cache", "team/*", "team/a*"]
    ordered += ["team/**/app", "team/app"]
    found = sorted(ordered, key=lambda pattern: parse_glob(pattern).specificity)
    assert found == ordered


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("*a" * 20 + "b", "a" * 255),
        ("*a*/" * 40 + "b", "a/" * 127),
        ("**/" + "a/**/" * 40 + "b", "a/" * 127 + "a"),
        ("**/*a*a*a*a*a/**/*a*a*a*a/**/b", ("a" * 20 + "/") * 12 + "a"),
    ],
)
def test_no_slow_match(pattern: str, name: str) -> None:
    """No crafted glob and name make the matcher backtrack."""
    glob = parse_glob(pattern)
    start = time.process_time()
    assert not glob.matches(name)
    assert time.process_time() - start < 0.5


def _reference(pattern: list[str], name: list[str]) -> bool:
    """The slash rules written as plainly as can be."""
    if not pattern:
        return not name
    if pattern == ["**"]:
        return bool(name)
    if pattern[0] == "**":
        return any(_reference(pattern[1:], name[skip:]) for skip in range(len(name) + 1))
    return bool(name) and _part(pattern[0], name[0]) and _reference(pattern[1:], name[1:])


def _part(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(_part(pattern[1:], text[skip:]) for skip in range(len(text) + 1))
    return bool(text) and text[0] == pattern[0] and _part(pattern[1:], text[1:])


PARTS = st.one_of(
    st.just("**"), st.text("ab*", min_size=1, max_size=4).filter(lambda part: "**" not in part)
)
PATTERNS = st.lists(PARTS, min_size=1, max_size=5).filter(
    lambda parts: "**/**" not in "/".join(parts)
)
NAMES = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=5)


@settings(deadline=None)
@given(PATTERNS, NAMES)
def test_agrees_with_the_plain_rules(pattern: list[str], name: list[str]) -> None:
    """The fast matcher and the obvious one agree."""
    assert parse_glob("/".join(pattern)).matches("/".join(name)) == _reference(pattern, name)


@settings(deadline=None, max_examples=500)
@given(PATTERNS, NAMES)
def test_name_is_more_specific_than_any_glob(pattern: list[str], name: list[str]) -> None:
    """So a grant on one repository holds, also if a glob such as ``**/cache`` gives more."""
    glob, plain = parse_glob("/".join(pattern)), parse_glob("/".join(name))
    # Half of the globs match by their making.
    fitting = parse_glob("/".join(["**", *name]))
    for one in (glob, fitting):
        if one.matches(plain.pattern) and one != plain:
            assert one.specificity < plain.specificity
