"""The login of a browser: a cookie with a session token, and the defence of requests that use it.

Only the routes whose rule says so (`needs.Rule.session`) look at the cookie, so that it opens
nothing else: no push, no pull, no token. It is ``HttpOnly`` (no script reads it), ``Secure`` (no
plain HTTP carries it, except on loopback, which browsers count as secure) and ``SameSite=Strict``
(no request that another site causes carries it).

A browser adds cookies and client certificates to requests by itself. So a request that changes
something, and has no ``Authorization``, must say that a page of this registry caused it: by
``Sec-Fetch-Site``, which no page can set, or by ``Origin`` where a browser sends no
``Sec-Fetch-Site`` (RFC 6265bis, 8.8; W3C Fetch Metadata).
"""

from __future__ import annotations

from mayfly.registry.address import is_loopback
from mayfly.registry.http.request import HTTPRequest

COOKIE = "mayfly-session"

_MAX_COOKIES = 64


def token_of(http: HTTPRequest) -> str | None:
    """Return the session token of a request; None without one. Of several the first counts."""
    for header in http.headers.getall("Cookie", []):
        for pair in header.split(";", _MAX_COOKIES)[:_MAX_COOKIES]:
            name, is_pair, value = pair.strip(" \t").partition("=")
            if is_pair and name == COOKIE and value:
                return value
    return None


def set_cookie(token: str, path: str) -> str:
    """Return the ``Set-Cookie`` that begins or renews a session. It ends with the browser.

    Args:
        token: a session token; "" ends the session.
        path: of the registry, as clients see it.
    """
    ended = "" if token else "; Max-Age=0"
    return f"{COOKIE}={token}; Path={path}{ended}; Secure; HttpOnly; SameSite=Strict"


def keeps_cookies(origin: str) -> bool:
    """Return whether a browser keeps a ``Secure`` cookie of a registry with this URL."""
    scheme, host = _scheme_and_host(origin)
    return scheme == "https" or is_loopback(host)


def is_same_origin(http: HTTPRequest, origin: str) -> bool | None:
    """Return whether a page of this registry caused a request; None if no browser says so.

    Args:
        http: the request.
        origin: the URL of this registry for its client.
    """
    site = http.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    said = http.headers.get("Origin")
    if said is None:
        return None
    # Compared as text: whatever is no origin of this registry is another one.
    scheme, host = _scheme_and_host(origin)
    said_scheme, _, said_host = said.partition("://")
    if said_host not in (host, http.headers.get("Host")):
        return False
    # Behind a proxy that is not trusted HTTPS looks like HTTP, never the other way round.
    return said_scheme in (scheme, "https")


def _scheme_and_host(origin: str) -> tuple[str, str]:
    """Return the scheme of a URL, and its host with the port."""
    scheme, _, rest = origin.partition("://")
    return scheme, rest.partition("/")[0]
