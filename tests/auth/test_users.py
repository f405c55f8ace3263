"""Users and their hashes."""

from __future__ import annotations

import pytest

from mayfly.auth.errors import InputInvalid, PolicyInvalid
from mayfly.auth.users import (
    Users,
    hash_password,
    parse_users,
    password_bytes,
    with_user,
    without_user,
)

ROUNDS = 4
HASH = "$2y$04$b5FIQPq5d4/LjjMA0KfQrOn8WFYSupeT.DJGvcvFEWqLFTSc/7hGy"


def _parse(text: str) -> Users:
    return parse_users(text.encode())


def test_parse() -> None:
    """Users come in file order; comments, blank lines and further fields are left alone."""
    users = _parse(f"# staff\n\nbob:{HASH}\n  # more\nj\u00f6rg:{HASH}:note\nAl B:{HASH}\r\n")
    assert users.names == ("bob", "j\u00f6rg", "Al B")
    assert users.hash_of("j\u00f6rg") == HASH.encode()
    assert users.hash_of("nobody") is None
    assert users.costs == (4, 4, 4)


def test_empty() -> None:
    """Content without users is valid: nobody can log in."""
    assert _parse("").names == ()


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
def test_refused_line(line: str, message: str) -> None:
    """The error names the line and what to do, and shows no hash."""
    with pytest.raises(PolicyInvalid, match=message) as caught:
        _parse(f"alice:{HASH}\n{line}\n")
    assert caught.value.line == 2
    assert "secret-in-plain" not in caught.value.message
    assert HASH[10:] not in caught.value.message


def test_not_utf8() -> None:
    """A name in another encoding is a named error."""
    with pytest.raises(PolicyInvalid, match="line 1: the user name is not UTF-8"):
        parse_users(b"j\xf6rg:" + HASH.encode())


def test_changes_keep_everything_else() -> None:
    """Comments, order and odd white space survive; a last line without an end gets one."""
    before = f"# head\nalice:{HASH}\n\n# tail\nbob:{HASH}".encode()
    added = with_user(before, "carol", b"new")
    assert added == before + b"\ncarol:new\n"
    changed = with_user(added, "alice", b"other")
    assert changed == added.replace(f"alice:{HASH}".encode(), b"alice:other")
    assert with_user(changed, "alice", b"other") == changed
    assert without_user(changed, "alice") == changed.replace(b"alice:other\n", b"")
    assert without_user(changed, "nobody") == changed


@pytest.mark.parametrize("password", ["", "x" * 73, "\u00f6" * 37, "a\0b", "a\n", "\x7f", "\udc80"])
def test_passwords_that_cannot_be_set(password: str) -> None:
    """bcrypt would cut or refuse them, or nobody could type them."""
    with pytest.raises(InputInvalid):
        hash_password(password, ROUNDS)


def test_password_bounds() -> None:
    """Seventy-two bytes are a password, seventy-three are none."""
    assert password_bytes("x" * 72) == b"x" * 72
    assert password_bytes("x" * 73) is None


def test_fingerprint_follows_the_password() -> None:
    """It changes with the password, differs between users, and is empty for nobody."""
    bob, alice = hash_password("pw", ROUNDS), hash_password("pw", ROUNDS)
    before = Users({"bob": bob, "alice": alice})
    after = Users({"bob": hash_password("pw", ROUNDS), "alice": alice})
    assert before.fingerprint("bob") != after.fingerprint("bob")
    assert before.fingerprint("alice") == after.fingerprint("alice") != after.fingerprint("bob")
    assert after.fingerprint("nobody") == ""
