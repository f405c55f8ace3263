"""Short-lived credentials: user names and passwords that expire by themselves.

A kubelet takes only a name and a password, from a Secret. The password is therefore a signed token
with permissions and an end; nothing is stored, and checking it takes microseconds instead of a
bcrypt. The name is ``robot+NAME``, which no htpasswd user can have, so that it decides how the
password is checked. (Harbor's ``robot$NAME`` would be expanded by shells.)

Such a credential has the permissions in its password and those of anonymous callers; grants.toml
gives it nothing else. It ends with its lifetime, with the run, or with the signing key: a new key
revokes all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mayfly.auth.claims import permission_claim, read_identity
from mayfly.auth.errors import CredentialsInvalid, InputInvalid, TokenInvalid
from mayfly.auth.identity import ROBOT_PREFIX, Credential, Identity, Permission
from mayfly.auth.roles import ROLE_ACTIONS, Role
from mayfly.auth.signing import MAX_LENGTH, Signer
from mayfly.auth.verified import VerifiedTokens

MIN_LIFETIME = 60
"""Least lifetime of a credential, in seconds."""

MAX_LIFETIME = 30 * 24 * 3600
"""Longest lifetime of a credential, in seconds. Make a user for more."""

MAX_PERMISSIONS = 16
"""Most permissions in one credential."""

_AUDIENCE = "mayfly robot"  # no access token's: a service's name holds no space
_NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")
_MAX_NAME = 200
_REFUSED = frozenset({Role.PROJECT_ADMIN, Role.ADMIN})


class Robots:
    """Issues short-lived credentials and checks them.

    Args:
        key: see `auth.signing.Signer`.
        run: see there.
    """

    def __init__(self, key: bytes, run: str | None = None) -> None:
        self._signer = Signer(key, _AUDIENCE, run)
        self._verified = VerifiedTokens(self._read)

    def issue(
        self,
        name: str,
        permissions: Sequence[Permission],
        lifetime: int,
        now: float,
        node: str | None = None,
    ) -> Credential:
        """Issue a credential.

        Args:
            name: a name of lower-case letters, digits and ``. _ -``, without the prefix.
            permissions: roles and the repositories they are for.
            lifetime: in seconds.
            now: Unix seconds.
            node: the only node that uses it, so that its pulls count as that node's.

        Raises:
            InputInvalid: the name is not of that form, the lifetime out of bounds, there are no
                or too many permissions, or one has a role of administrators.
        """
        _check(name, permissions, lifetime)
        full_name = ROBOT_PREFIX + name
        expires = int(now) + lifetime
        claims: dict[str, object] = {"permissions": permission_claim(permissions)}
        if node is not None:
            claims["node"] = node
        password = self._signer.sign(full_name, int(now), expires, claims)
        if len(password) > MAX_LENGTH:
            raise InputInvalid("the repository globs are too long for one credential")
        return Credential(full_name, password, expires)

    def verify(self, name: str, password: str, now: float) -> Identity:
        """Return the identity with this name and password.

        Args:
            now: Unix seconds.

        Raises:
            CredentialsInvalid: the password is not genuine, has expired, or has another name.
        """
        try:
            identity = self._verified(password, now)
        except TokenInvalid:
            raise CredentialsInvalid from None
        if identity.name != name or identity.permissions is None:
            raise CredentialsInvalid
        return identity

    def _read(self, password: str, now: float) -> Identity:
        # A Secret stays as it is when the registry's clock is set back.
        claims = self._signer.verify(password, now, early=True)
        return read_identity(claims, "robot")


def _check(name: str, permissions: Sequence[Permission], lifetime: int) -> None:
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise InputInvalid(
            f"invalid credential name {name[:64]!r}: up to {_MAX_NAME} lower-case letters, "
            "digits, and . _ - between them"
        )
    if not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
        raise InputInvalid(
            f"a credential lives {MIN_LIFETIME} seconds to {MAX_LIFETIME // 86400} days, "
            f"not {lifetime} seconds"
        )
    if not 1 <= len(permissions) <= MAX_PERMISSIONS:
        raise InputInvalid(f"a credential has 1 to {MAX_PERMISSIONS} permissions")
    for held in permissions:
        if held.role in _REFUSED:
            able = ", ".join(role for role in ROLE_ACTIONS if role not in _REFUSED)
            raise InputInvalid(f"a credential cannot have role {held.role} (it can have {able})")
