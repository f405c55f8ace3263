"""Roles and the actions each one carries.

Names and ladder are Harbor's (its ``rbac_role.go``), so that grants can be taken over from there;
``admin`` is its system administrator. Some differences between Harbor's roles do not exist in this
registry: members and logs of a project (``limitedGuest`` and ``guest``), changing its members over
HTTP (``maintainer`` and ``projectAdmin``), settings of the server (``admin``). Here only the places
where they can be granted differ: ``admin`` on all repositories at once, and neither ``admin`` nor
``projectAdmin`` to a short-lived credential.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from mayfly.auth.errors import InputInvalid

PULL = "pull"
"""Read manifests, blobs, referrers and tag lists; be told the repository exists."""

PUSH = "push"
"""Upload blobs, put manifests and tags."""

DELETE = "delete"
"""Delete tags, manifests and blobs."""


class Role(StrEnum):
    """A named set of actions, as grants.toml and ``--role`` spell it."""

    LIMITED_GUEST = "limitedGuest"
    GUEST = "guest"
    DEVELOPER = "developer"
    MAINTAINER = "maintainer"
    PROJECT_ADMIN = "projectAdmin"
    ADMIN = "admin"


ROLE_ACTIONS: Mapping[Role, frozenset[str]] = MappingProxyType(
    {
        Role.LIMITED_GUEST: frozenset({PULL}),
        Role.GUEST: frozenset({PULL}),
        Role.DEVELOPER: frozenset({PULL, PUSH}),
        Role.MAINTAINER: frozenset({PULL, PUSH, DELETE}),
        Role.PROJECT_ADMIN: frozenset({PULL, PUSH, DELETE}),
        Role.ADMIN: frozenset({PULL, PUSH, DELETE}),
    }
)
"""The whole table: actions that are not here are denied."""


def parse_role(text: str) -> Role:
    """Read a role's name, exactly as Harbor spells it.

    Raises:
        InputInvalid: there is no such role.
    """
    try:
        return Role(text)
    except ValueError:
        known = ", ".join(Role)
        raise InputInvalid(f"no role {text[:40]!r} (roles are {known})") from None
