"""Policies: the rule that chooses among grants."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.auth.errors import InputInvalid
from mayfly.auth.globs import parse_glob
from mayfly.auth.identity import ANONYMOUS, Identity, Permission
from mayfly.auth.policy import ANYONE, OPEN, Grant, NameRange, Policy, Subject, SubjectKind
from mayfly.auth.roles import ROLE_ACTIONS, Role
from mayfly.auth.scope import Scope, parse_scopes, render_scopes

BOB = Identity("bob", "basic")
EVE = Identity("eve", "basic")
PULL = {"pull"}
PUSH = {"pull", "push"}
DELETE = {"pull", "push", "delete"}


def _user(name: str, role: Role, glob: str) -> Grant:
    return Grant(Subject(SubjectKind.USER, name), role, parse_glob(glob))


def _group(name: str, role: Role, glob: str) -> Grant:
    return Grant(Subject(SubjectKind.GROUP, name), role, parse_glob(glob))


def _anyone(glob: str, role: Role = Role.LIMITED_GUEST) -> Grant:
    return Grant(ANYONE, role, parse_glob(glob))


def _token(*scopes: str, name: str = "bob") -> Identity:
    return Identity(name, "token", access=parse_scopes(scopes), expires=1)


@pytest.mark.parametrize(
    ("role", "actions"),
    [
        ("limitedGuest", PULL),
        ("guest", PULL),
        ("developer", PUSH),
        ("maintainer", DELETE),
        ("projectAdmin", DELETE),
        ("admin", DELETE),
    ],
)
def test_role_table(role: str, actions: set[str]) -> None:
    """Each of Harbor's roles carries what the protocol document says; there are no others."""
    assert Policy([_user("bob", Role(role), "**")]).actions(BOB, "a/b") == actions
    assert len(ROLE_ACTIONS) == 6


def test_nothing_is_granted_by_default() -> None:
    """Without a grant nobody does anything, not even list."""
    policy = Policy([])
    for identity in (ANONYMOUS, BOB, Identity("robot+x", "robot", permissions=())):
        assert policy.actions(identity, "a") == frozenset()
        assert not policy.allowed(identity, "a", "pull")
        assert policy.registry_actions(identity, "catalog") == frozenset()
        assert policy.grant(identity, parse_scopes(["repository:a:pull,push,*"])) == ()


@pytest.mark.parametrize(
    ("repository", "actions"),
    [
        ("team/api", PUSH),
        ("team/prod/api", PULL),
        ("team/prod/hotfix", DELETE),
        ("team", set()),
        ("other/api", set()),
    ],
)
def test_most_specific_glob_wins(repository: str, actions: set[str]) -> None:
    """Within one subject the longest literal match counts alone, higher or lower."""
    policy = Policy(
        [
            _user("bob", Role.GUEST, "team/prod/**"),
            _user("bob", Role.DEVELOPER, "team/**"),
            _user("bob", Role.MAINTAINER, "team/prod/hotfix"),
        ]
    )
    assert policy.actions(BOB, repository) == actions


def test_single_star_is_more_specific_than_double() -> None:
    """Of two globs with equal literals, the one with fewer double stars wins."""
    policy = Policy([_user("bob", Role.DEVELOPER, "a/**"), _user("bob", Role.GUEST, "a/*")])
    assert policy.actions(BOB, "a/b") == PULL
    assert policy.actions(BOB, "a/b/c") == PUSH


@pytest.mark.parametrize(
    "wide", ["**", "**/app", "team/**/app", "**/team/**/app", "*/app", "te*/a*"]
)
def test_grant_on_one_repository_holds(wide: str) -> None:
    """A lower role on a name itself is not raised by a glob that matches it, however long."""
    policy = Policy([_user("bob", Role.MAINTAINER, wide), _user("bob", Role.GUEST, "team/app")])
    assert policy.actions(BOB, "team/app") == PULL


def test_equally_specific_globs_add_up() -> None:
    """Where neither glob is more specific, both count, in whichever order."""
    grants = [_user("bob", Role.GUEST, "a*"), _user("bob", Role.DEVELOPER, "*a")]
    for policy in (Policy(grants), Policy(reversed(grants))):
        assert policy.actions(BOB, "aa") == PUSH
        assert policy.actions(BOB, "ab") == PULL


def test_subjects_add_up() -> None:
    """User, groups and anonymous each give theirs, as direct and group roles do in Harbor."""
    policy = Policy(
        [
            _user("bob", Role.LIMITED_GUEST, "team/app"),
            _group("ops", Role.MAINTAINER, "team/**"),
            _group("dev", Role.DEVELOPER, "**"),
            _anyone("public/**"),
        ],
        {"ops": frozenset({"bob"}), "dev": frozenset({"bob", "eve"})},
    )
    assert policy.actions(BOB, "team/app") == DELETE
    assert policy.actions(EVE, "team/app") == PUSH
    assert policy.actions(BOB, "public/x") == PUSH
    assert policy.actions(Identity("other", "basic"), "public/x") == PULL
    assert policy.actions(ANONYMOUS, "public/x") == PULL
    assert policy.actions(ANONYMOUS, "team/app") == frozenset()


def test_groups_of_a_certificate() -> None:
    """A group that the certificate names counts as one of the file's."""
    policy = Policy([_group("nodes", Role.GUEST, "**")], {"nodes": frozenset()})
    assert policy.allowed(Identity("n1", "certificate", groups=frozenset({"nodes"})), "a", "pull")
    assert not policy.allowed(Identity("n1", "certificate"), "a", "pull")


def test_user_named_as_a_group() -> None:
    """A user's name is not a group's, nor the other way round."""
    policy = Policy([_group("ops", Role.GUEST, "**")], {"ops": frozenset({"bob"})})
    assert not policy.allowed(Identity("ops", "basic"), "a", "pull")
    assert not Policy([_user("ops", Role.GUEST, "**")]).allowed(
        Identity("x", "certificate", groups=frozenset({"ops"})), "a", "pull"
    )


def test_robot_has_its_own_permissions_and_anonymous() -> None:
    """Grants to its name or groups do not count; grants to anonymous do."""
    policy = Policy(
        [_user("robot+x", Role.MAINTAINER, "**"), _anyone("public/**")],
    )
    robot = Identity(
        "robot+x", "robot", permissions=(Permission(Role.GUEST, parse_glob("team/**")),)
    )
    assert policy.actions(robot, "team/app") == PULL
    assert policy.actions(robot, "public/app") == PULL
    assert policy.actions(robot, "other/app") == frozenset()


def test_token_grants_what_it_says_and_only_that() -> None:
    """A token gains nothing from a better grant of its user or from an open repository."""
    policy = Policy([_user("bob", Role.ADMIN, "**"), _anyone("public/**")])
    token = _token("repository:a:pull", "repository:b:push")
    assert policy.actions(token, "a") == PULL
    assert policy.actions(token, "b") == {"push"}
    assert policy.actions(token, "public/x") == frozenset()
    assert policy.actions(token, "a/b") == frozenset()
    assert policy.registry_actions(token, "catalog") == frozenset()
    assert Policy([]).actions(token, "a") == PULL


def test_token_of_another_type_of_resource() -> None:
    """A scope counts only for its own type."""
    token = _token("registry:a:pull", "plugin:a:pull", "repository:catalog:*")
    assert OPEN.actions(token, "a") == frozenset()
    assert OPEN.registry_actions(token, "catalog") == frozenset()


def test_star_in_a_token_is_no_wildcard() -> None:
    """Actions in tokens are names; ``*`` is the catalog's."""
    token = _token("repository:a:*")
    assert not OPEN.allowed(token, "a", "pull")


def test_catalog() -> None:
    """A caller with any permission may list the catalog, which shows what they may pull."""
    policy = Policy([_user("bob", Role.GUEST, "team/**"), _user("carol", Role.DEVELOPER, "x")])
    assert policy.registry_actions(BOB, "catalog") == {"*"}
    assert policy.registry_actions(EVE, "catalog") == frozenset()
    seen = [name for name in ("team/a", "team/b/c", "x") if policy.can_list(BOB, name)]
    assert seen == ["team/a", "team/b/c"]


def test_catalog_with_a_token() -> None:
    """A catalog token shows what its caller may pull now; another token shows nothing."""
    policy = Policy([_user("bob", Role.GUEST, "team/**")])
    token = _token("registry:catalog:*")
    assert policy.can_list(token, "team/a")
    assert not policy.can_list(token, "x")
    assert not policy.can_list(_token("repository:team/a:pull"), "team/a")
    assert not Policy([]).can_list(token, "team/a")
    robot = Identity(
        "robot+x",
        "token",
        access=token.access,
        expires=1,
        permissions=(Permission(Role.GUEST, parse_glob("x")),),
    )
    assert policy.can_list(robot, "x")
    assert not policy.can_list(robot, "team/a")


def _is_glob(pattern: str) -> bool:
    try:
        parse_glob(pattern)
    except InputInvalid:
        return False
    return True


PARTS = st.one_of(st.just("**"), st.text("ab*", min_size=1, max_size=3))
GLOBS = st.lists(PARTS, min_size=1, max_size=3).map("/".join).filter(_is_glob)
NAMES = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join)


@given(st.lists(st.tuples(st.sampled_from(Role), GLOBS), max_size=4), NAMES)
def test_readable_ranges(granted: list[tuple[Role, str]], name: str) -> None:
    """No repository that a caller may pull from lies outside; none of them holds another."""
    policy = Policy([_user("bob", role, glob) for role, glob in granted])
    tokens = _token(f"repository:{name}:pull", "registry:catalog:*")
    wanted = NameRange(name, is_prefix=False)
    for identity, listing in ((BOB, False), (BOB, True), (tokens, False), (tokens, True)):
        ranges = policy.readable(identity, listing=listing)
        assert [one.text for one in ranges] == sorted(one.text for one in ranges)
        assert not any(one.holds(two) for one, two in permutations(ranges, 2))
        may = policy.can_list(identity, name) if listing else policy.allowed(identity, name, "pull")
        assert not may or any(one.holds(wanted) for one in ranges)


def test_readable_ranges_are_narrow() -> None:
    """As much of a glob as is no star, and nothing where the caller may only do something else."""
    grants = [("team/**", Role.GUEST), ("team/app", Role.DEVELOPER), ("x*/y", Role.GUEST)]
    grants += [("a", Role.GUEST), ("z", Role.GUEST), ("z*", Role.GUEST)]
    policy = Policy([_user("bob", role, glob) for glob, role in grants])
    assert policy.readable(BOB) == [("a", False), ("team/", True), ("x", True), ("z", True)]
    assert policy.readable(EVE) == []
    assert policy.readable(_token("repository:a/b:pull")) == [("a/b", False)]
    assert OPEN.readable(EVE) == [("", True)]


def test_the_catalog_is_the_only_resource_of_the_registry() -> None:
    """Not even an administrator may do anything with another one."""
    policy = Policy([_user("root", Role.ADMIN, "**")])
    root = Identity("root", "basic")
    assert policy.registry_actions(root, "catalog") == {"*"}
    assert policy.registry_actions(root, "anything") == frozenset()


def test_resource_of_an_unknown_type() -> None:
    """An unknown type of resource is denied to everyone."""
    assert OPEN.resource_actions(ANONYMOUS, "plugin", "a") == frozenset()
    assert OPEN.resource_actions(ANONYMOUS, "repository", "a") >= DELETE
    assert OPEN.resource_actions(ANONYMOUS, "registry", "catalog") == {"*"}


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ("repository:team/a:pull", "repository:team/a:pull"),
        ("repository:team/a:pull,push,delete", "repository:team/a:pull,push"),
        ("repository:team/a:*", "repository:team/a:pull,push"),
        ("repository:team/a:delete", ""),
        ("repository:x:pull repository:team/a:pull", "repository:team/a:pull"),
        ("repository:host:5000/team/a:pull", ""),
        ("registry:catalog:*", "registry:catalog:*"),
        ("registry:catalog:pull", ""),
        ("registry:other:*", ""),
        ("plugin:team/a:pull", ""),
    ],
)
def test_token_gets_the_intersection(asked: str, granted: str) -> None:
    """A token holds the requested actions that the caller has; empty scopes are dropped."""
    policy = Policy([_user("bob", Role.DEVELOPER, "team/**")])
    assert render_scopes(policy.grant(BOB, parse_scopes([asked]))) == granted


def test_a_token_for_a_token_grants_no_more() -> None:
    """Asking with a token gives at most what it holds."""
    granted = OPEN.grant(_token("repository:a:pull"), parse_scopes(["repository:a:pull,push"]))
    assert granted == (Scope("repository", "a", frozenset(PULL)),)


def test_with_grants_leaves_the_original_alone() -> None:
    """A policy never changes; adding makes another one."""
    policy = Policy([_user("bob", Role.GUEST, "a")])
    opened = policy.with_grants(_anyone("**"))
    assert opened.allowed(ANONYMOUS, "a", "pull")
    assert opened.allowed(BOB, "a", "pull")
    assert not policy.allowed(ANONYMOUS, "a", "pull")
