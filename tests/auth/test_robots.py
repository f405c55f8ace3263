"""Short-lived credentials."""

from __future__ import annotations

import pytest

from mayfly.auth.errors import CredentialsInvalid, InputInvalid
from mayfly.auth.globs import parse_glob
from mayfly.auth.identity import Identity, Permission
from mayfly.auth.policy import OPEN, Policy
from mayfly.auth.robots import MAX_LIFETIME, MAX_PERMISSIONS, Robots
from mayfly.auth.roles import Role
from mayfly.auth.signing import new_key

KEY = new_key()
RUN = "a run"
NOW = 1_700_000_000
PULL = Permission(Role.LIMITED_GUEST, parse_glob("team/**"))
PUSH = Permission(Role.DEVELOPER, parse_glob("team/ci/**"))


@pytest.fixture
def robots() -> Robots:
    return Robots(KEY, RUN)


def test_round_trip(robots: Robots) -> None:
    """Another server with the key gets back all that was put in."""
    credential = robots.issue("node-1.rack", [PULL, PUSH], 3600, NOW + 0.5, node="node-1.rack")
    assert (credential.name, credential.expires) == ("robot+node-1.rack", NOW + 3600)
    assert Robots(KEY, RUN).verify(credential.name, credential.password, NOW) == Identity(
        "robot+node-1.rack",
        "robot",
        node="node-1.rack",
        permissions=(PULL, PUSH),
        expires=NOW + 3600,
    )


def test_does_what_it_says_and_nothing_else(robots: Robots) -> None:
    """The policy file adds nothing to a robot, even if it grants to its name."""
    credential = robots.issue("x", [PULL, PUSH], 3600, NOW)
    identity = robots.verify(credential.name, credential.password, NOW)
    policy = Policy([])
    assert policy.actions(identity, "team/app") == {"pull"}
    assert policy.actions(identity, "team/ci/app") == {"pull", "push"}
    assert policy.actions(identity, "other/app") == frozenset()
    assert OPEN.allowed(identity, "other/app", "delete")


def test_end_of_the_run() -> None:
    """A credential ends with its run, also where the next run has the same key."""
    made = Robots(KEY, RUN).issue("x", [PULL], 60, NOW)
    Robots(KEY, RUN).verify(made.name, made.password, NOW)
    with pytest.raises(CredentialsInvalid):
        Robots(KEY, "the next run").verify(made.name, made.password, NOW)


def test_expiry(robots: Robots) -> None:
    """It ends to the second, also when it was checked before."""
    credential = robots.issue("x", [PULL], 60, NOW)
    robots.verify(credential.name, credential.password, NOW + 59.9)
    for _ in range(2):
        with pytest.raises(CredentialsInvalid):
            robots.verify(credential.name, credential.password, NOW + 60)


def test_clock_set_back(robots: Robots) -> None:
    """One made before the clock was set back is good at once: a Secret is not fetched anew."""
    credential = robots.issue("x", [PULL], 3600, NOW)
    robots.verify(credential.name, credential.password, NOW - 7200)


def test_another_name_or_key(robots: Robots) -> None:
    """A password is its own robot's, and dies with the key."""
    credential = robots.issue("x", [PULL], 60, NOW)
    for name in ("robot+y", "x", "", "robot+x "):
        with pytest.raises(CredentialsInvalid):
            robots.verify(name, credential.password, NOW)
    with pytest.raises(CredentialsInvalid):
        Robots(new_key()).verify(credential.name, credential.password, NOW)


@pytest.mark.parametrize("password", ["", "x", "a.b.c", "x" * 100_000, "\udc80", "\0"])
def test_other_passwords(robots: Robots, password: str) -> None:
    """Anything else is refused as a wrong password is."""
    with pytest.raises(CredentialsInvalid):
        robots.verify("robot+x", password, NOW)


@pytest.mark.parametrize("name", ["", "A", "a b", "a:b", "-a", "a-", "robot+a", "a$b", "a" * 201])
def test_invalid_name(robots: Robots, name: str) -> None:
    """A name is one that needs no quoting anywhere."""
    with pytest.raises(InputInvalid, match="name"):
        robots.issue(name, [PULL], 60, NOW)


@pytest.mark.parametrize("lifetime", [-1, 0, 59, MAX_LIFETIME + 1])
def test_invalid_lifetime(robots: Robots, lifetime: int) -> None:
    """A credential is short-lived, but not shorter than the tokens bought with it."""
    with pytest.raises(InputInvalid, match="lives"):
        robots.issue("x", [PULL], lifetime, NOW)


@pytest.mark.parametrize("role", [Role.ADMIN, Role.PROJECT_ADMIN])
def test_no_administrators(robots: Robots, role: Role) -> None:
    """A credential that cannot be revoked alone cannot have a role of administrators."""
    with pytest.raises(InputInvalid, match="cannot have role"):
        robots.issue("x", [Permission(role, parse_glob("**"))], 60, NOW)


def test_permission_count(robots: Robots) -> None:
    """None is a mistake; too many would not fit in a header."""
    for permissions in ([], [PULL] * (MAX_PERMISSIONS + 1)):
        with pytest.raises(InputInvalid, match="permissions"):
            robots.issue("x", permissions, 60, NOW)
    long = [Permission(Role.MAINTAINER, parse_glob("a" * 255))] * MAX_PERMISSIONS
    credential = robots.issue("x", long, 60, NOW)
    assert robots.verify(credential.name, credential.password, NOW).permissions == tuple(long)
