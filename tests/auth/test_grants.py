"""The file of grants."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.auth.errors import InputInvalid, PolicyFileInvalid
from mayfly.auth.globs import parse_glob
from mayfly.auth.grants import add_grant, load_grants, remove_grant, render
from mayfly.auth.identity import check_name
from mayfly.auth.policy import ANYONE, Grant, Kind, Policy, Subject
from mayfly.auth.roles import Role, parse_role

EXAMPLE = """\
# Who may do what.
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
CI = Subject(Kind.USER, "ci")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "grants.toml"


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_load(path: Path) -> None:
    """The example of the module's docstring gives its grants and groups."""
    policy = load_grants(_write(path, EXAMPLE))
    assert policy.groups == {"operators": {"alice", "bob"}}
    assert policy.grants == (
        Grant(ANYONE, Role.LIMITED_GUEST, parse_glob("public/**")),
        Grant(Subject(Kind.GROUP, "operators"), Role.MAINTAINER, parse_glob("**")),
        Grant(CI, Role.DEVELOPER, parse_glob("team/**")),
    )


def test_empty_file_grants_nothing(path: Path) -> None:
    """An empty file is a policy: nobody does anything."""
    assert load_grants(_write(path, "")).grants == ()


GRANT = '[[grant]]\nuser = "a"\nrole = "guest"\nrepositories = "b"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[grant]\n", "not TOML.*line 1"),
        ("a = " + "[" * 5000, "not TOML"),
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
        (GRANT + GRANT.replace("guest", "developer"), "grant 2: grant 1 is to user a on 'b' too"),
        (
            GRANT.replace('user = "a"', "anonymous = true").replace("guest", "developer"),
            "anonymous cannot have role developer, only guest or limitedGuest",
        ),
        (GRANT.replace("guest", "admin"), "role admin is for the whole registry"),
    ],
)
def test_refused(path: Path, text: str, message: str) -> None:
    """Every mistake is named with the file and the place."""
    with pytest.raises(PolicyFileInvalid, match=message) as caught:
        load_grants(_write(path, text))
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message


def test_not_utf8_or_writable_by_others(path: Path) -> None:
    """The bytes and the permissions are checked too."""
    path.write_bytes(b"# \xff")
    path.chmod(0o600)
    with pytest.raises(PolicyFileInvalid, match="UTF-8"):
        load_grants(path)
    path.chmod(0o620)
    with pytest.raises(PolicyFileInvalid, match="chmod go-w"):
        load_grants(path)


def test_add_makes_a_private_file(path: Path) -> None:
    """The first grant makes the file, for its owner alone, in canonical form."""
    assert add_grant(path, Grant(CI, Role.DEVELOPER, parse_glob("team/**")))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == (
        '[[grant]]\nuser = "ci"\nrole = "developer"\nrepositories = "team/**"\n'
    )


def test_add_and_remove_give_the_file_back(path: Path) -> None:
    """A canonical file, its heading included, is the same after a grant came and went."""
    _write(path, EXAMPLE)
    assert add_grant(path, Grant(Subject(Kind.USER, "bob"), Role.GUEST, parse_glob("x")))
    assert path.read_text() != EXAMPLE
    remove_grant(path, Subject(Kind.USER, "bob"), "x")
    assert path.read_text() == EXAMPLE


def test_add_changes_the_role(path: Path) -> None:
    """A grant to the same subject on the same glob takes the old one's place."""
    _write(path, EXAMPLE)
    assert not add_grant(path, Grant(CI, Role.GUEST, parse_glob("team/**")))
    assert path.read_text() == EXAMPLE.replace('"developer"', '"guest"')


@pytest.mark.parametrize(
    ("grant", "message"),
    [
        (Grant(ANYONE, Role.DEVELOPER, parse_glob("**")), "anonymous cannot"),
        (Grant(CI, Role.ADMIN, parse_glob("team/**")), "whole registry"),
        (Grant(Subject(Kind.GROUP, "none"), Role.GUEST, parse_glob("a")), "no group 'none'"),
        (Grant(Subject(Kind.USER, 'a"\n'), Role.GUEST, parse_glob("a")), "invalid name"),
    ],
)
def test_add_refused(path: Path, grant: Grant, message: str) -> None:
    """No command writes a file that would not load."""
    with pytest.raises(InputInvalid, match=message):
        add_grant(path, grant)
    assert not path.exists()


def test_remove_unknown(path: Path) -> None:
    """Taking back what was not given is an error, and changes nothing."""
    _write(path, EXAMPLE)
    with pytest.raises(InputInvalid, match=r"no grant to user ci on 'x' in .*grants\.toml"):
        remove_grant(path, CI, "x")
    with pytest.raises(InputInvalid, match="no grant to anonymous"):
        remove_grant(path, ANYONE, "team/**")
    assert path.read_text() == EXAMPLE


def test_broken_file_is_not_written_back(path: Path) -> None:
    """A change refuses a file it does not understand, and leaves it as it is."""
    _write(path, "nonsense = 1\n")
    with pytest.raises(PolicyFileInvalid):
        add_grant(path, Grant(CI, Role.GUEST, parse_glob("a")))
    assert path.read_text() == "nonsense = 1\n"


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
    import tempfile

    subjects = [Subject(Kind.USER, user), *(Subject(Kind.GROUP, name) for name in groups)]
    grants = [Grant(subject, Role.GUEST, parse_glob("a/**")) for subject in subjects]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "grants.toml")
        _write(path, render(Policy(grants, groups)))
        loaded = load_grants(path)
    assert set(loaded.grants) == set(grants)
    assert loaded.groups == groups
