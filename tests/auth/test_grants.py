"""Grants in TOML."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.auth.errors import InputInvalid, PolicyInvalid
from mayfly.auth.globs import parse_glob
from mayfly.auth.grants import heading_of, parse_grants, render, with_grant, without_grant
from mayfly.auth.identity import check_name
from mayfly.auth.policy import ANYONE, Grant, Policy, Subject, SubjectKind
from mayfly.auth.roles import Role, parse_role

EXAMPLE = """\
# Roles of the whole team.
# Ask ops before changing.

[groups]
"operators" = ["alice", "bob"]

[[grant]]
anonymous = true
role = "limitedGuest"
repositories = "public/**"

[[grant]]
group = "operators"
role = "maintainer"
repositories = "**"

[[grant]]
user = "ci"
role = "developer"
repositories = "team/**"
"""
CI = Subject(SubjectKind.USER, "ci")


def test_parse() -> None:
    """The example of the module's docstring gives its grants and groups."""
    policy = parse_grants(EXAMPLE.encode())
    assert policy.groups == {"operators": {"alice", "bob"}}
    assert policy.grants == (
        Grant(ANYONE, Role.LIMITED_GUEST, parse_glob("public/**")),
        Grant(Subject(SubjectKind.GROUP, "operators"), Role.MAINTAINER, parse_glob("**")),
        Grant(CI, Role.DEVELOPER, parse_glob("team/**")),
    )


def test_empty() -> None:
    """Empty content is a policy: nobody does anything."""
    assert parse_grants(b"").grants == ()


GRANT = '[[grant]]\nuser = "a"\nrole = "guest"\nrepositories = "b"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[grant]\n", "not TOML.*line 1"),
        ("a = " + "[" * 5000, "not TOML"),
        ("a" + ".a" * 40_000 + " = 1", "line 1: a key has more than 32 parts"),
        ("[[grants]]\n", "unknown key 'grants'"),
        ("[grant]\n", r"write \[\[grant\]\]"),
        ('grant = ["a"]\n', r"write \[\[grant\]\]"),
        ("groups = 7\n", "'groups' is not a table"),
        ('[groups]\nops = "bob"\n', "'groups.ops' is not a list"),
        ("[groups]\nops = [7]\n", "'groups.ops' is not a list"),
        ('[groups]\nops = ["a:b"]\n', "groups.ops: invalid name 'a:b'"),
        ('[groups]\n"a:b" = []\n', "groups.a:b: invalid name"),
        (GRANT + "rol = 1\n", "grant 1: unknown key 'rol'"),
        (GRANT.replace("guest", "boss"), "grant 1: no role 'boss'.*projectAdmin"),
        (GRANT.replace("guest", "Guest"), "grant 1: no role 'Guest'"),
        (GRANT.replace('"b"', '"B"'), "grant 1: invalid repository glob 'B'"),
        (GRANT.replace('"b"', '["b"]'), "grant 1: 'repositories' is missing or not a string"),
        (GRANT.replace('role = "guest"\n', ""), "grant 1: 'role' is missing"),
        (GRANT.replace('user = "a"\n', ""), "grant 1: needs exactly one of user, group"),
        (GRANT + "anonymous = true\n", "grant 1: needs exactly one of"),
        (GRANT.replace('user = "a"', "user = 1"), "grant 1: 'user' is missing or not a string"),
        (GRANT.replace('"a"', '"robot+a"'), "grant 1: invalid name"),
        (GRANT.replace('"a"', '""'), "grant 1: a name has"),
        (GRANT.replace('user = "a"', "anonymous = false"), "'anonymous' can only be true"),
        (GRANT.replace('user = "a"', "anonymous = 1"), "'anonymous' can only be true"),
        (GRANT.replace("user", "group"), "grant 1: group 'a' is not under"),
        (GRANT + GRANT.replace("guest", "developer"), "grant 2: grant 1 is also to user a on 'b'"),
        (
            GRANT.replace('user = "a"', "anonymous = true").replace("guest", "developer"),
            "anonymous cannot have role developer, only guest or limitedGuest",
        ),
        (GRANT.replace("guest", "admin"), "role admin is for the whole registry"),
    ],
)
def test_refused(text: str, message: str) -> None:
    """Every mistake is named with its place, on one line."""
    with pytest.raises(PolicyInvalid, match=message) as caught:
        parse_grants(text.encode())
    assert "\n" not in caught.value.message


def test_not_utf8() -> None:
    """Content in another encoding is a named error."""
    with pytest.raises(PolicyInvalid, match="UTF-8"):
        parse_grants(b"# \xff")


def test_changes_of_a_policy() -> None:
    """A grant is added, takes the place of its like, and is taken back; groups stay."""
    policy = parse_grants(EXAMPLE.encode())
    bob = Grant(Subject(SubjectKind.USER, "bob"), Role.GUEST, parse_glob("x"))
    more = with_grant(policy, bob, "here")
    assert more.grants == (*policy.grants, bob)
    assert without_grant(more, bob.subject, "x", "here").grants == policy.grants
    other = with_grant(policy, Grant(CI, Role.GUEST, parse_glob("team/**")), "here")
    assert [(g.subject, g.role) for g in other.grants][-1] == (CI, Role.GUEST)
    assert len(other.grants) == len(policy.grants)
    assert other.groups == more.groups == policy.groups


def test_changes_that_are_refused() -> None:
    """A grant to an unknown group, and taking back what was not given."""
    policy = parse_grants(EXAMPLE.encode())
    with pytest.raises(InputInvalid, match="no group 'none' in here"):
        with_grant(
            policy, Grant(Subject(SubjectKind.GROUP, "none"), Role.GUEST, parse_glob("a")), "here"
        )
    with pytest.raises(InputInvalid, match="no grant to user ci on 'x' in here"):
        without_grant(policy, CI, "x", "here")


def test_canonical_text_keeps_its_heading() -> None:
    """A canonical text, its heading included, is rendered as it was."""
    policy = parse_grants(EXAMPLE.encode())
    assert render(policy, heading_of(EXAMPLE)) == EXAMPLE


def test_parse_role() -> None:
    """Role names are Harbor's, case and all."""
    assert parse_role("projectAdmin") is Role.PROJECT_ADMIN
    with pytest.raises(InputInvalid, match=r"no role 'projectadmin' \(roles are limitedGuest"):
        parse_role("projectadmin")


def _valid(name: str) -> bool:
    try:
        check_name(name)
    except InputInvalid:
        return False
    return True


NAMES = st.text(max_size=8).filter(_valid)


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.frozensets(NAMES, max_size=3), max_size=3), NAMES)
def test_any_name_survives_the_file(groups: dict[str, frozenset[str]], user: str) -> None:
    """Whatever a name holds, the rendered text loads as the same policy."""
    subjects = [
        Subject(SubjectKind.USER, user),
        *(Subject(SubjectKind.GROUP, name) for name in groups),
    ]
    grants = [Grant(subject, Role.GUEST, parse_glob("a/**")) for subject in subjects]
    loaded = parse_grants(render(Policy(grants, groups)).encode())
    assert set(loaded.grants) == set(grants)
    assert loaded.groups == groups
