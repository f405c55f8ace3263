"""Converts identities to the claims of a token and back.

Besides the registered claims and distribution's ``access`` there are ``node``, ``groups``,
``permissions`` (``[[role, glob], ...]``) and ``fingerprint``, each only if it is not empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mayfly.auth.errors import InputInvalid, ScopeInvalid, TokenInvalid
from mayfly.auth.globs import parse_glob
from mayfly.auth.identity import Identity, Permission, Source
from mayfly.auth.roles import parse_role
from mayfly.auth.scope import MAX_SCOPES, Scope


def identity_claims(identity: Identity) -> dict[str, object]:
    """Return the claims for all of an identity except its name, access and times."""
    permissions = identity.permissions
    claims = {
        "node": identity.node,
        "groups": sorted(identity.groups) or None,
        "permissions": None if permissions is None else permission_claim(permissions),
        "fingerprint": identity.fingerprint or None,
    }
    return {name: value for name, value in claims.items() if value is not None}


def permission_claim(permissions: Iterable[Permission]) -> list[list[str]]:
    """Return the value of ``permissions``."""
    return [[held.role.value, held.repositories.pattern] for held in permissions]


def access_claim(scopes: Iterable[Scope]) -> list[dict[str, object]]:
    """Return the value of ``access``, in the form of distribution's token specification."""
    return [
        {"type": scope.type, "name": scope.name, "actions": sorted(scope.actions)}
        for scope in scopes
    ]


def read_identity(
    claims: Mapping[str, Any], source: Source, access: tuple[Scope, ...] | None = None
) -> Identity:
    """Return the identity in claims that `auth.signing.Signer.verify` returned.

    Raises:
        TokenInvalid: a claim is malformed (``bad claims``).
    """
    permissions = claims.get("permissions")
    return Identity(
        name=claims["sub"],
        source=source,
        groups=frozenset(_strings(claims.get("groups", []))),
        node=_string(claims["node"]) if "node" in claims else None,
        access=access,
        permissions=None if permissions is None else _permissions(permissions),
        expires=claims["exp"],
        fingerprint=_string(claims.get("fingerprint", "")),
    )


def read_access(claims: Mapping[str, Any]) -> tuple[Scope, ...]:
    """Return the scopes in ``access``.

    Raises:
        TokenInvalid: it is missing or malformed (``bad claims``).
    """
    entries = claims.get("access")
    if not isinstance(entries, list) or len(entries) > MAX_SCOPES:
        raise TokenInvalid("bad claims")
    return tuple(_scope(entry) for entry in entries)


def _scope(entry: object) -> Scope:
    if not isinstance(entry, dict) or entry.keys() != {"type", "name", "actions"}:
        raise TokenInvalid("bad claims")
    try:
        return Scope(
            _string(entry["type"]), _string(entry["name"]), frozenset(_strings(entry["actions"]))
        )
    except ScopeInvalid:
        raise TokenInvalid("bad claims") from None


def _permissions(value: object) -> tuple[Permission, ...]:
    if not isinstance(value, list):
        raise TokenInvalid("bad claims")
    return tuple(_permission(_strings(pair)) for pair in value)


def _permission(pair: list[str]) -> Permission:
    try:
        role, pattern = pair
        return Permission(parse_role(role), parse_glob(pattern))
    except (ValueError, InputInvalid):
        raise TokenInvalid("bad claims") from None


def _strings(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TokenInvalid("bad claims")
    return [_string(item) for item in value]


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TokenInvalid("bad claims")
    return value
