"""``--anonymous pull``: what anyone may pull, the bearer of wrong credentials may pull too.

Nodes keep credentials of earlier runs and of other registries, and clients send them unasked.
"""

from __future__ import annotations

import time
from urllib.parse import urlencode

import pytest

from mayfly.auth import signing
from mayfly.auth.globs import parse_glob
from mayfly.auth.identity import Permission
from mayfly.auth.robots import Robots
from mayfly.auth.roles import Role
from mayfly.auth.tokens import TokenIssuer
from mayfly.registry.access.guard import REALM
from tests.security.registries import Registry, by_password, push_image
from tests.support.client import Header, basic, bearer

PULL = [Permission(Role.LIMITED_GUEST, parse_glob("**"))]
SCOPE = "repository:team/app:pull"


def _wrong(made: Registry) -> dict[str, Header]:
    """Credentials of each kind that this registry does not take."""
    now = time.time()
    foreign = signing.new_key()
    robot = Robots(foreign).issue("node", PULL, 3600, now)
    expired = made.robots.issue("node", PULL, 60, now - 120)
    token = made.token(SCOPE, name="guest", now=now, issuer=TokenIssuer(foreign, REALM))
    return {
        "a wrong password": basic("guest", "wrong"),
        "an unknown user": basic("kubelet", "of another registry"),
        "a credential of an earlier run": basic(robot.name, robot.password),
        "an expired credential": basic(expired.name, expired.password),
        "a token of an earlier run": bearer(token),
        "an expired token": bearer(made.token(SCOPE, now=now - 3600)),
        "no token at all": bearer("nonsense"),
        "another scheme": ("Authorization", "Digest username=x"),
    }


async def test_wrong_credentials_pull_what_anyone_may(opened: Registry) -> None:
    """Every pull is served, and nothing more: a push and a login fail as ever."""
    push_image(opened.store, "team/app", "1")
    for kind, header in _wrong(opened).items():
        for target in ("manifests/1", "tags/list"):
            answer = await opened.server.ask("GET", f"/v2/team/app/{target}", [header])
            assert answer.status == 200, kind
        answer = await opened.server.ask("POST", "/v2/team/app/blobs/uploads/", [header])
        assert answer.status == 401, kind
        assert (await opened.server.ask("GET", "/v2/", [header])).status == 401, kind


async def test_wrong_credentials_are_wrong_where_they_are_needed(closed: Registry) -> None:
    """Where nothing is open to anyone, wrong credentials are refused for every request."""
    push_image(closed.store, "team/app", "1")
    for kind, header in _wrong(closed).items():
        answer = await closed.server.ask("GET", "/v2/team/app/manifests/1", [header])
        assert answer.status == 401, kind


async def test_right_credentials_still_name_their_bearer(opened: Registry) -> None:
    """A user with fewer rights than anonymous callers is refused; one with more is let in."""
    answer = await opened.server.ask("POST", "/v2/other/app/blobs/uploads/", [by_password("guest")])
    assert answer.status == 403
    answer = await opened.server.ask("POST", "/v2/other/app/blobs/uploads/", [by_password("other")])
    assert answer.status == 202


@pytest.mark.parametrize("how", ["GET", "password", "refresh_token"])
async def test_token_for_what_anyone_may(how: str, opened: Registry) -> None:
    """docker and containerd buy a token first: they get an anonymous one, and no refresh token."""
    push_image(opened.store, "team/app", "1")

    async def buy(*scopes: str) -> tuple[int, dict[str, str]]:
        if how == "GET":
            query = urlencode([("scope", one) for one in scopes] + [("offline_token", "true")])
            wrong = basic("guest", "wrong")
            answer = await opened.server.ask("GET", f"/auth/token?{query}", [wrong])
        else:
            form = {"grant_type": how, "username": "guest", "password": "wrong"}
            form |= {"refresh_token": "stale", "access_type": "offline", "scope": " ".join(scopes)}
            kind = ("Content-Type", "application/x-www-form-urlencoded")
            body = urlencode(form).encode()
            answer = await opened.server.ask("POST", "/auth/token", [kind], body)
        return answer.status, answer.json

    status, bought = await buy(SCOPE, "repository:other/app:pull")
    assert status == 200 and "refresh_token" not in bought
    answer = await opened.server.ask("GET", "/v2/team/app/tags/list", [bearer(bought["token"])])
    assert answer.status == 200
    for scopes in ((), (f"{SCOPE},push",), (SCOPE, "repository:team/app:delete")):
        assert (await buy(*scopes))[0] == 401, scopes


async def test_refusal_says_that_there_were_no_credentials(
    closed: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that was never logged in asks with an anonymous token: the operator reads why."""
    push_image(closed.store, "team/app", "1")
    token = (await closed.server.ask("GET", f"/auth/token?scope={SCOPE}", [])).json["token"]
    answer = await closed.server.ask("GET", "/v2/team/app/manifests/1", [bearer(token)])
    assert answer.status in (401, 403)
    assert "was refused: may not pull on repository team/app without credentials" in caplog.text
