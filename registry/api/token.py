"""Handlers of ``/auth/token``: exchange credentials for a token.

GET is distribution's token specification (docker, podman, skopeo), POST its OAuth2 variant
(containerd, docker with a stored identity token). Both grant the requested scopes as far as the
policy allows them; granting less than requested is no error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace

from mayfly.auth.errors import CredentialsInvalid, TokenInvalid
from mayfly.auth.identity import ANONYMOUS, Identity
from mayfly.auth.scope import REPOSITORY, Scope, parse_scopes, render_scopes
from mayfly.registry.access.errors import Unauthorized
from mayfly.registry.access.guard import REALM, Authentication, claimed_name
from mayfly.registry.access.needs import Need
from mayfly.registry.api.context import AS_WRITTEN, JSON, Context, answer
from mayfly.registry.api.errors import EndpointUnknown, ParameterInvalid
from mayfly.registry.api.request import Request, read_form
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response

MAX_FORM = 32 * 1024
"""Most bytes of a posted form; a refresh token and scopes take a few KiB."""

_BASIC = f'Basic realm="{REALM}"'


async def get(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET: issue an access token for Basic credentials, or for none."""
    authentication = _authentication(context)
    scopes = request.query.get("scope", ())
    try:
        identity = await context.guard.login(http)
    except CredentialsInvalid as error:
        identity = _anonymous_instead(context, http, request, claimed_name(http), scopes, error)
    offline = request.parameter("offline_token") == "true"
    return _issue(context, request, authentication, identity, scopes, offline)


async def post(context: Context, http: HTTPRequest, request: Request) -> Response:
    """POST: issue an access token for a password or a refresh token."""
    authentication = _authentication(context)
    body = await http.read_body(MAX_FORM)
    if len(body) > MAX_FORM:
        raise ParameterInvalid(f"form is larger than {MAX_FORM} bytes")
    form = read_form(body.decode("utf-8", "replace"))

    def field(name: str) -> str:
        return form.get(name, ("",))[0]

    try:
        match field("grant_type"):
            case "password":
                identity = await context.guard.check(http, field("username"), field("password"))
            case "refresh_token":
                claimed = authentication.tokens.verify_refresh(field("refresh_token"), time.time())
                identity = authentication.verifier.renew(claimed)
            case other:
                raise ParameterInvalid(
                    f"grant_type {other[:40]!r} is not supported (password, refresh_token are)"
                )
    except (CredentialsInvalid, TokenInvalid) as error:
        scopes = form.get("scope", ())
        identity = _anonymous_instead(context, http, request, field("username"), scopes, error)
    offline = field("access_type") == "offline"
    return _issue(context, request, authentication, identity, form.get("scope", ()), offline)


def _issue(
    context: Context,
    request: Request,
    authentication: Authentication,
    identity: Identity,
    asked: Iterable[str],
    offline: bool,
) -> Response:
    now = time.time()
    written = parse_scopes(asked)
    # Each is granted by the caller's rights in the repository of exactly that name.
    wanted = [*written, *_meant(context, request, written)]
    granted = context.guard.caller(identity).policy.grant(identity, wanted)
    scopes = tuple(dict.fromkeys(granted))
    issued = authentication.tokens.issue(identity, scopes, now)
    document = {
        "token": issued.token,
        "access_token": issued.token,
        "expires_in": issued.expires_in,
        "issued_at": issued.issued_at_text,
        "scope": render_scopes(scopes),
    }
    if offline and (refresh := authentication.tokens.issue_refresh(identity, now)):
        document["refresh_token"] = refresh.token
    headers = {"Cache-Control": "no-store"}
    return answer(body=json.dumps(document).encode(), content_type=JSON, headers=headers)


def _meant(context: Context, request: Request, scopes: Iterable[Scope]) -> list[Scope]:
    """Return the same scopes for the names that theirs stand for: ``x`` may be ``library/x``.

    None where all names mean themselves. Tables alone decide it, so that its time tells no caller
    which names the store has.
    """
    if context.names is AS_WRITTEN:
        return []
    ns = request.parameter("ns")
    return [
        replace(one, name=context.names.meant(one.name, ns)) if one.type == REPOSITORY else one
        for one in scopes
    ]


def _authentication(context: Context) -> Authentication:
    if context.guard.authentication is None:
        raise EndpointUnknown("this registry runs without authentication")
    return context.guard.authentication


def _anonymous_instead(
    context: Context,
    http: HTTPRequest,
    request: Request,
    name: str,
    asked: Iterable[str],
    error: CredentialsInvalid | TokenInvalid,
) -> Identity:
    """Return the anonymous caller in place of one whose credentials are refused.

    Raises:
        Unauthorized: not every requested scope is open to anyone, or none is requested: a login
            must fail.
    """
    written = parse_scopes(asked)
    either = [_needs(written), _needs(_meant(context, request, written))]
    if any(context.guard.open_to_anyone(wanted) for wanted in either):
        return ANONYMOUS
    context.guard.audit.refused(http, request.access(), name, error.code, error.message)
    raise Unauthorized(error.message, _BASIC) from None


def _needs(scopes: Iterable[Scope]) -> list[Need]:
    return [Need(one.type, one.name, action) for one in scopes for action in one.actions]
