"""Access, refresh and session tokens, each checked on every request that carries it.

An access token contains the scopes that it grants; the policy is not asked again when it is used,
so its lifetime is short. A refresh token names the caller and is exchanged for access tokens, each
checked against the policy; `auth.verify.CredentialVerifier.renew` checks that the user still exists
and has the same password. A session token is the login of a browser. It names the caller as a
refresh token does, and the policy decides each time. The three differ by audience, and none is
accepted as another.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from mayfly.auth.claims import access_claim, identity_claims, read_access, read_identity
from mayfly.auth.errors import ScopeInvalid
from mayfly.auth.identity import Identity
from mayfly.auth.scope import Scope
from mayfly.auth.signing import MAX_LENGTH, Signer
from mayfly.auth.verified import VerifiedTokens

MIN_LIFETIME = 60
"""Least lifetime of an access token, in seconds: older docker clients assume this for less
(distribution's token specification). One issued just before a short-lived credential ends outlives
it by that."""

DEFAULT_LIFETIME = 300
"""Lifetime of an access token, in seconds."""

DEFAULT_REFRESH_LIFETIME = 12 * 3600
"""Lifetime of a refresh token, in seconds."""

SESSION_LIFETIME = 1800
"""Lifetime of a session token, in seconds. An open page gets a new one in time; only the session of
a short-lived credential is never longer than the first one."""

REFRESHABLE = frozenset({"basic", "robot", "refresh"})
"""Proofs that a refresh token is issued for. A certificate is shown in each connection anyway."""


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token, and its facts in the response."""

    token: str = field(repr=False)
    expires_in: int
    """Seconds from `issued_at`."""
    issued_at: int
    """Unix seconds."""

    @property
    def issued_at_text(self) -> str:
        """`issued_at` as RFC 3339 in UTC."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.issued_at))


class TokenIssuer:
    """Issues tokens and checks them.

    Args:
        key: see `auth.signing.Signer`.
        service: the name of this registry in challenges (``service=``) and the audience of its
            tokens.
        run: see `auth.signing.Signer`.
        lifetime: seconds an access token lives.
        refresh_lifetime: seconds a refresh token lives.

    Raises:
        ValueError: a lifetime is under `MIN_LIFETIME`, or the service's name is empty or holds
            a space (audiences of the other kinds do).
    """

    def __init__(
        self,
        key: bytes,
        service: str,
        run: str | None = None,
        lifetime: int = DEFAULT_LIFETIME,
        refresh_lifetime: int = DEFAULT_REFRESH_LIFETIME,
    ) -> None:
        if min(lifetime, refresh_lifetime) < MIN_LIFETIME:
            raise ValueError(f"a token lives at least {MIN_LIFETIME} seconds")
        if not service or " " in service:
            raise ValueError("a service name is not empty and holds no space")
        self._access = Signer(key, service, run)
        self._refresh = Signer(key, f"{service} refresh", run)
        self._session = Signer(key, f"{service} session", run)
        self._lifetime = lifetime
        self._refresh_lifetime = refresh_lifetime
        self._verified = VerifiedTokens(self._read_access)

    def issue(self, identity: Identity, scopes: Sequence[Scope], now: float) -> IssuedToken:
        """Issue an access token.

        Args:
            identity: of its owner.
            scopes: that it grants, as `auth.policy.Policy.grant` returned them.
            now: Unix seconds.

        Raises:
            ValueError: the identity is itself an access token's.
            ScopeInvalid: the scopes do not fit in a token.
        """
        _refuse_token(identity)
        issued_at = int(now)
        left = _left(identity, self._lifetime, issued_at)
        # Only an access token may outlive the proof: no other token is issued for it.
        lifetime = max(MIN_LIFETIME, left)
        claims = {**identity_claims(identity), "access": access_claim(scopes)}
        issued = _issue(self._access, identity.name, issued_at, lifetime, claims)
        if len(issued.token) > MAX_LENGTH:
            raise ScopeInvalid("the scopes asked for do not fit in one token; ask for fewer")
        return issued

    def issue_refresh(self, identity: Identity, now: float) -> IssuedToken | None:
        """Issue a refresh token; None for a caller whose proof is not in `REFRESHABLE`.

        Args:
            now: Unix seconds.

        Raises:
            ValueError: the identity is itself an access token's.
        """
        _refuse_token(identity)
        if identity.source not in REFRESHABLE:
            return None
        return _issue_login(self._refresh, identity, self._refresh_lifetime, now)

    def verify(self, token: str, now: float) -> Identity:
        """Return the owner of an access token, whose ``access`` is all that it grants.

        Args:
            now: Unix seconds.

        Raises:
            TokenInvalid: the token is not genuine, not an access token, or not valid now.
        """
        return self._verified(token, now)

    def verify_refresh(self, token: str, now: float) -> Identity:
        """Return the owner of a refresh token, as of its issue.

        Args:
            now: Unix seconds.

        Raises:
            TokenInvalid: the token is not genuine, not a refresh token, or not valid now.
        """
        return read_identity(self._refresh.verify(token, now), "refresh")

    def issue_session(self, identity: Identity, now: float) -> IssuedToken:
        """Issue a session token.

        Args:
            identity: of its owner, who logged in by a password or by a session.
            now: Unix seconds.

        Raises:
            ValueError: the identity is itself an access token's.
        """
        return _issue_login(self._session, identity, SESSION_LIFETIME, now)

    def verify_session(self, token: str, now: float) -> Identity:
        """Return the owner of a session token, as of its issue.

        Args:
            now: Unix seconds.

        Raises:
            TokenInvalid: the token is not genuine, not a session token, or not valid now.
        """
        return read_identity(self._session.verify(token, now), "session")

    def _read_access(self, token: str, now: float) -> Identity:
        claims = self._access.verify(token, now)
        return read_identity(claims, "token", read_access(claims))


def _refuse_token(identity: Identity) -> None:
    # Otherwise one that leaks could be renewed forever.
    if identity.access is not None:
        raise ValueError("no token is issued for an access token")


def _left(identity: Identity, lifetime: int, now: int) -> int:
    """Return a lifetime in seconds, cut to that of the caller's own proof."""
    return lifetime if identity.expires is None else min(lifetime, identity.expires - now)


def _issue_login(signer: Signer, identity: Identity, lifetime: int, now: float) -> IssuedToken:
    """Issue a token that names its owner, for whom the policy decides when it is used."""
    _refuse_token(identity)
    issued_at = int(now)
    left = _left(identity, lifetime, issued_at)
    return _issue(signer, identity.name, issued_at, left, identity_claims(identity))


def _issue(
    signer: Signer, name: str, issued_at: int, lifetime: int, claims: dict[str, object]
) -> IssuedToken:
    token = signer.sign(name, issued_at, issued_at + lifetime, claims)
    return IssuedToken(token, lifetime, issued_at)
