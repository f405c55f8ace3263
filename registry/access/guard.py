"""Authenticates requests, authorizes them, and words the refusals.

An ``Authorization`` header alone decides who the caller is. Without one the session of a browser
does, on the routes that have sessions, and else a verified client certificate; without all of them
the caller is anonymous. The policy is asked for every need of every request, also where it allows
everything to everyone (``--auth none``): there is no second way into storage.

Wrong or stale credentials, and those of another registry, are an error only where credentials are
needed: their bearer has the rights of anonymous callers.

Challenges follow distribution's token specification and RFC 6750 section 3. A bearer token that
grants too little is answered 401 with ``insufficient_scope``, because clients then ask for another
token; a caller with a password or certificate could only repeat the request and gets 403. A refusal
names the repository as the client wrote it, which may stand for another one in a bundle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from mayfly.auth.basic import parse_basic
from mayfly.auth.errors import AuthError, CredentialsInvalid, TokenInvalid
from mayfly.auth.identity import ANONYMOUS, Identity
from mayfly.auth.policy import NameRange, Policy
from mayfly.auth.scope import CATALOG, NODE, REGISTRY, STATUS, STOP, Scope, render_scopes
from mayfly.registry.access.audit import Audit
from mayfly.registry.access.errors import AccessDenied, Unauthorized
from mayfly.registry.access.needs import AccessRequest, Need
from mayfly.registry.http.origin import DIRECT, Origins
from mayfly.registry.http.request import HTTPRequest

if TYPE_CHECKING:
    from mayfly.auth.robots import Robots
    from mayfly.auth.tokens import TokenIssuer
    from mayfly.auth.verify import CredentialVerifier
    from mayfly.registry.access.logins import Logins

REALM = "mayfly"
TOKEN_PATH = "/auth/token"

SAFE_METHODS = frozenset({"GET", "HEAD"})
"""Methods that change nothing."""

_MAX_HOST = 255
"""Characters of a host that a challenge repeats."""


class Caller(NamedTuple):
    """A caller and the policy of this moment. Made for one request, never changed."""

    identity: Identity
    policy: Policy

    def allows(self, need: Need) -> bool:
        """Whether the caller may do this."""
        return need.action in self.policy.resource_actions(self.identity, need.type, need.name)

    def can_list(self, repository: str) -> bool:
        """Whether the catalog names this repository to the caller."""
        return self.policy.can_list(self.identity, repository)

    def readable(self, *, listing: bool = False) -> list[NameRange]:
        """Return ranges of names that hold every repository that the caller may pull from."""
        return self.policy.readable(self.identity, listing=listing)


@dataclass(frozen=True)
class Authentication:
    """The parts that check credentials and issue tokens."""

    verifier: CredentialVerifier
    logins: Logins
    tokens: TokenIssuer
    robots: Robots


class Guard:
    """Admits requests or refuses them.

    Args:
        policy: returns the policy of this moment.
        authentication: None where the policy is open to everyone and credentials are ignored.
        certificate_identity: returns the caller that a verified client certificate names.
        audit: records refusals.
        origins: the URLs by which clients reach this registry.
    """

    def __init__(
        self,
        policy: Callable[[], Policy],
        authentication: Authentication | None,
        certificate_identity: Callable[[HTTPRequest], Identity | None],
        audit: Audit,
        origins: Origins = DIRECT,
    ) -> None:
        self._policy = policy
        self.authentication = authentication
        self._certificate_identity = certificate_identity
        self.audit = audit
        self._origins = origins

    async def identify(
        self, http: HTTPRequest, asked: AccessRequest, meant: AccessRequest | None = None
    ) -> Caller:
        """Return the caller of a request, whose rights `authorize` checks.

        Args:
            http: the request, for its credentials.
            asked: with names as the client wrote them. A refusal names these: it must not reveal
                that another name exists.
            meant: with the names that they may stand for; None where they stand for none. A caller
                without rights under either name is refused here. Both are looked at for every
                refusal, so that the time does not tell them apart.

        Raises:
            Unauthorized: the credentials are missing or wrong, or a token grants too little.
            AccessDenied: a known caller may not do this under either name, or the route has no
                rule.
        """
        request = meant or asked
        if request.public:
            return Caller(ANONYMOUS, self._policy())
        sessions = request.rule is not None and request.rule.session
        if sessions:
            self.refuse_other_sites(http, request)
        try:
            caller = Caller(await self._identify(http, sessions=sessions), self._policy())
        except AuthError as error:
            if self.open_to_anyone(request.needs()) or self.open_to_anyone(asked.needs()):
                return Caller(ANONYMOUS, self._policy())
            self.audit.refused(http, request, claimed_name(http), error.code, error.message)
            reason = "invalid_token" if isinstance(error, TokenInvalid) else None
            raise self._unauthorized(http, asked, error.message, reason) from None
        if meant is not None:
            missing = _missing(caller, meant.needs())
            if missing and _missing(caller, asked.needs()):
                raise self._refusal(http, meant, asked, caller.identity, missing)
        return caller

    def authorize(
        self,
        http: HTTPRequest,
        caller: Caller,
        request: AccessRequest,
        asked: AccessRequest | None = None,
    ) -> None:
        """Let a caller's request pass.

        Args:
            http: the request, for the audit and the challenge.
            caller: as `identify` returned it.
            request: with names resolved; rights are checked for these.
            asked: with names as the client wrote them; None where they are the same.

        Raises:
            Unauthorized: a login is needed, or a token grants too little.
            AccessDenied: the caller may not do this, or the route has no rule.
        """
        if request.public:
            return
        missing = _missing(caller, request.needs()) or self._renewable(request, caller)
        if missing or self._asks_for_proof(request, caller.identity):
            raise self._refusal(http, request, asked or request, caller.identity, missing)

    def open_to_anyone(self, wanted: Iterable[Need]) -> bool:
        """Return whether callers without credentials may do all this.

        Then stale ones must not fail it: nodes keep the credentials of other runs and registries.
        """
        anyone = Caller(ANONYMOUS, self._policy())
        allowed = [anyone.allows(need) for need in wanted]
        return bool(allowed) and all(allowed)

    async def _identify(self, http: HTTPRequest, *, sessions: bool) -> Identity:
        if self.authentication is None:
            return ANONYMOUS
        header = http.headers.get("Authorization")
        if header is None:
            session = self._session_identity(http) if sessions else None
            return session or self._certificate_identity(http) or ANONYMOUS
        scheme, _, value = header.partition(" ")
        if scheme.lower() == "bearer":
            return self.authentication.tokens.verify(value.strip(" "), time.time())
        return await self.login(http)

    def _session_identity(self, http: HTTPRequest) -> Identity | None:
        """Return the caller that a browser's session names; None without a session.

        Raises:
            TokenInvalid: it has ended, or its user was removed or has another password.
        """
        if self.authentication is None or "Cookie" not in http.headers:
            return None
        # Imported for browsers only.
        from mayfly.registry.access.sessions import token_of

        token = token_of(http)
        if token is None:
            return None
        claimed = self.authentication.tokens.verify_session(token, time.time())
        return replace(self.authentication.verifier.renew(claimed), source="session")

    def refuse_other_sites(self, http: HTTPRequest, request: AccessRequest) -> None:
        """Refuse a change that a page of another site may have caused (`access.sessions`).

        Raises:
            AccessDenied: it may have.
        """
        if request.method in SAFE_METHODS:
            return
        from mayfly.registry.access.sessions import is_same_origin, token_of

        same = is_same_origin(http, self.origin(http))
        if same is None and not request.public and "Authorization" not in http.headers:
            # Without these headers it is no browser, or an old one: allow it only if it carries no
            # cookie and no certificate.
            same = token_of(http) is None and self._certificate_identity(http) is None
        if same is False:
            text = "a page of another site may have asked for this"
            self.audit.refused(http, request, claimed_name(http), "denied", text)
            raise AccessDenied(text)

    def origin(self, http: HTTPRequest) -> str:
        """Return the URL of this registry for the client of a request, without a slash."""
        return self._origins.of(http)

    async def login(self, http: HTTPRequest) -> Identity:
        """Return the caller that Basic credentials or a certificate name; anonymous without both.

        Raises:
            CredentialsInvalid: the credentials are not right, or of another scheme.
        """
        assert self.authentication is not None
        header = http.headers.get("Authorization")
        if header is None:
            return self._certificate_identity(http) or ANONYMOUS
        name, password = parse_basic(header)
        return await self.check(http, name, password)

    async def check(self, http: HTTPRequest, name: str, password: str) -> Identity:
        """Return the caller with this name and password.

        Raises:
            CredentialsInvalid: they are wrong.
        """
        if self.authentication is None:
            raise CredentialsInvalid
        return await self.authentication.logins.authenticate(name, password, http.remote or "")

    def caller(self, identity: Identity) -> Caller:
        """Return a caller under the policy of this moment."""
        return Caller(identity, self._policy())

    def _renewable(self, request: AccessRequest, caller: Caller) -> list[Need]:
        """Return the optional needs that a token lacks and its bearer has.

        With any, the client is told to get a better token.
        """
        if caller.identity.access is None or not request.optional:
            return []
        bearer = Caller(replace(caller.identity, access=None), caller.policy)
        return [n for n in request.optional if not caller.allows(n) and bearer.allows(n)]

    def _asks_for_proof(self, request: AccessRequest, identity: Identity) -> bool:
        """Return whether the caller must log in; an anonymous token is enough of a login."""
        if self.authentication is None or request.rule is None or not request.rule.login:
            return False
        return identity.anonymous and identity.access is None

    def _refusal(
        self,
        http: HTTPRequest,
        request: AccessRequest,
        asked: AccessRequest,
        identity: Identity,
        missing: list[Need],
    ) -> Unauthorized | AccessDenied:
        if self.authentication is None:
            # There are no credentials, so nothing that the client could send instead.
            return AccessDenied(f"without authentication nobody may {_in_words(missing)}")
        if identity.access is None and identity.anonymous:
            # Not a denial yet: every client's first request comes without credentials.
            return self._unauthorized(http, asked, "authentication required", None)
        without = " without credentials" if identity.anonymous else ""
        detail = f"may not {_in_words(missing)}{without}"
        self.audit.refused(http, request, identity.name, "denied", detail)
        named_as = dict(zip(request.needs(), asked.needs(), strict=True))
        # A name may be valid only as it was mapped; then the optional need has no other one.
        if len(request.optional) == len(asked.optional):
            named_as |= zip(request.optional, asked.optional, strict=True)
        named = [named_as[need] for need in missing if need in named_as]
        needs = [{"type": n.type, "name": n.name, "action": n.action} for n in named]
        if identity.access is not None:
            message = f"the token does not grant {_listed(named)}"
            return self._unauthorized(http, asked, message, "insufficient_scope", needs)
        return AccessDenied(f"{identity.name} may not {_in_words(named)}", needs)

    def _unauthorized(
        self,
        http: HTTPRequest,
        asked: AccessRequest,
        message: str,
        error: str | None,
        detail: object = None,
    ) -> Unauthorized:
        realm = f"{self._origins.of(http)}{TOKEN_PATH}{_upstream(asked)}"
        parameters = [("realm", realm), ("service", REALM)]
        if scopes := render_scopes(_scopes(_all_needs(asked))):
            parameters.append(("scope", scopes))
        if error is not None:
            parameters.append(("error", error))
        challenge = "Bearer " + ",".join(f'{name}="{value}"' for name, value in parameters)
        return Unauthorized(message, challenge, detail)


def _missing(caller: Caller, wanted: Iterable[Need]) -> list[Need]:
    """Return the needs that a caller lacks the right for."""
    return [need for need in wanted if not caller.allows(need)]


def _all_needs(request: AccessRequest) -> tuple[Need, ...]:
    return (*request.needs(), *request.optional)


def _upstream(asked: AccessRequest) -> str:
    """Return the query that makes the token endpoint resolve names as this request does.

    The scope holds the name as the client wrote it; the repository it means may depend on ``ns``.
    """
    return f"?ns={quote(asked.ns, safe='')}" if 0 < len(asked.ns) <= _MAX_HOST else ""


_OF_REGISTRY = {
    CATALOG: "list the repositories",
    STATUS: "see the status, which takes a role on every repository",
    STOP: "stop it, which takes the role admin",
}
"""Needs of the whole registry in words, with the role that has them, by the need's name."""


def _in_words(missing: Iterable[Need]) -> str:
    """Return needs for people; a token's scope has `_listed`."""
    return ", ".join(
        _OF_REGISTRY.get(need.name, _listed([need])) if need.type == REGISTRY else _listed([need])
        for need in missing
    )


def _listed(missing: Iterable[Need]) -> str:
    return ", ".join(f"{need.action} on {need.type} {need.name}" for need in missing)


def _scopes(wanted: tuple[Need, ...]) -> list[Scope]:
    """Return the scopes that satisfy some needs, one for each resource.

    A node has none: no token speaks for it, and its name need not fit the grammar.
    """
    actions: dict[tuple[str, str], set[str]] = {}
    for need in wanted:
        if need.type != NODE:
            actions.setdefault((need.type, need.name), set()).add(need.action)
    return [Scope(kind, name, frozenset(found)) for (kind, name), found in actions.items()]


def claimed_name(http: HTTPRequest) -> str:
    """Return the name in refused Basic credentials, for the audit; "" where there is none."""
    try:
        return parse_basic(http.headers.get("Authorization", ""))[0]
    except CredentialsInvalid:
        return ""
