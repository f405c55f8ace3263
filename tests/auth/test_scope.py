"""The scope grammar."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.auth.errors import ScopeInvalid
from mayfly.auth.scope import MAX_SCOPES, MAX_TEXT, Scope, parse_scopes, render_scopes

COMPONENTS = st.sampled_from(["a", "0", "a-b", "a--b", "a.b", "a_b", "a__b", "team1"])
NAMES = st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join)
HOSTS = st.sampled_from(["", "registry.local/", "Host-1.example:5000/", "localhost:1/"])
ACTIONS = st.frozensets(st.sampled_from(["pull", "push", "delete", "*"]), min_size=1)
SCOPES = st.builds(
    lambda host, name, actions: Scope("repository", host + name, actions), HOSTS, NAMES, ACTIONS
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("repository:app:pull", Scope("repository", "app", frozenset({"pull"}))),
        (
            "repository:a/b-c/d__e:push,pull",
            Scope("repository", "a/b-c/d__e", frozenset({"pull", "push"})),
        ),
        (
            "repository:registry.local:5000/a/b:pull",
            Scope("repository", "registry.local:5000/a/b", frozenset({"pull"})),
        ),
        ("repository(plugin):a/b:pull", Scope("repository", "a/b", frozenset({"pull"}))),
        ("registry:catalog:*", Scope("registry", "catalog", frozenset({"*"}))),
        ("repository:a:pull,pull", Scope("repository", "a", frozenset({"pull"}))),
    ],
)
def test_one_scope(text: str, expected: Scope) -> None:
    """A scope is read as the grammar says, colons in its name included."""
    assert parse_scopes([text]) == (expected,)


def test_several_values_of_several_scopes() -> None:
    """Repeated and space-joined scopes are one list; those of one resource are joined."""
    scopes = parse_scopes(["repository:a:pull repository:b:pull", "", "repository:a:push"])
    assert render_scopes(scopes) == "repository:a:pull,push repository:b:pull"


@pytest.mark.parametrize(
    "text",
    [
        "repository",
        "repository:a",
        "repository:a:",
        "repository::pull",
        ":a:pull",
        "repository:a:pull,",
        "repository:a:,pull",
        "repository:a:PULL",
        "repository:a:pull,pu*h",
        "Repository:a:pull",
        "repository():a:pull",
        "repository(plugin:a:pull",
        "repository:*:pull",
        "repository:a,b:pull",
        "repository:a,repository:b:pull",
        "repository:a:pull:b",
        "repository:A:pull",
        "repository:a//b:pull",
        "repository:/a:pull",
        "repository:a/:pull",
        "repository:../a:pull",
        'repository:a"b:pull',
        'repository:a:pull",scope="repository:b:push',
        "repository:a\\b:pull",
        "repository:a\tb:pull",
        "repository:a\nb:pull",
        "repository:a\r\nX:pull",
        "repository:a:pull\n",
        "repository:a\0:pull",
        "repository:a\u00a0b:pull",
        "repository:\u0430:pull",
        "repository:a\u0661:pull",
        "repository:host:999999/a:pull",
        "repository:ho_st:1/a:pull",
        "repository:" + "a" * 600 + ":pull",
    ],
)
def test_outside_the_grammar(text: str) -> None:
    """Ambiguous text, and text that could end a header's quotes, is refused."""
    with pytest.raises(ScopeInvalid):
        parse_scopes([text])


def test_scope_cannot_be_made_by_hand_either() -> None:
    """The constructor checks too, so a claim or a handler cannot make a bad scope."""
    for bad in (("repository", "a b", "pull"), ("re(po)", "a", "pull"), ("repository", "a", "x,y")):
        with pytest.raises(ScopeInvalid):
            Scope(bad[0], bad[1], frozenset({bad[2]}))


def test_bounds() -> None:
    """Too many scopes or too much text is refused, the bounds themselves are not."""
    many = [f"repository:r{number}:pull" for number in range(MAX_SCOPES)]
    assert len(parse_scopes(many)) == MAX_SCOPES
    with pytest.raises(ScopeInvalid, match="more than"):
        parse_scopes([*many, "repository:one-more:pull"])
    with pytest.raises(ScopeInvalid, match="longer"):
        parse_scopes([" " * (MAX_TEXT + 1)])


@pytest.mark.parametrize("piece", ["a", "a-", "a.", "a_", "a:", "a/", "A.", "a:1/", "--"])
def test_no_slow_name(piece: str) -> None:
    """No crafted name takes the matcher long."""
    start = time.process_time()
    with pytest.raises(ScopeInvalid):
        Scope("repository", (piece * 600)[:500] + "!", frozenset({"pull"}))
    assert time.process_time() - start < 0.5


@settings(deadline=None)
@given(SCOPES)
def test_render_and_parse(scope: Scope) -> None:
    """Rendered scopes are parsed as the same scopes."""
    assert parse_scopes([render_scopes([scope])]) == (scope,)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    """Any text is refused, or its rendered form is parsed as the same scopes."""
    try:
        scopes = parse_scopes([text])
    except ScopeInvalid:
        return
    assert parse_scopes([render_scopes(scopes)]) == scopes
