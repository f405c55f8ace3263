"""The htpasswd file."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from mayfly.auth.errors import InputInvalid, PolicyFileInvalid
from mayfly.auth.users import hash_password, load_users, password_bytes, remove_user, set_user

ROUNDS = 4
HASH = "$2y$04$b5FIQPq5d4/LjjMA0KfQrOn8WFYSupeT.DJGvcvFEWqLFTSc/7hGy"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "htpasswd"


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_load(path: Path) -> None:
    """Users come in file order; comments, blank lines and further fields are left alone."""
    _write(path, f"# staff\n\nbob:{HASH}\n  # more\nj\u00f6rg:{HASH}:note\nAl B:{HASH}\r\n")
    users = load_users(path)
    assert users.names == ("bob", "j\u00f6rg", "Al B")
    assert users.hash_of("j\u00f6rg") == HASH.encode()
    assert users.hash_of("nobody") is None
    assert users.costs == (4, 4, 4)


def test_empty_file(path: Path) -> None:
    """A file without users is valid: nobody can log in."""
    assert load_users(_write(path, "")).names == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bob:$apr1$abc$def", r"line 2: user 'bob' has an MD5 \(apr1\) hash.*mayfly user add bob"),
        ("bob:{SHA}abc=", "a SHA-1 hash"),
        ("bob:$5$abc$def", "a SHA-256 hash"),
        ("bob:$6$abc$def", "a SHA-512 hash"),
        ("bob:$argon2id$x", "an Argon2 hash"),
        ("bob:secret-in-plain", "unknown"),
        ("bob:" + HASH[:-1], "damaged or unsupported bcrypt"),
        ("bob:" + HASH.replace("$2y$", "$2x$"), "damaged or unsupported bcrypt"),
        ("bob:" + HASH.replace("$04$", "$03$"), "cost"),
        ("bob:" + HASH.replace("$04$", "$31$"), "cost"),
        ("bob:" + HASH[:28] + "/" + HASH[29:], "damaged"),
        ("bob:", "no hash"),
        ("bob", "no hash"),
        (":" + HASH, "name"),
        ("robot+x:" + HASH, "robot"),
        ("a\tb:" + HASH, "name"),
        ("alice:" + HASH, "line 2: user 'alice' is there a second time"),
    ],
)
def test_refused_line(path: Path, line: str, message: str) -> None:
    """The error names the line and what to do, and shows no hash."""
    with pytest.raises(PolicyFileInvalid, match=message) as caught:
        load_users(_write(path, f"alice:{HASH}\n{line}\n"))
    assert caught.value.line == 2
    assert "secret-in-plain" not in caught.value.message
    assert HASH[10:] not in caught.value.message


def test_not_utf8(path: Path) -> None:
    """A name in another encoding is a named error."""
    path.write_bytes(b"j\xf6rg:" + HASH.encode())
    path.chmod(0o600)
    with pytest.raises(PolicyFileInvalid, match="line 1: the user name is not UTF-8"):
        load_users(path)


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
    """Removing nobody is an error that names who and where."""
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


@pytest.mark.parametrize("password", ["", "x" * 73, "\u00f6" * 37, "a\0b", "a\n", "\x7f", "\udc80"])
def test_passwords_that_cannot_be_set(password: str) -> None:
    """bcrypt would cut or refuse them, or nobody could type them."""
    with pytest.raises(InputInvalid):
        hash_password(password, ROUNDS)


def test_password_bounds() -> None:
    """Seventy-two bytes are a password, seventy-three are none."""
    assert password_bytes("x" * 72) == b"x" * 72
    assert password_bytes("x" * 73) is None


def test_fingerprint_follows_the_password(path: Path) -> None:
    """It changes with the password, differs between users, and is empty for nobody."""
    set_user(path, "bob", "pw", ROUNDS)
    set_user(path, "alice", "pw", ROUNDS)
    before = load_users(path)
    set_user(path, "bob", "pw", ROUNDS)
    after = load_users(path)
    assert before.fingerprint("bob") != after.fingerprint("bob")
    assert before.fingerprint("alice") == after.fingerprint("alice") != after.fingerprint("bob")
    assert after.fingerprint("nobody") == ""


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
    from tests.process import need

    need("htpasswd")
    set_user(path, "bob", "p\u00e4ss word", ROUNDS)
    right, wrong = (
        subprocess.run(["htpasswd", "-vb", path, "bob", password], capture_output=True, check=False)
        for password in ("p\u00e4ss word", "other")
    )
    assert (right.returncode, wrong.returncode) == (0, 3)


def test_we_read_apache(path: Path) -> None:
    """A file of Apache's htpasswd -B works, is changed here, and still satisfies Apache."""
    import bcrypt

    from tests.process import need

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
    """What htpasswd makes without -B is refused with the remedy."""
    from tests.process import need

    need("htpasswd")
    subprocess.run(["htpasswd", "-bc", path, "bob", "pw"], check=True, capture_output=True)
    with pytest.raises(PolicyFileInvalid, match=r"MD5.*htpasswd -B"):
        load_users(path)
