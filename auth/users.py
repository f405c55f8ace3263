"""Users and their bcrypt hashes: Apache's htpasswd file.

A line is ``name:hash``, a comment beginning with ``#``, or blank; as in Apache, what follows
another colon is left alone. Only bcrypt is taken (``htpasswd -B``): anything else in the file is an
error that names the line, because skipping it would lock a user out without a word.

Files written here hold ``$2y$`` hashes, which Apache's crypt knows (it does not know ``$2b$``; the
two differ in name only). How symlinks and permissions are treated is in `auth.files`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from mayfly.auth import files
from mayfly.auth.errors import InputInvalid, PolicyFileInvalid
from mayfly.auth.identity import check_name

DEFAULT_ROUNDS = 10
"""bcrypt cost of new hashes, as log2 of the rounds: OWASP's least, some 85 ms of one core. A login
storm pays it once for each user (`auth.login`)."""

MAX_PASSWORD_BYTES = 72
"""bcrypt reads no more. A longer password is refused: two that differ only later must not pass for
each other."""

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
    """Names and hashes at one moment. Immutable; a changed file makes another object."""

    __slots__ = ("_hashes", "costs")

    def __init__(self, hashes: Mapping[str, bytes]) -> None:
        self._hashes = dict(hashes)
        self.costs: tuple[int, ...] = tuple(cost_of(value) for value in self._hashes.values())
        """Each user's bcrypt cost, in file order."""

    def hash_of(self, name: str) -> bytes | None:
        """A user's bcrypt hash; None for an unknown user."""
        return self._hashes.get(name)

    def fingerprint(self, name: str) -> str:
        """A text that changes with the user's password; "" for an unknown user.

        It gives nothing away: the hash it is made from holds 16 random bytes of salt.
        """
        found = self._hashes.get(name)
        return "" if found is None else hashlib.sha256(found).hexdigest()[:32]

    @property
    def names(self) -> tuple[str, ...]:
        """All users, in file order."""
        return tuple(self._hashes)


def cost_of(value: bytes) -> int:
    """The cost a bcrypt hash was made with, as log2 of the rounds."""
    return int(value[4:6])


def hash_password(password: str, rounds: int = DEFAULT_ROUNDS) -> bytes:
    """A new bcrypt hash. Slow by design: see `DEFAULT_ROUNDS`.

    Raises:
        InputInvalid: the password is empty, longer than `MAX_PASSWORD_BYTES` in UTF-8, or holds a
            control character (which a prompt or a file's line end would have put there).
    """
    encoded = password_bytes(password)
    if encoded is None or any(character < " " or character == "\x7f" for character in password):
        raise InputInvalid(
            f"a password has 1 to {MAX_PASSWORD_BYTES} bytes in UTF-8 and no control characters"
        )
    import bcrypt

    return b"$2y$" + bcrypt.hashpw(encoded, bcrypt.gensalt(rounds)).removeprefix(b"$2b$")


def password_bytes(password: str) -> bytes | None:
    """What bcrypt is given for a password; None for one that cannot be any user's."""
    try:
        encoded = password.encode()
    except UnicodeEncodeError:
        return None
    if not encoded or len(encoded) > MAX_PASSWORD_BYTES or b"\0" in encoded:
        return None
    return encoded


def load_users(path: Path) -> Users:
    """Read an htpasswd file.

    Raises:
        PolicyFileInvalid: see `auth.files.read`; or a line is not ``name:hash``, holds another
            hash than bcrypt, or repeats a name.
    """
    return _parse(path, files.read(path, files.NOT_WRITABLE_BY_OTHERS))


def set_user(path: Path, name: str, password: str, rounds: int = DEFAULT_ROUNDS) -> bool:
    """Add a user, or change a user's password; True when the user is new.

    Everything else in the file stays as it is. A missing file is made.

    Raises:
        InputInvalid: the name or the password cannot be taken.
        PolicyFileInvalid: the file as it is cannot be read or written.
    """
    entry = check_name(name).encode() + b":" + hash_password(password, rounds) + b"\n"
    with files.locked(path):
        before = _lines(path)
        after = [entry if _name_of(line) == name else line for line in before]
        new = after == before
        if new:
            after.append(entry)
        files.write(path, b"".join(after))
    return new


def remove_user(path: Path, name: str) -> None:
    """Remove a user; everything else in the file stays as it is.

    Raises:
        InputInvalid: the file has no such user.
        PolicyFileInvalid: the file as it is cannot be read or written.
    """
    with files.locked(path):
        before = _lines(path)
        after = [line for line in before if _name_of(line) != name]
        if after == before:
            raise InputInvalid(f"no user {name[:64]!r} in {path}")
        files.write(path, b"".join(after))


def _lines(path: Path) -> list[bytes]:
    """The lines of a file that is checked first: a broken one must not be written back."""
    if not path.exists():
        return []
    data = files.read(path, files.NOT_WRITABLE_BY_OTHERS)
    _parse(path, data)
    lines = data.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1] += b"\n"
    return lines


def _name_of(line: bytes) -> str | None:
    """The user of a line; None for a comment or a blank one."""
    text = line.strip()
    if not text or text.startswith(b"#"):
        return None
    return text.partition(b":")[0].decode()


def _parse(path: Path, data: bytes) -> Users:
    hashes: dict[str, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            name = _name_of(line)
            if name is None:
                continue
            check_name(name)
        except UnicodeDecodeError:
            raise PolicyFileInvalid(
                path, "the user name is not UTF-8", "write the file in UTF-8", number
            ) from None
        except InputInvalid as error:
            raise PolicyFileInvalid(
                path, error.message, "expected lines of name:hash", number
            ) from None
        if name in hashes:
            raise PolicyFileInvalid(
                path, f"user {name!r} is there a second time", "keep one of the lines", number
            )
        hashes[name] = _check_hash(path, number, name, line.strip().split(b":")[1:2])
    return Users(hashes)


def _check_hash(path: Path, number: int, name: str, field: list[bytes]) -> bytes:
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
    raise PolicyFileInvalid(
        path,
        f"user {name!r} has {kind} hash, only bcrypt is taken",
        f"set the password again with 'mayfly user add {name}' or 'htpasswd -B'",
        number,
    )
