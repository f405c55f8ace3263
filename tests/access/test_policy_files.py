"""The files of users, grants and the signing key: read and changed."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import bcrypt
import pytest

from mayfly.auth.errors import InputInvalid
from mayfly.auth.globs import parse_glob
from mayfly.auth.policy import ANYONE, Grant, Subject, SubjectKind
from mayfly.auth.roles import Role
from mayfly.auth.signing import new_key
from mayfly.registry.access.errors import PolicyFileInvalid
from mayfly.registry.access.policy_files import (
    add_grant,
    load_grants,
    load_key,
    load_users,
    remove_grant,
    remove_user,
    set_user,
)
from tests.auth.test_grants import CI, EXAMPLE, GRANT
from tests.auth.test_users import HASH, ROUNDS
from tests.support.process import need


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "htpasswd"


@pytest.fixture
def grants(tmp_path: Path) -> Path:
    return tmp_path / "grants.toml"


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_load(path: Path, grants: Path) -> None:
    """A file gives what its content says."""
    assert load_users(_write(path, f"# staff\nbob:{HASH}\n")).names == ("bob",)
    assert load_grants(_write(grants, EXAMPLE)).groups == {"operators": {"alice", "bob"}}


def test_mistakes_name_the_file(path: Path, grants: Path) -> None:
    """Every mistake is named with the file, the line where there is one, and what to do."""
    with pytest.raises(PolicyFileInvalid) as users:
        load_users(_write(path, "alice:plain\n"))
    assert users.value.message.startswith(f"{path}, line 1: user 'alice' has an unknown")
    assert (users.value.path, users.value.line) == (path, 1)
    with pytest.raises(PolicyFileInvalid) as caught:
        load_grants(_write(grants, GRANT + "rol = 1\n"))
    assert caught.value.message.startswith(f"{grants}: grant 1: unknown key 'rol'")
    assert (caught.value.path, caught.value.line) == (grants, None)


def test_set_and_remove_keep_everything_else(path: Path) -> None:
    """Comments, order and odd white space survive changes."""
    before = f"# head\nalice:{HASH}\n\n# tail\nbob:{HASH}"
    _write(path, before)
    assert set_user(path, "carol", "pw", ROUNDS)
    added = path.read_text()
    assert added.startswith(before + "\ncarol:$2y$04$")
    assert not set_user(path, "alice", "other", ROUNDS)
    changed = path.read_text().splitlines()
    assert changed[0] == "# head"
    assert changed[1].startswith("alice:$2y$")
    assert changed[1] != f"alice:{HASH}"
    assert changed[2:] == added.splitlines()[2:]
    remove_user(path, "alice")
    assert path.read_text().splitlines() == ["# head", *changed[2:]]


def test_set_makes_a_private_file(path: Path) -> None:
    """The first user makes the file, for its owner alone."""
    assert set_user(path, "bob", "pw", ROUNDS)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_users(path).names == ("bob",)


def test_remove_unknown(path: Path) -> None:
    """Removing an unknown user is an error that names the user and the file."""
    set_user(path, "bob", "pw", ROUNDS)
    with pytest.raises(InputInvalid, match=r"no user 'eve' in .*htpasswd"):
        remove_user(path, "eve")


def test_broken_file_is_not_written_back(path: Path) -> None:
    """A change refuses a file it does not understand, and leaves it as it is."""
    _write(path, "alice:plain\n")
    with pytest.raises(PolicyFileInvalid):
        set_user(path, "bob", "pw", ROUNDS)
    assert path.read_text() == "alice:plain\n"


@pytest.mark.parametrize("name", ["a:b", "a\nb:x", "#a", "", "robot+a"])
def test_name_cannot_inject(path: Path, name: str) -> None:
    """No name adds a line or another field."""
    with pytest.raises(InputInvalid):
        set_user(path, name, "pw", ROUNDS)
    assert not path.exists()


def test_concurrent_changes_are_all_kept(path: Path) -> None:
    """Two commands at once lose no user."""
    names = [f"user{number}" for number in range(8)]
    threads = [threading.Thread(target=set_user, args=(path, name, "p", ROUNDS)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(load_users(path).names) == names


def test_apache_reads_ours(path: Path) -> None:
    """A file written here satisfies Apache's htpasswd."""
    need("htpasswd")
    set_user(path, "bob", "p\u00e4ss word", ROUNDS)
    right, wrong = (
        subprocess.run(["htpasswd", "-vb", path, "bob", password], capture_output=True, check=False)
        for password in ("p\u00e4ss word", "other")
    )
    assert (right.returncode, wrong.returncode) == (0, 3)


def test_we_read_apache(path: Path) -> None:
    """A file of Apache's htpasswd -B works, is changed here, and still satisfies Apache."""
    need("htpasswd")
    command = ["htpasswd", "-bBC", "4"]
    for extra, name in (("-c", "bob"), ("", "al")):
        subprocess.run(
            [*command, *filter(None, [extra]), path, name, f"{name} p\u00e4ss"],
            check=True,
            capture_output=True,
        )
    users = load_users(path)
    assert users.names == ("bob", "al")
    for name in users.names:
        found = users.hash_of(name)
        assert found is not None
        assert bcrypt.checkpw(f"{name} p\u00e4ss".encode(), found)
    remove_user(path, "bob")
    subprocess.run(["htpasswd", "-vb", path, "al", "al p\u00e4ss"], check=True, capture_output=True)


def test_apache_default_hash_is_refused(path: Path) -> None:
    """A hash that htpasswd makes without -B is refused, with the remedy."""
    need("htpasswd")
    subprocess.run(["htpasswd", "-bc", path, "bob", "pw"], check=True, capture_output=True)
    with pytest.raises(PolicyFileInvalid, match=r"MD5.*htpasswd -B"):
        load_users(path)


def test_grants_not_utf8_or_writable_by_others(grants: Path) -> None:
    """The bytes and the permissions are checked too."""
    grants.write_bytes(b"# \xff")
    grants.chmod(0o600)
    with pytest.raises(PolicyFileInvalid, match="UTF-8"):
        load_grants(grants)
    grants.chmod(0o620)
    with pytest.raises(PolicyFileInvalid, match="chmod go-w"):
        load_grants(grants)


def test_first_grant_makes_a_private_file(grants: Path) -> None:
    """The first grant makes the file, for its owner alone, in canonical form."""
    assert add_grant(grants, Grant(CI, Role.DEVELOPER, parse_glob("team/**")))
    assert grants.stat().st_mode & 0o777 == 0o600
    assert grants.read_text() == (
        '[[grant]]\nuser = "ci"\nrole = "developer"\nrepositories = "team/**"\n'
    )


def test_add_and_remove_give_the_file_back(grants: Path) -> None:
    """A canonical file, its heading included, is the same after a grant came and went."""
    _write(grants, EXAMPLE)
    assert add_grant(grants, Grant(Subject(SubjectKind.USER, "bob"), Role.GUEST, parse_glob("x")))
    assert grants.read_text() != EXAMPLE
    remove_grant(grants, Subject(SubjectKind.USER, "bob"), "x")
    assert grants.read_text() == EXAMPLE


def test_add_changes_the_role(grants: Path) -> None:
    """A grant to the same subject on the same glob takes the old one's place."""
    _write(grants, EXAMPLE)
    assert not add_grant(grants, Grant(CI, Role.GUEST, parse_glob("team/**")))
    assert grants.read_text() == EXAMPLE.replace('"developer"', '"guest"')


@pytest.mark.parametrize(
    ("grant", "message"),
    [
        (Grant(ANYONE, Role.DEVELOPER, parse_glob("**")), "anonymous cannot"),
        (Grant(CI, Role.ADMIN, parse_glob("team/**")), "whole registry"),
        (Grant(Subject(SubjectKind.GROUP, "none"), Role.GUEST, parse_glob("a")), "no group 'none'"),
        (Grant(Subject(SubjectKind.USER, 'a"\n'), Role.GUEST, parse_glob("a")), "invalid name"),
    ],
)
def test_add_refused(grants: Path, grant: Grant, message: str) -> None:
    """No command writes a file that would not load."""
    with pytest.raises(InputInvalid, match=message):
        add_grant(grants, grant)
    assert not grants.exists()


def test_remove_unknown_grant(grants: Path) -> None:
    """Taking back what was not given is an error, and changes nothing."""
    _write(grants, EXAMPLE)
    with pytest.raises(InputInvalid, match=r"no grant to user ci on 'x' in .*grants\.toml"):
        remove_grant(grants, CI, "x")
    with pytest.raises(InputInvalid, match="no grant to anonymous"):
        remove_grant(grants, ANYONE, "team/**")
    assert grants.read_text() == EXAMPLE


def test_broken_grants_are_not_written_back(grants: Path) -> None:
    """A change refuses a file it does not understand, and leaves it as it is."""
    _write(grants, "nonsense = 1\n")
    with pytest.raises(PolicyFileInvalid):
        add_grant(grants, Grant(CI, Role.GUEST, parse_glob("a")))
    assert grants.read_text() == "nonsense = 1\n"


def test_key_file(tmp_path: Path) -> None:
    """A private file with a random key is taken, line end and all."""
    path = tmp_path / "token.key"
    key = new_key()
    path.write_bytes(key + b"\n")
    path.chmod(0o600)
    assert load_key(path) == key
    assert len(key) >= 32
    assert new_key() != key


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (new_key(), 0o644, "chmod 600"),
        (new_key(), 0o660, "chmod 600"),
        (b"zuul-secret", 0o600, "fewer than 32"),
        (b"secret" * 6, 0o600, "not random"),
        (b" " * 64, 0o600, "fewer than 32"),
        (b"-----BEGIN RSA PRIVATE KEY-----\n" + new_key(), 0o600, "PEM"),
    ],
    ids=["world", "group", "short", "repeated", "blank", "pem"],
)
def test_refused_key_file(tmp_path: Path, content: bytes, mode: int, message: str) -> None:
    """A key that others can read, or guess, or meant for something else; it is not shown."""
    path = tmp_path / "token.key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(PolicyFileInvalid, match=message) as caught:
        load_key(path)
    assert content.decode() not in caught.value.what + caught.value.remedy
