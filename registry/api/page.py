"""Handlers of the rollout page: page, files, events, the login of browsers, and the stop."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing

from mayfly.auth.errors import CredentialsInvalid
from mayfly.auth.identity import Identity
from mayfly.registry.access.errors import AccessDenied, Unauthorized
from mayfly.registry.access.guard import REALM
from mayfly.registry.access.needs import STATUS, STOP, AccessRequest
from mayfly.registry.api import health
from mayfly.registry.api.context import COMMON_HEADERS, JSON, Context, answer
from mayfly.registry.api.errors import EndpointUnknown, ParameterInvalid
from mayfly.registry.api.request import Request, read_form
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.threads import in_thread

SEND_SECONDS = 20.0
"""For a browser to take one piece of an event (`_PIECE`); slower ones are disconnected."""

_PIECE = 64 * 1024
"""Bytes of an event that may wait for a slow browser."""

_MAX_FORM = 8 * 1024

_HTML = "text/html"

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer, with which forms are posted from the origin "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every page: no foreign content, no script in it, no frame around it."""

_NEVER_STORED = {"Cache-Control": "no-store", "Vary": "Accept, Cookie, Authorization"}


async def root(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET ``/``: the page for browsers, and a line of text for all others."""
    if not _is_browser(http):
        return await health.root(context, http, request)
    # Imported for browsers only.
    from mayfly.registry.page import html

    asked = AccessRequest("root", http.method, STATUS)
    guard = context.guard
    try:
        caller = await guard.identify(http, asked)
        guard.authorize(http, caller, asked)
    except (Unauthorized, AccessDenied) as error:
        return _page(html.login_page(_why_refused(context, http, request, error)))
    view = await context.lifecycle.feed().view()
    may_stop = all(map(caller.allows, STOP.needs))
    user = caller.identity.name
    body = await in_thread(html.rollout_page, view, user, may_stop=may_stop)
    return _page(body, _renewed(context, http, caller.identity))


def _why_refused(
    context: Context, http: HTTPRequest, request: Request, error: Unauthorized | AccessDenied
) -> str:
    from mayfly.registry.access.sessions import keeps_cookies, token_of

    if not keeps_cookies(context.guard.origin(http)):
        return "Browsers log in over HTTPS only, or on this machine itself."
    if request.parameter("login") == "failed":
        return "This name and password are not right."
    if isinstance(error, AccessDenied):
        return "This user may not see the rollout: it takes a role on every repository."
    return "" if token_of(http) is None else "Your session has ended."


def _is_browser(http: HTTPRequest) -> bool:
    return _HTML in http.headers.get("Accept", "")


def _page(body: str, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    return answer(
        status,
        body=body.encode("utf-8", "replace"),
        content_type=f"{_HTML}; charset=utf-8",
        headers=PAGE_HEADERS | _NEVER_STORED | (headers or {}),
    )


async def file(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET: a file of the page: style, script or icon."""
    from mayfly.registry.page import files

    found = await in_thread(files.find, request.file)
    if found is None:
        raise EndpointUnknown("the page has no such file")
    headers = PAGE_HEADERS | {"Cache-Control": "no-cache", "ETag": found.etag}
    if http.headers.get("If-None-Match") == found.etag:
        return answer(304, headers=headers)
    return answer(body=found.body, content_type=found.content_type, headers=headers)


async def events(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET: server-sent events of the state, each with the changes since the one before."""
    feed = context.lifecycle.feed()
    headers = (
        COMMON_HEADERS
        | {
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "X-Content-Type-Options": "nosniff",
        }
        | _renewed(context, http, context.caller.identity)
    )
    response = Response(headers=headers)
    last_id = http.headers.get("Last-Event-ID")
    http.begin(response)
    async with aclosing(feed.events(last_id, http.remote or "", http.drop)) as found:
        async for event in found:
            await _send(http, event)
    return response


async def _send(http: HTTPRequest, event: bytes) -> None:
    """Send an event in pieces, so that little of it waits in memory.

    Raises:
        ConnectionError: the browser is gone, or too slow.
    """
    try:
        for start in range(0, len(event), _PIECE):
            async with asyncio.timeout(SEND_SECONDS):
                await http.send_piece(event[start : start + _PIECE])
    except TimeoutError:
        http.drop()
        raise ConnectionResetError("the browser takes no more") from None


async def log_in(context: Context, http: HTTPRequest, request: Request) -> Response:
    """POST: begin a session, for a name and password in a form."""
    from mayfly.registry.access.sessions import keeps_cookies

    authentication = context.guard.authentication
    if authentication is None:
        raise EndpointUnknown("this registry runs without authentication")
    context.guard.refuse_other_sites(http, request.access())
    body = await http.read_body(_MAX_FORM)
    if len(body) > _MAX_FORM:
        raise ParameterInvalid(f"form is larger than {_MAX_FORM} bytes")
    form = read_form(body.decode("utf-8", "replace"))
    name, password = (form.get(field, ("",))[0] for field in ("username", "password"))
    if not keeps_cookies(context.guard.origin(http)):
        raise ParameterInvalid("a session takes HTTPS, or a client on this machine itself")
    try:
        identity = await context.guard.check(http, name, password)
    except CredentialsInvalid as error:
        context.guard.audit.refused(http, request.access(), name, error.code, error.message)
        if _is_browser(http):
            return _to_page("/?login=failed")
        raise Unauthorized(error.message, f'Basic realm="{REALM}"') from None
    issued = authentication.tokens.issue_session(identity, time.time())
    headers = _cookie(context, http, issued.token)
    return _to_page("/", headers) if _is_browser(http) else answer(204, headers=headers)


async def log_out(context: Context, http: HTTPRequest, request: Request) -> Response:
    """POST: end the session of this browser."""
    context.guard.refuse_other_sites(http, request.access())
    headers = _cookie(context, http, "")
    return _to_page("/", headers) if _is_browser(http) else answer(204, headers=headers)


async def stop(context: Context, http: HTTPRequest, request: Request) -> Response:
    """POST: drain and end the server, as `mayfly stop` does, without waiting for it."""
    context.lifecycle.stop(f"{context.caller.identity.name} asked for it on the page or by its URL")
    if _is_browser(http):
        from mayfly.registry.page import html

        # No redirect: the registry may be gone before the browser has followed it.
        return _page(html.stopping_page(), status=202)
    return answer(
        202, json.dumps({"state": "draining"}).encode(), JSON, {"Cache-Control": "no-store"}
    )


def _to_page(location: str, headers: dict[str, str] | None = None) -> Response:
    return answer(
        303, headers={"Location": location, "Cache-Control": "no-store"} | (headers or {})
    )


def _renewed(context: Context, http: HTTPRequest, identity: Identity) -> dict[str, str]:
    """Return the header that renews the session by which a caller came; none for other callers."""
    authentication = context.guard.authentication
    if authentication is None or identity.source != "session":
        return {}
    token = authentication.tokens.issue_session(identity, time.time()).token
    return _cookie(context, http, token)


def _cookie(context: Context, http: HTTPRequest, token: str) -> dict[str, str]:
    from mayfly.registry.access.sessions import set_cookie

    path = context.guard.origin(http).partition("://")[2].partition("/")[2]
    return {"Set-Cookie": set_cookie(token, f"/{path}")}
