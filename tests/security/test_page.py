"""The rollout page over HTTP: its login, forgery from other sites, frames, and what is stored."""

from __future__ import annotations

import dataclasses
import time
from http.cookies import SimpleCookie
from urllib.parse import urlencode

import pytest

from mayfly.auth.globs import parse_glob
from mayfly.auth.identity import Identity
from mayfly.auth.policy import ANYONE, Grant, Policy
from mayfly.auth.roles import Role
from mayfly.auth.tokens import SESSION_LIFETIME
from mayfly.registry.access.sessions import COOKIE
from mayfly.registry.api.routes import ROUTES
from mayfly.registry.page import files
from tests.security.registries import Registry, by_password, password_of
from tests.support.client import Answer, Header
from tests.support.views import view

HTML = ("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
SAME_SITE = ("Sec-Fetch-Site", "same-origin")
FORM = ("Content-Type", "application/x-www-form-urlencoded")


async def log_in(
    made: Registry, name: str, *headers: Header, password: str | None = None
) -> Answer:
    """Post the form of the login."""
    password = password_of(name) if password is None else password
    form = urlencode({"username": name, "password": password}).encode()
    return await made.server.ask("POST", "/mayfly/v1/session", [FORM, *headers], form)


async def session_of(made: Registry, name: str = "admin") -> Header:
    """The cookie of a user who has logged in."""
    answer = await log_in(made, name, HTML, SAME_SITE)
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    cookie = SimpleCookie(answer.headers["Set-Cookie"])[COOKIE]
    assert cookie["secure"] and cookie["httponly"] and cookie["path"] == "/"
    assert cookie["samesite"] == "Strict"
    return ("Cookie", f"other=1; {COOKIE}={cookie.value}")


async def page(made: Registry, *headers: Header) -> Answer:
    """The page as a browser gets it."""
    return await made.server.ask("GET", "/", [HTML, *headers])


async def test_clients_without_a_browser_get_the_line_of_old(closed: Registry) -> None:
    """Whatever they may do, and nothing is set for them."""
    for headers in ([], [("Accept", "*/*")], [by_password("admin")]):
        answer = await closed.server.ask("GET", "/", headers)
        assert (answer.status, answer.body) == (200, b"Mayfly, a container registry\n")
        assert "Set-Cookie" not in answer.headers


async def test_login_and_logout(closed: Registry) -> None:
    """A browser without a session gets the login, with one the page, and after it the login."""
    before = await page(closed)
    assert before.status == 200
    assert b'action="mayfly/v1/session"' in before.body
    assert b"worker-1" not in before.body
    cookie = await session_of(closed)
    within = await page(closed, cookie)
    assert b"worker-1" in within.body
    assert b'action="mayfly/v1/stop"' in within.body
    out = await closed.server.ask("POST", "/mayfly/v1/logout", [HTML, SAME_SITE, cookie])
    assert "Max-Age=0" in out.headers["Set-Cookie"]
    assert b'action="mayfly/v1/session"' in (await page(closed)).body


async def test_wrong_password(closed: Registry) -> None:
    """A browser is sent back to the login, which says so; others get an error. Both are counted."""
    refused = await log_in(closed, "admin", HTML, SAME_SITE, password="wrong")
    assert (refused.status, refused.headers["Location"]) == (303, "/?login=failed")
    assert "Set-Cookie" not in refused.headers
    said = await closed.server.ask("GET", "/?login=failed", [HTML])
    assert b"are not right" in said.body
    assert (await log_in(closed, "admin", password="wrong")).code == "UNAUTHORIZED"
    assert closed.guard.audit.refusals["admin", "127.0.0.1"] == 2


async def test_rights_are_those_of_the_status(closed: Registry) -> None:
    """A user without a role on everything may log in and sees no rollout; nor does a bad cookie."""
    cookie = await session_of(closed, "developer")
    answer = await page(closed, cookie)
    assert b"may not see the rollout" in answer.body
    assert b"worker-1" not in answer.body
    bad = await page(closed, ("Cookie", f"{COOKIE}=nonsense"))
    assert b"session has ended" in bad.body
    assert b"worker-1" not in bad.body


async def test_a_refusal_says_what_the_right_takes(closed: Registry) -> None:
    """In words: the action of these scopes, `*`, is none."""
    own = by_password("developer")
    for method, path, what in (
        ("GET", "/mayfly/v1/status", "see the status, which takes a role on every repository"),
        ("POST", "/mayfly/v1/stop", "stop it, which takes the role admin"),
    ):
        answer = await closed.server.ask(method, path, [own])
        assert (answer.status, answer.code) == (403, "DENIED")
        assert f"developer may not {what}".encode() in answer.body


async def test_a_session_opens_nothing_else(closed: Registry) -> None:
    """No route accepts the cookie but those of the page, the status and the metrics."""
    _, cookie = await session_of(closed)
    accepting = {
        route.endpoint for route in ROUTES if route.rule is not None and route.rule.session
    }
    assert accepting == {"status", "events", "metrics", "stop"}
    token = cookie.partition(f"{COOKIE}=")[2]
    for headers in ([("Cookie", cookie)], [("Authorization", f"Bearer {token}")]):
        answer = await closed.server.ask("GET", "/v2/", [SAME_SITE, *headers])
        assert answer.status == 401
    for cookies in ([("Cookie", cookie)],):
        status = await closed.server.ask("GET", "/mayfly/v1/status", cookies)
        assert status.status == 200
    form = urlencode({"grant_type": "refresh_token", "refresh_token": token}).encode()
    assert (await closed.server.ask("POST", "/auth/token", [FORM], form)).status == 401


async def test_other_tokens_are_no_session(closed: Registry) -> None:
    """Neither an access token nor a refresh token, nor a session that has ended."""
    now = time.time()
    authentication = closed.guard.authentication
    assert authentication is not None
    identity = authentication.verifier.check("admin", password_of("admin"))
    refresh = closed.issuer.issue_refresh(identity, now)
    assert refresh is not None
    tokens = [
        closed.token("registry:status:*", now=now),
        refresh.token,
        closed.issuer.issue_session(identity, now - SESSION_LIFETIME - 60).token,
    ]
    for token in tokens:
        answer = await closed.server.ask(
            "GET", "/mayfly/v1/status", [("Cookie", f"{COOKIE}={token}")]
        )
        assert answer.status == 401
    good = closed.issuer.issue_session(identity, now).token
    cookies = ("Cookie", f"{COOKIE}={good}")
    assert (await closed.server.ask("GET", "/mayfly/v1/status", [cookies])).status == 200
    changed = dataclasses.replace(identity, fingerprint="another")
    stale = closed.issuer.issue_session(changed, now).token
    answer = await closed.server.ask("GET", "/mayfly/v1/status", [("Cookie", f"{COOKIE}={stale}")])
    assert answer.status == 401, "the user has another password by now"


async def test_a_session_is_renewed_by_looking(closed: Registry) -> None:
    """The page and its events renew it; for other callers nothing is set."""
    closed.hooks.feed().drain()
    cookie = await session_of(closed)
    for path in ("/", "/mayfly/v1/events"):
        renewed = await closed.server.ask("GET", path, [HTML, cookie])
        assert COOKIE in renewed.headers["Set-Cookie"], path
        other = await closed.server.ask("GET", path, [HTML, by_password("admin")])
        assert other.status == 200
        assert "Set-Cookie" not in other.headers, path


async def test_a_refused_session_is_not_renewed(
    closed: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where anyone may look it is ignored, and no session is made for a caller without a name."""
    policy = Policy([Grant(ANYONE, Role.GUEST, parse_glob("**"))])
    monkeypatch.setattr(closed.guard, "_policy", lambda: policy)
    answer = await page(closed, ("Cookie", f"{COOKIE}=nonsense"))
    assert b"worker-1" in answer.body
    assert "Set-Cookie" not in answer.headers


async def test_a_session_is_not_better_than_its_credential(closed: Registry) -> None:
    """Renewed by itself it ends when the first one does, if the credential ends by itself."""
    now = int(time.time())
    robot = Identity("robot+x", "robot", permissions=(), expires=now + 10 * SESSION_LIFETIME)
    first = closed.issuer.issue_session(robot, now)
    assert first.expires_in == SESSION_LIFETIME
    seen = closed.issuer.verify_session(first.token, now)
    assert closed.issuer.issue_session(seen, now + 60).expires_in == SESSION_LIFETIME - 60


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site")],
        [("Sec-Fetch-Site", "none")],
        [("Origin", "https://evil.example")],
        [("Origin", "null")],
        [("Origin", "http://[")],
        [("Origin", "http://]{host}")],
        [("Origin", "ftp://{host}")],
        [("Origin", "{host}")],
        [("Origin", "http://{host}/")],
        [("Origin", "http://{host}@evil.example")],
        [("Sec-Fetch-Site", "cross-site"), ("Origin", "http://{host}")],
    ],
)
async def test_other_sites_stop_nothing(closed: Registry, headers: list[Header]) -> None:
    """A session counts for a stop only if the browser says that a page of this registry asked."""
    cookie = await session_of(closed)
    sent = [(name, value.format(host=closed.server.host)) for name, value in headers]
    answer = await closed.server.ask("POST", "/mayfly/v1/stop", [cookie, *sent])
    assert (answer.status, answer.code) == (403, "DENIED")
    if headers:  # a header that names another site refuses other credentials, too
        own = by_password("admin")
        assert (await closed.server.ask("POST", "/mayfly/v1/stop", [own, *sent])).status == 403
        assert (await log_in(closed, "admin", *sent)).status == 403
        out = await closed.server.ask("POST", "/mayfly/v1/logout", [own, *sent])
        assert (out.status, out.code) == (403, "DENIED")
    assert closed.hooks.stopped == []


@pytest.mark.parametrize(
    "proof", [SAME_SITE, ("Origin", "http://{host}"), ("Origin", "https://{host}")]
)
async def test_the_page_stops_the_registry(closed: Registry, proof: Header) -> None:
    """A browser without scripts gets a page at once: the registry may be gone a moment later."""
    cookie = await session_of(closed)
    sent = (proof[0], proof[1].format(host=closed.server.host))
    answer = await closed.server.ask("POST", "/mayfly/v1/stop", [HTML, cookie, sent])
    assert (answer.status, answer.headers["Content-Type"]) == (202, "text/html; charset=utf-8")
    assert b"The registry is stopping" in answer.body
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert closed.hooks.stopped == ["admin asked for it on the page or by its URL"]


async def test_a_stop_by_get_is_none(closed: Registry) -> None:
    """No link, image or prefetch stops anything."""
    cookie = await session_of(closed)
    for method in ("GET", "HEAD"):
        answer = await closed.server.ask(method, "/mayfly/v1/stop", [cookie, SAME_SITE])
        assert answer.status == 405
    assert closed.hooks.stopped == []


async def test_pages_are_framed_and_stored_by_nobody(closed: Registry) -> None:
    """Login and page have a policy without inline code, and no cache keeps them."""
    cookie = await session_of(closed)
    for answer in (await page(closed), await page(closed, cookie)):
        policy = dict(
            one.strip().partition(" ")[::2]
            for one in answer.headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Cookie" in answer.headers["Vary"]


async def test_files_are_compared_before_they_are_sent_again(closed: Registry) -> None:
    """A file has a tag of its content; the others of the package are not served."""
    for name in files.NAMES:
        answer = await closed.server.ask("GET", f"/mayfly/v1/page/{name}")
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        known = ("If-None-Match", answer.headers["ETag"])
        again = await closed.server.ask("GET", f"/mayfly/v1/page/{name}", [known])
        assert (again.status, again.body) == (304, b"")
    read = files._read.cache_info().currsize
    for name in ("html.py", "..%2fhtml.py", "static", "page.css%00"):
        assert (await closed.server.ask("GET", f"/mayfly/v1/page/{name}")).status in (400, 404)
    assert files._read.cache_info().currsize == read, "names of clients take the place of files"


async def test_events_of_a_session(closed: Registry) -> None:
    """They begin with everything, and are kept by no cache or proxy."""
    cookie = await session_of(closed)
    closed.hooks.feed().drain()
    answer = await closed.server.ask("GET", "/mayfly/v1/events", [cookie])
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.body.startswith(b"retry: 1000\n\nid: ")
    assert b'"worker-1"' in answer.body


async def test_names_in_events_are_plain_json(closed: Registry) -> None:
    """No name ends an event, or is more than a text."""

    async def look() -> object:
        return view("<script>\n\ndata: x", state="a\u2028b\n\n")

    closed.hooks.feed()._look = look  # type: ignore[assignment]
    closed.hooks.feed().drain()
    answer = await closed.server.ask("GET", "/mayfly/v1/events", [by_password("admin")])
    retry, event, rest = answer.body.split(b"\n\n")
    assert (retry, rest) == (b"retry: 1000", b"")
    assert event.count(b"\n") == 1


async def test_without_users_nobody_stops(opened: Registry) -> None:
    """An anonymous caller may never stop, whatever it may pull."""
    answer = await opened.server.ask("POST", "/mayfly/v1/stop", [SAME_SITE])
    assert answer.status == 401
    assert opened.hooks.stopped == []
