"""Checking names and passwords."""

from __future__ import annotations

from collections import Counter

import bcrypt
import pytest

from mayfly.auth.errors import CredentialsInvalid, TokenInvalid
from mayfly.auth.globs import parse_glob
from mayfly.auth.identity import Identity, Permission
from mayfly.auth.robots import Robots
from mayfly.auth.roles import Role
from mayfly.auth.users import Users, hash_password
from mayfly.auth.verify import MAX_REMEMBERED, REMEMBERED, CredentialVerifier
from tests.auth.clock import Clock

KEY = b"k" * 16 + bytes(range(32))
SECRET = hash_password("secret", 4)


class Door:
    """A verifier, its clock and users, and the bcrypts it ran: cost of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, users: Users) -> None:
        self.clock = Clock()
        self.users = users
        self.costs: list[int] = []
        self.robots = Robots(KEY)
        self.verifier = CredentialVerifier(lambda: self.users, self.robots, self.clock, self.clock)
        real = bcrypt.checkpw

        def checkpw(password: bytes, hashed: bytes) -> bool:
            self.costs.append(int(hashed[4:6]))
            return hashed == SECRET and real(password, hashed)

        monkeypatch.setattr(bcrypt, "checkpw", checkpw)

    def refused(self, name: str, password: str) -> str:
        with pytest.raises(CredentialsInvalid) as caught:
            self.verifier.check(name, password)
        return caught.value.message


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    return Door(monkeypatch, Users({"bob": SECRET}))


def test_right_password(door: Door) -> None:
    """The caller is the user, and can be recalled without bcrypt."""
    assert door.verifier.recall("bob", "secret") is None
    identity = door.verifier.check("bob", "secret")
    assert identity == Identity("bob", "basic", fingerprint=door.users.fingerprint("bob"))
    assert door.verifier.recall("bob", "secret") == identity
    assert door.verifier.check("bob", "secret") == identity
    assert door.costs == [4]


def test_same_words_for_every_refusal(door: Door) -> None:
    """A wrong password and an unknown user are refused alike."""
    messages = {
        door.refused("bob", "wrong"),
        door.refused("eve", "secret"),
        door.refused("bob", ""),
        door.refused("bob", "x" * 100),
        door.refused("robot+x", "secret"),
        door.refused("", "secret"),
    }
    assert len(messages) == 1


def test_unknown_user_costs_as_much(door: Door) -> None:
    """One bcrypt of the same cost runs for a wrong password and for an unknown user."""
    door.refused("bob", "wrong")
    door.refused("eve", "wrong")
    assert door.costs == [4, 4]


def test_unknown_users_cost_as_mixed_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several costs in the file, unknown names have them in proportion, always the same."""
    cheap, dear = b"$2b$05$" + b"." * 53, b"$2b$12$" + b"." * 53
    door = Door(monkeypatch, Users({f"u{n}": cheap if n % 2 else dear for n in range(10)}))
    for number in range(200):
        door.refused(f"nobody{number}", "wrong")
    share = Counter(door.costs)
    assert share.keys() == {5, 12}
    assert 60 < share[5] < 140
    for number in range(200):
        door.refused(f"nobody{number}", "another")
    assert door.costs[200:] == door.costs[:200]


def test_unknown_user_in_an_empty_file_costs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any user the default cost is paid."""
    door = Door(monkeypatch, Users({}))
    door.refused("eve", "wrong")
    assert door.costs == [10]


@pytest.mark.parametrize("password", ["", "x" * 73, "x" * 100_000, "a\0b", "\udc80"])
def test_impossible_passwords_are_refused_at_once(door: Door, password: str) -> None:
    """Known user or not, they are refused without bcrypt and without another error."""
    assert door.refused("bob", password) == door.refused("eve", password)
    assert door.costs == []


@pytest.mark.parametrize("name", ["bob\0", "bob:x", "\udc80", "x" * 100_000, "BOB"])
def test_odd_names_are_unknown(door: Door, name: str) -> None:
    """They are refused as any unknown user."""
    door.refused(name, "secret")
    assert door.costs == [4]


def test_name_and_password_do_not_run_together(door: Door) -> None:
    """Moving characters from one to the other is another credential."""
    door.verifier.check("bob", "secret")
    assert door.verifier.recall("bobs", "ecret") is None
    assert door.verifier.recall("bo", "bsecret") is None


def test_wrong_results_are_remembered_too(door: Door) -> None:
    """A node that repeats a stale password costs one bcrypt a minute."""
    for _ in range(5):
        door.refused("bob", "stale")
    assert door.costs == [4]
    assert door.verifier.recall("bob", "stale") is None


def test_results_are_forgotten_in_time(door: Door) -> None:
    """After their time, both kinds are found anew."""
    door.verifier.check("bob", "secret")
    door.refused("bob", "wrong")
    door.clock.advance(REMEMBERED)
    assert door.verifier.recall("bob", "secret") is None
    door.verifier.check("bob", "secret")
    door.refused("bob", "wrong")
    assert len(door.costs) == 4


def test_results_are_forgotten_when_users_change(door: Door) -> None:
    """A removed user is out at once, an added one in at once."""
    door.verifier.check("bob", "secret")
    door.refused("eve", "secret")
    door.users = Users({"eve": SECRET})
    assert door.verifier.recall("bob", "secret") is None
    door.refused("bob", "secret")
    assert door.verifier.check("eve", "secret").name == "eve"


def test_result_of_old_users_is_not_kept(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of a bcrypt is dropped if the users change while it runs."""

    def change(password: bytes, hashed: bytes) -> bool:
        door.users = Users({})
        door.verifier.recall("someone", "else")
        return True

    monkeypatch.setattr(bcrypt, "checkpw", change)
    door.verifier.check("bob", "secret")
    assert door.verifier.recall("bob", "secret") is None


def test_memory_is_bounded_and_guesses_do_not_push_out_successes(door: Door) -> None:
    """A flood of wrong passwords leaves right ones remembered."""
    door.verifier.check("bob", "secret")
    for number in range(MAX_REMEMBERED + 10):
        door.refused("bob", f"wrong{number}")
    assert door.verifier.recall("bob", "secret") is not None
    before = len(door.costs)
    door.refused("bob", "wrong0")
    assert len(door.costs) == before + 1


def test_robot(door: Door) -> None:
    """A short-lived credential is recalled without bcrypt until it ends."""
    permission = Permission(Role.GUEST, parse_glob("team/**"))
    credential = door.robots.issue("node-1", [permission], 3600, door.clock(), node="node-1")
    identity = door.verifier.recall(credential.name, credential.password)
    assert identity == door.verifier.check(credential.name, credential.password)
    assert identity is not None
    assert (identity.node, identity.permissions) == ("node-1", (permission,))
    door.clock.advance(3600)
    assert door.verifier.recall(credential.name, credential.password) is None
    door.refused(credential.name, credential.password)
    assert door.costs == []


def test_robot_where_there_are_none() -> None:
    """Without a key for them, a robot is refused; its name never reaches the user file."""
    verifier = CredentialVerifier(lambda: Users({"robot+x": SECRET}))
    with pytest.raises(CredentialsInvalid):
        verifier.check("robot+x", "secret")


def test_renew(door: Door) -> None:
    """A refresh token's caller stands while the user has the same password."""
    refreshed = Identity("bob", "refresh", fingerprint=door.users.fingerprint("bob"), expires=9)
    assert door.verifier.renew(refreshed) == door.verifier.check("bob", "secret")
    robot = Identity("robot+x", "refresh", permissions=(), expires=9)
    assert door.verifier.renew(robot) == robot


@pytest.mark.parametrize(
    "identity",
    [
        Identity("bob", "refresh", fingerprint="another password's"),
        Identity("bob", "refresh"),
        Identity("gone", "refresh"),
        Identity("", "refresh"),
    ],
)
def test_renew_revoked(door: Door, identity: Identity) -> None:
    """A removed user or a changed password ends it, and so does a missing fingerprint."""
    with pytest.raises(TokenInvalid, match="revoked"):
        door.verifier.renew(identity)
