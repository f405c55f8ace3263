"""Loads and changes users, grants and the signing key: the content of the files of ``--auth DIR``.

`auth` parses the content; `registry.access.files` reads and writes the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mayfly.auth import grants, signing, users
from mayfly.auth.errors import InputInvalid, PolicyInvalid
from mayfly.auth.identity import check_name
from mayfly.auth.policy import Grant, Policy, Subject
from mayfly.auth.users import DEFAULT_ROUNDS, Users
from mayfly.registry.access import files
from mayfly.registry.access.errors import PolicyFileInvalid

T = TypeVar("T")


def load_users(path: Path) -> Users:
    """Read an htpasswd file.

    Raises:
        PolicyFileInvalid: see `files.read` and `auth.users.parse_users`.
    """
    return _parsed(path, users.parse_users, files.read(path, files.NOT_WRITABLE_BY_OTHERS))


def set_user(path: Path, name: str, password: str, rounds: int = DEFAULT_ROUNDS) -> bool:
    """Add a user, or change a user's password; True when the user is new.

    Everything else in the file stays as it is. A missing file is made.

    Raises:
        InputInvalid: the name or the password cannot be taken.
        PolicyFileInvalid: the file as it is cannot be read or written.
    """
    check_name(name)
    hashed = users.hash_password(password, rounds)
    with files.locked(path):
        before = _content(path)
        known = _parsed(path, users.parse_users, before).names
        files.write(path, users.with_user(before, name, hashed))
    return name not in known


def remove_user(path: Path, name: str) -> None:
    """Remove a user; everything else in the file stays as it is.

    Raises:
        InputInvalid: the file has no such user.
        PolicyFileInvalid: the file as it is cannot be read or written.
    """
    with files.locked(path):
        before = _content(path)
        if name not in _parsed(path, users.parse_users, before).names:
            raise InputInvalid(f"no user {name[:64]!r} in {path}")
        files.write(path, users.without_user(before, name))


def load_grants(path: Path) -> Policy:
    """Read a file of grants.

    Raises:
        PolicyFileInvalid: see `files.read` and `auth.grants.parse_grants`.
    """
    return _parsed(path, grants.parse_grants, files.read(path, files.NOT_WRITABLE_BY_OTHERS))


def add_grant(path: Path, grant: Grant) -> bool:
    """Add a grant, or change the role of the one with its subject and glob; True when it is new.

    A missing file is made.

    Raises:
        InputInvalid: no file can hold the grant: its role does not suit its subject or glob, or
            its group is not defined.
        PolicyFileInvalid: the file as it is cannot be read or written.
    """
    grants.check_grant(grant)
    with files.locked(path):
        before, heading = _policy(path)
        after = grants.with_grant(before, grant, str(path))
        files.write(path, grants.render(after, heading).encode())
    return len(after.grants) > len(before.grants)


def remove_grant(path: Path, subject: Subject, repositories: str) -> None:
    """Take a grant back.

    Raises:
        InputInvalid: there is no such grant.
        PolicyFileInvalid: the file as it is cannot be read or written.
    """
    with files.locked(path):
        before, heading = _policy(path)
        after = grants.without_grant(before, subject, repositories, str(path))
        files.write(path, grants.render(after, heading).encode())


def load_key(path: Path) -> bytes:
    """Read a key file: any text or bytes that are hard to guess, white space at the ends dropped.

    Raises:
        PolicyFileInvalid: other users can read it, it is missing, or `auth.signing.check_key`
            refuses it.
    """
    key = files.read(path, files.PRIVATE).strip()
    try:
        signing.check_key(key)
    except InputInvalid as error:
        remedy = f"make one with: (umask 077; openssl rand -base64 48 > {path})"
        raise PolicyFileInvalid(path, error.message, remedy) from None
    return key


def _content(path: Path) -> bytes:
    """Return the content of a file that is to be changed; a missing one is empty."""
    return files.read(path, files.NOT_WRITABLE_BY_OTHERS) if path.exists() else b""


def _policy(path: Path) -> tuple[Policy, str]:
    """Return the grants in a file that is to be changed, and the comments at its top."""
    content = _content(path)
    return _parsed(path, grants.parse_grants, content), grants.heading_of(content.decode())


def _parsed(path: Path, parse: Callable[[bytes], T], content: bytes) -> T:
    """Parse the content of a file; the error names the file."""
    try:
        return parse(content)
    except PolicyInvalid as error:
        raise PolicyFileInvalid(path, error.what, error.remedy, error.line) from None
