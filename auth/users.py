"""Users and their bcrypt hashes: Apache's htpasswd file.

A line is ``name:hash``, a comment beginning with ``#``, or blank; as in Apache, the text after a
second colon is ignored. Only bcrypt is accepted (``htpasswd -B``): any other hash is an error that
names the line, because skipping it would lock a user out silently.

New hashes are written as ``$2y$``, which Apache's crypt knows (it does not know ``$2b$``; the two
differ in name only).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from mayfly.auth.errors import InputInvalid, PolicyInvalid
from mayfly.auth.identity import check_name

DEFAULT_ROUNDS = 10
"""bcrypt cost of new hashes, as log2 of the rounds: OWASP's minimum, some 85 ms of one core. A
login storm costs it once for each user (`registry.access.logins`)."""

MAX_PASSWORD_BYTES = 72
"""bcrypt ignores further bytes. A longer password is refused: two that differ only there would be
equal."""

_MAX_COST = 17  # htpasswd's own limit; beyond it one login takes tens of seconds
_HASH = re.compile(rb"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_OTHER_HASHES = {
    b"$apr1$": "an MD5 (apr1)",
    b"{SHA}": "a SHA-1",
    b"$5$": "a SHA-256",
    b"$6$": "a SHA-512",
    b"$2": "a damaged or unsupported bcrypt",
    b"$argon2": "an Argon2",
}


class Users:
    """Names and hashes at one moment. Immutable; a changed file becomes another object."""

    __slots__ = ("_hashes", "costs")

    def __init__(self, hashes: Mapping[str, bytes]) -> None:
        self._hashes = dict(hashes)
        self.costs: tuple[int, ...] = tuple(cost_of(value) for value in self._hashes.values())
        """Each user's bcrypt cost, in file order."""

    def hash_of(self, name: str) -> bytes | None:
        """Return a user's bcrypt hash; None for an unknown user."""
        return self._hashes.get(name)

    def fingerprint(self, name: str) -> str:
        """Return a text that changes with the user's password; "" for an unknown user.

        It reveals nothing: the hash that it is made from contains 16 random bytes of salt.
        """
        found = self._hashes.get(name)
        return "" if found is None else hashlib.sha256(found).hexdigest()[:32]

    @property
    def names(self) -> tuple[str, ...]:
        """All users, in file order."""
        return tuple(self._hashes)


def cost_of(value: bytes) -> int:
    """Return the cost of a bcrypt hash, as log2 of the rounds."""
    return int(value[4:6])


def hash_password(password: str, rounds: int = DEFAULT_ROUNDS) -> bytes:
    """Return a new bcrypt hash. Slow by design: see `DEFAULT_ROUNDS`.

    Raises:
        InputInvalid: the password is empty, longer than `MAX_PASSWORD_BYTES` in UTF-8, or contains
            a control character (which a prompt or a file's line end would have added).
    """
    encoded = password_bytes(password)
    if encoded is None or any(character < " " or character == "\x7f" for character in password):
        raise InputInvalid(
            f"a password has 1 to {MAX_PASSWORD_BYTES} bytes in UTF-8 and no control characters"
        )
    import bcrypt

    return b"$2y$" + bcrypt.hashpw(encoded, bcrypt.gensalt(rounds)).removeprefix(b"$2b$")


def password_bytes(password: str) -> bytes | None:
    """Return a password as bcrypt takes it; None for one that no user can have."""
    try:
        encoded = password.encode()
    except UnicodeEncodeError:
        return None
    if not encoded or len(encoded) > MAX_PASSWORD_BYTES or b"\0" in encoded:
        return None
    return encoded


def parse_users(content: bytes) -> Users:
    """Read the content of an htpasswd file.

    Raises:
        PolicyInvalid: a line is not ``name:hash``, holds another hash than bcrypt, or repeats a
            name.
    """
    hashes: dict[str, bytes] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            name = _name_of(line)
            if name is None:
                continue
            check_name(name)
        except UnicodeDecodeError:
            raise PolicyInvalid(
                "the user name is not UTF-8", "write the file in UTF-8", number
            ) from None
        except InputInvalid as error:
            raise PolicyInvalid(error.message, "expected lines of name:hash", number) from None
        if name in hashes:
            raise PolicyInvalid(
                f"user {name!r} is there a second time", "keep one of the lines", number
            )
        hashes[name] = _check_hash(number, name, line.strip().split(b":")[1:2])
    return Users(hashes)


def with_user(content: bytes, name: str, hashed: bytes) -> bytes:
    """Return a file's content with a user added, or another hash for one that it has.

    Everything else stays as it is.

    Args:
        content: that `parse_users` takes.
        name: that `auth.identity.check_name` takes.
        hashed: see `hash_password`.
    """
    entry = name.encode() + b":" + hashed + b"\n"
    lines = _lines(content)
    if not any(_name_of(line) == name for line in lines):
        return b"".join([*lines, entry])
    return b"".join(entry if _name_of(line) == name else line for line in lines)


def without_user(content: bytes, name: str) -> bytes:
    """Return a file's content without a user; everything else stays as it is."""
    return b"".join(line for line in _lines(content) if _name_of(line) != name)


def _lines(content: bytes) -> list[bytes]:
    lines = content.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1] += b"\n"
    return lines


def _name_of(line: bytes) -> str | None:
    """Return the user of a line; None for a comment or a blank one."""
    text = line.strip()
    if not text or text.startswith(b"#"):
        return None
    return text.partition(b":")[0].decode()


def _check_hash(number: int, name: str, field: list[bytes]) -> bytes:
    value = field[0].rstrip() if field else b""
    matched = _HASH.fullmatch(value)
    if matched and 4 <= int(matched[1]) <= _MAX_COST:
        return value
    if not value:
        kind = "no"
    elif matched:
        kind = f"a bcrypt cost outside 4 to {_MAX_COST} in the"
    else:
        kind = next(
            (text for prefix, text in _OTHER_HASHES.items() if value.startswith(prefix)),
            "an unknown (crypt or plain text)",
        )
    raise PolicyInvalid(
        f"user {name!r} has {kind} hash, only bcrypt is taken",
        f"set the password again with 'mayfly user add {name}' or 'htpasswd -B'",
        number,
    )
