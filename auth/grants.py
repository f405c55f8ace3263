"""The format of ``grants.toml``: reads, changes and writes policies.

::

    [groups]
    operators = ["alice", "bob"]

    [[grant]]
    user = "ci"                  # or: group = "operators", or: anonymous = true
    role = "developer"           # see auth.roles
    repositories = "team/**"     # see auth.globs; which grant counts: auth.policy

The schema is strict: an unknown key, a wrong type, an undefined group, or a repeated subject and
glob is an error that names its place. Two rules prevent accidents: anonymous can have ``guest`` and
``limitedGuest`` only, and ``admin``, which is for the whole registry, is granted on ``**`` only. A
group whose members come from client certificates alone is defined with an empty list.

Commands rewrite the whole file, sorted and in the order above. Only the comments at its top are
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mayfly.auth import toml
from mayfly.auth.errors import InputInvalid, PolicyInvalid
from mayfly.auth.globs import parse_glob
from mayfly.auth.identity import check_name
from mayfly.auth.policy import ANYONE, EVERYTHING, Grant, Policy, Subject, SubjectKind
from mayfly.auth.roles import Role, parse_role

A = TypeVar("A")
R = TypeVar("R")

ANONYMOUS_ROLES = frozenset({Role.LIMITED_GUEST, Role.GUEST})
"""The roles that a file can grant to anonymous."""

_TOP_KEYS = frozenset({"groups", "grant"})
_GRANT_KEYS = frozenset({*SubjectKind, "role", "repositories"})
_ORDER = {SubjectKind.ANONYMOUS: 0, SubjectKind.GROUP: 1, SubjectKind.USER: 2}
_REMEDY = "correct the file; 'mayfly grant --help' shows its form"


def parse_grants(content: bytes) -> Policy:
    """Read the content of a file of grants.

    Raises:
        PolicyInvalid: it breaks the schema above.
    """
    try:
        document = toml.loads(content.decode())
    except UnicodeDecodeError:
        raise PolicyInvalid("is not UTF-8", "write the file in UTF-8") from None
    except ValueError as error:  # TOML's own, and that of a number of thousands of digits
        raise PolicyInvalid(f"is not TOML: {error}", _REMEDY) from None
    try:
        _known_keys(document, _TOP_KEYS)
        groups = _groups(document.get("groups", {}))
        grants = _grants(document.get("grant", []), groups)
    except InputInvalid as error:
        raise PolicyInvalid(error.message, _REMEDY) from None
    return Policy(grants, groups)


def with_grant(policy: Policy, grant: Grant, source: str) -> Policy:
    """Return a policy with one more grant, or with another role for its subject and glob.

    Args:
        source: the policy's file, for messages.

    Raises:
        InputInvalid: the grant's group is not defined.
    """
    if grant.subject.kind is SubjectKind.GROUP and grant.subject.name not in policy.groups:
        raise InputInvalid(
            f"no group {grant.subject.name!r} in {source}: name its members under [groups] first"
        )
    others = (other for other in policy.grants if _key(other) != _key(grant))
    return Policy([*others, grant], policy.groups)


def without_grant(policy: Policy, subject: Subject, repositories: str, source: str) -> Policy:
    """Return a policy without the grant to a subject on a glob.

    Args:
        source: the policy's file, for messages.

    Raises:
        InputInvalid: there is no such grant.
    """
    left = [grant for grant in policy.grants if _key(grant) != (subject, repositories)]
    if len(left) == len(policy.grants):
        raise InputInvalid(f"no grant to {subject} on {repositories[:64]!r} in {source}")
    return Policy(left, policy.groups)


def render(policy: Policy, heading: str = "") -> str:
    """Return the canonical text of a policy.

    Args:
        heading: comment lines to put on top.
    """
    parts = [heading] if heading else []
    if policy.groups:
        lines = [
            f"{_quote(name)} = [{', '.join(map(_quote, sorted(members)))}]\n"
            for name, members in sorted(policy.groups.items())
        ]
        parts.append("[groups]\n" + "".join(lines))
    for grant in sorted(policy.grants, key=_order):
        kind, name = grant.subject
        subject = "true" if kind is SubjectKind.ANONYMOUS else _quote(name)
        parts.append(
            f'[[grant]]\n{kind} = {subject}\nrole = "{grant.role}"\n'
            f'repositories = "{grant.repositories.pattern}"\n'
        )
    return "\n".join(parts)


def check_grant(grant: Grant) -> None:
    """Refuse a grant that a file cannot hold.

    Raises:
        InputInvalid: a user or group has an invalid name, anonymous would have more than a
            guest's role, or ``admin`` is on a part of the repositories.
    """
    if grant.subject == ANYONE:
        if grant.role not in ANONYMOUS_ROLES:
            able = " or ".join(sorted(ANONYMOUS_ROLES))
            raise InputInvalid(f"anonymous cannot have role {grant.role}, only {able}")
    else:
        check_name(grant.subject.name)
    if grant.role is Role.ADMIN and grant.repositories != EVERYTHING:
        raise InputInvalid(
            f"role {Role.ADMIN} is for the whole registry: grant it on '**', or grant "
            f"{Role.PROJECT_ADMIN}"
        )


def heading_of(text: str) -> str:
    """Return the comments that a file begins with."""
    kept = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        kept.append(line + "\n")
    return "".join(kept)


def _groups(table: object) -> dict[str, frozenset[str]]:
    if not isinstance(table, dict):
        raise InputInvalid("'groups' is not a table")
    groups = {}
    for name, members in table.items():
        where = f"groups.{name}" if name.isprintable() else "groups"
        _in(where, check_name, name)
        if not isinstance(members, list) or not all(isinstance(one, str) for one in members):
            raise InputInvalid(f"'{where}' is not a list of user names")
        groups[name] = frozenset(_in(where, check_name, member) for member in members)
    return groups


def _grants(tables: object, groups: Mapping[str, frozenset[str]]) -> list[Grant]:
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise InputInvalid("'grant' is not an array of tables: write [[grant]]")
    seen: dict[tuple[Subject, str], int] = {}
    grants = []
    for number, table in enumerate(tables, 1):
        where = f"grant {number}"
        grant = _in(where, _grant, table)
        if grant.subject.kind is SubjectKind.GROUP and grant.subject.name not in groups:
            raise InputInvalid(f"{where}: group {grant.subject.name!r} is not under [groups]")
        first = seen.setdefault(_key(grant), number)
        if first != number:
            raise InputInvalid(
                f"{where}: grant {first} is also to {grant.subject} on "
                f"'{grant.repositories.pattern}'"
            )
        grants.append(grant)
    return grants


def _grant(table: Mapping[str, Any]) -> Grant:
    _known_keys(table, _GRANT_KEYS)
    kinds = [kind for kind in SubjectKind if kind in table]
    if len(kinds) != 1:
        raise InputInvalid("needs exactly one of user, group and anonymous")
    kind = kinds[0]
    if kind is SubjectKind.ANONYMOUS:
        if table[kind] is not True:
            raise InputInvalid("'anonymous' can only be true")
        subject = ANYONE
    else:
        subject = Subject(kind, _text(table, kind))
    grant = Grant(
        subject, parse_role(_text(table, "role")), parse_glob(_text(table, "repositories"))
    )
    check_grant(grant)
    return grant


def _known_keys(table: Mapping[str, Any], known: frozenset[str]) -> None:
    for key in table:
        if key not in known:
            raise InputInvalid(f"unknown key {key[:64]!r} (keys are {', '.join(sorted(known))})")


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str):
        raise InputInvalid(f"'{key}' is missing or not a string")
    return value


def _in(where: str, function: Callable[[A], R], argument: A) -> R:
    """Call a function, and put the place in front of its error."""
    try:
        return function(argument)
    except InputInvalid as error:
        raise InputInvalid(f"{where}: {error.message}") from None


def _key(grant: Grant) -> tuple[Subject, str]:
    return grant.subject, grant.repositories.pattern


def _order(grant: Grant) -> tuple[int, str, str]:
    return _ORDER[grant.subject.kind], grant.subject.name, grant.repositories.pattern


def _quote(text: str) -> str:
    """Return a TOML basic string; names are printable, so only two characters need escaping."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
