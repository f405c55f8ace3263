"""Identities and credentials: frozen values, made for each request."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Literal

from mayfly.auth.errors import CredentialsInvalid, InputInvalid
from mayfly.auth.globs import Glob
from mayfly.auth.roles import Role
from mayfly.auth.scope import Scope

Source = Literal["anonymous", "basic", "robot", "token", "refresh", "session", "certificate"]
"""The ways in which callers prove who they are."""

ROBOT_PREFIX = "robot+"
"""Prefix of the names of short-lived credentials (`auth.robots`), and of no other names."""

MAX_NAME_BYTES = 255
"""Longest user or group name in UTF-8 bytes: the limit of Apache's htpasswd."""

_NODE_PREFIX = "system:node:"


@dataclass(frozen=True, slots=True)
class Permission:
    """A role over some repositories, carried by a credential itself."""

    role: Role
    repositories: Glob


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller.

    Args:
        name: the user's name; "" for anonymous.
        source: the way the caller proved it.
        groups: that the proof names (a certificate does); the policy adds those of grants.toml.
        node: the node that the proof was issued for, if any.
        access: the scopes of an access token, which alone count; None where the policy decides.
        permissions: of a short-lived credential, in place of grants to its name; None for every
            other caller.
        expires: Unix second at which the proof ends; None if it does not.
        fingerprint: changes with the user's password; "" without one.
    """

    name: str
    source: Source
    groups: frozenset[str] = frozenset()
    node: str | None = None
    access: tuple[Scope, ...] | None = None
    permissions: tuple[Permission, ...] | None = None
    expires: int | None = None
    fingerprint: str = field(default="", repr=False)

    @property
    def anonymous(self) -> bool:
        """Whether the caller has no name."""
        return not self.name


@dataclass(frozen=True, slots=True)
class Credential:
    """A name and password to hand out."""

    name: str
    password: str = field(repr=False)
    expires: int | None = None
    """Unix second at which it ends; None if it ends with the run or never."""


ANONYMOUS = Identity("", "anonymous")


def check_name(name: str) -> str:
    """Return a name of a user or group if it is valid.

    It has at most `MAX_NAME_BYTES`, only printable characters, so that it can be logged as it is,
    no colon (RFC 7617 and htpasswd end the name there), no space at either end, no leading ``#``
    (an htpasswd comment), and not the prefix of short-lived credentials.

    Raises:
        InputInvalid: it is not valid.
    """
    if not name or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise InputInvalid(f"a name has 1 to {MAX_NAME_BYTES} bytes")
    if not name.isprintable() or ":" in name or name != name.strip() or name.startswith("#"):
        raise InputInvalid(
            f"invalid name {name[:64]!r}: printable characters, no colon, "
            "no space at the ends, not beginning with #"
        )
    if name.startswith(ROBOT_PREFIX):
        raise InputInvalid(
            f"invalid name {name[:64]!r}: {ROBOT_PREFIX} begins the names of "
            "short-lived credentials"
        )
    return name


def check_node(name: str) -> str:
    """Return the name of a node if it is valid: a user's name, or an IP address.

    Raises:
        InputInvalid: it is not valid.
    """
    # The zone of an IPv6 address may be any text.
    with contextlib.suppress(ValueError):
        if "%" not in name:
            ip_address(name)
            return name
    return check_name(name)


def from_certificate(certificate: Mapping[str, Any]) -> Identity:
    """Return the caller that a verified client certificate names.

    The common name is the user, each organization a group: Kubernetes' convention for X.509
    clients. ``system:node:NAME`` is the user and node ``NAME``.

    Args:
        certificate: as `ssl.SSLSocket.getpeercert` returns it.

    Raises:
        CredentialsInvalid: it has no common name or several, or a name is not valid.
    """
    subject = [pair for part in certificate.get("subject", ()) for pair in part]
    names = [value for key, value in subject if key == "commonName"]
    groups = [value for key, value in subject if key == "organizationName"]
    if len(names) != 1:
        raise CredentialsInvalid
    node = names[0].removeprefix(_NODE_PREFIX)
    try:
        return Identity(
            check_name(node),
            "certificate",
            groups=frozenset(check_name(group) for group in groups if ":" not in group),
            node=node if node != names[0] else None,
        )
    except InputInvalid:
        raise CredentialsInvalid from None
