"""Every endpoint and method, asked by every kind of caller: which rule lets whom pass, as a table.

An endpoint that is added without a rule of the table fails here. So does a refusal that says
anything but the one right challenge, that changes a byte of the store, or that comes after a look
into it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from urllib.parse import urlencode

import jwt
import pytest

from mayfly.auth import signing
from mayfly.auth.identity import Permission
from mayfly.auth.policy import EVERYTHING
from mayfly.auth.roles import Role
from mayfly.auth.tokens import TokenIssuer
from mayfly.registry.access import needs
from mayfly.registry.access.guard import REALM
from mayfly.storage import digest as digests
from tests.security.registries import (
    NOBODY,
    Registry,
    image_manifest,
    password_of,
    push_blob,
    push_image,
)
from tests.support.client import Header, basic, bearer
from tests.support.endpoints import DOCUMENT, METHODS, route_of

REPOSITORY = "team/app"
NODE = "worker-1"
EVERY_ACTION = f"repository:{REPOSITORY}:delete,pull,push registry:catalog:*"

# Callers, in the order of the columns:
#   admin projectAdmin maintainer developer guest limitedGuest, a user without grants,
#   anonymous, anonymous where anyone may pull, wrong password,
#   a token of all actions, a token to pull, garbage, expired, for another repository, of another
#   key, alg none, a refresh token as access token, a short-lived credential to pull, one to push,
#   the credential of the node that the path names
TABLE = """
           adm pad mnt dev gst lgs nob ano anp wpw tok tpl bad exp oth key non ref rpl rpu own
PUBLIC     yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes yes
LOGIN      yes yes yes yes yes yes yes 401 401 401 yes yes 401 401 yes 401 401 401 yes yes yes
CATALOG    yes yes yes yes yes yes 403 401 yes 401 yes 401 401 401 401 401 401 401 yes yes yes
STATUS     yes 403 403 403 403 403 403 401 401 401 401 401 401 401 401 401 401 401 403 yes 403
PULL       yes yes yes yes yes yes 403 401 yes 401 yes yes 401 401 401 401 401 401 yes yes yes
PUSH       yes yes yes yes 403 403 403 401 401 401 yes 401 401 401 401 401 401 401 403 yes 403
DELETE     yes yes yes 403 403 403 403 401 401 401 yes 401 401 401 401 401 401 401 403 403 403
STOP       yes 403 403 403 403 403 403 401 401 401 401 401 401 401 401 401 401 401 403 403 403
OWN_NODE   403 403 403 403 403 403 403 401 401 401 401 401 401 401 401 401 401 401 403 403 yes
token/GET  yes yes yes yes yes yes yes yes yes 401 401 401 401 401 401 401 401 401 yes yes yes
token/POST yes yes yes yes yes yes yes 401 401 401 401 401 401 401 401 401 401 yes yes yes yes
session/POST yes yes yes yes yes yes yes 401 401 401 401 401 401 401 401 401 401 401 yes yes yes
"""
"""By the rule of the route, or by endpoint and method where the handler checks credentials itself.

"yes" is a status of success that docs/openapi.yaml has for the endpoint and method.
"""

SCOPES = {
    "CATALOG": "registry:catalog:*",
    "STATUS": "registry:status:*",
    "STOP": "registry:stop:*",
    "PULL": f"repository:{REPOSITORY}:pull",
    "PUSH": f"repository:{REPOSITORY}:pull,push",
    "DELETE": f"repository:{REPOSITORY}:delete",
}
"""The scope in the challenge of a refusal; without one it asks for a login only."""

INSUFFICIENT = frozenset({"tok", "tpl", "oth"})
INVALID = frozenset({"bad", "exp", "key", "non", "ref"})

_COLUMNS, *_ROWS = (line.split() for line in TABLE.strip().splitlines())
EXPECTED = {row[0]: dict(zip(_COLUMNS, row[1:], strict=True)) for row in _ROWS}
RULES = {rule: name for name, rule in vars(needs).items() if isinstance(rule, needs.Rule)}
REQUESTS = [f"{endpoint} {m}" for endpoint, methods in METHODS.items() for m in methods]


@dataclasses.dataclass(frozen=True)
class Caller:
    """Proof as a header, and the same proof as a form for the token endpoint."""

    header: Header | None
    form: dict[str, str]

    @property
    def headers(self) -> list[Header]:
        """The headers to send."""
        return [] if self.header is None else [self.header]


def _user(name: str, password: str) -> Caller:
    form = {"grant_type": "password", "username": name, "password": password}
    return Caller(basic(name, password), form)


def _token(token: str) -> Caller:
    return Caller(bearer(token), {"grant_type": "refresh_token", "refresh_token": token})


def _callers(made: Registry) -> dict[str, Caller]:
    """Every caller of the table; those of "anp" are at another server."""
    now = time.time()
    ours = ["admin", "project-admin", "maintainer", "developer", "guest", "limited-guest", NOBODY]
    callers = {
        column: _user(name, password_of(name)) for column, name in zip(_COLUMNS, ours, strict=False)
    }
    callers["ano"] = callers["anp"] = Caller(None, {"grant_type": "password"})
    callers["wpw"] = _user("developer", "wrong")
    good = made.token(EVERY_ACTION, now=now)
    claims = jwt.decode(good, made.key, ["HS256"], audience=REALM)
    tokens = {
        "tok": good,
        "tpl": made.token(f"repository:{REPOSITORY}:pull", now=now),
        "bad": "nonsense",
        "exp": made.token(EVERY_ACTION, now=now - 3600),
        "oth": made.token("repository:team/application:delete,pull,push", now=now),
        "key": made.token(EVERY_ACTION, now=now, issuer=TokenIssuer(signing.new_key(), REALM)),
        "non": jwt.encode(claims, "", algorithm="none"),
        "ref": _refresh_token(made, now),
    }
    callers |= {column: _token(token) for column, token in tokens.items()}
    for column, role in (("rpl", Role.LIMITED_GUEST), ("rpu", Role.DEVELOPER)):
        robot = made.robots.issue("node", [Permission(role, EVERYTHING)], 60, now)
        callers[column] = _user(robot.name, robot.password)
    permissions = [Permission(Role.LIMITED_GUEST, EVERYTHING)]
    robot = made.robots.issue("node", permissions, 60, now, NODE)
    callers["own"] = _user(robot.name, robot.password)
    return callers


def _refresh_token(made: Registry, now: float) -> str:
    """One that is good at the token endpoint."""
    authentication = made.guard.authentication
    assert authentication is not None
    identity = authentication.verifier.check("developer", password_of("developer"))
    issued = made.issuer.issue_refresh(identity, now)
    assert issued is not None
    return issued.token


@dataclasses.dataclass(frozen=True)
class Target:
    """A request without its sender."""

    path: str
    body: bytes = b""
    headers: tuple[Header, ...] = ()


def _target(made: Registry, asked: str) -> Target:
    """A request that succeeds if it is let through; what it needs is made for it alone."""
    base = f"/v2/{REPOSITORY}"
    content = os.urandom(16)
    digest = digests.of(content)
    match asked.split():
        case ["manifest", "PUT"]:
            push_blob(made.store, REPOSITORY, content)
            kind = ("Content-Type", "application/vnd.oci.image.manifest.v1+json")
            return Target(f"{base}/manifests/new", image_manifest(content), (kind,))
        case ["manifest", "DELETE"]:
            return Target(f"{base}/manifests/{push_image(made.store, REPOSITORY)}")
        case ["blob", _]:
            return Target(f"{base}/blobs/{push_blob(made.store, REPOSITORY, content)}")
        case ["upload", method]:
            upload = made.store.begin_upload(REPOSITORY, digest.algorithm)
            query = f"?digest={digest}" if method == "PUT" else ""
            body = content if method in ("PUT", "PATCH") else b""
            return Target(f"{base}/blobs/uploads/{upload.id}{query}", body)
        case ["script", _]:
            return Target(f"/mayfly/v1/scripts/{made.scripts.add(b'true')}")
        case ["proof", _]:
            proof = {"version": 1, "nonce": made.observer.nonces.issue(NODE), "images": []}
            return Target(f"/mayfly/v1/nodes/{NODE}/proof", json.dumps(proof).encode())
    endpoint, method = asked.split()
    path = route_of(endpoint, method).path
    parts = {"name": REPOSITORY, "node": NODE, "reference": "latest", "digest": digest}
    return Target(path.format(**parts, file="page.css"))


def _row(asked: str) -> str:
    """The row of the table for an endpoint and method."""
    endpoint, method = asked.split()
    own = f"{endpoint}/{method}"
    return own if own in EXPECTED else RULES[route_of(endpoint, method).rule or needs.Rule()]


def test_table_covers_every_rule() -> None:
    """Each rule has a row, each row is one of a rule or an endpoint, and each route has a rule."""
    assert sorted(RULES.values() - EXPECTED.keys()) == [], "TABLE of this module lacks these rules"
    assert {_row(asked) for asked in REQUESTS} == EXPECTED.keys()


@pytest.mark.parametrize("asked", REQUESTS)
async def test_matrix(asked: str, closed: Registry, opened: Registry) -> None:
    """Each caller gets what the table says, refusals their challenge, and change nothing."""
    for made in (closed, opened):
        push_image(made.store, REPOSITORY, "latest")
    callers = _callers(closed)
    assert set(callers) == set(_COLUMNS)
    found = {
        column: await _status(opened if column == "anp" else closed, asked, column, caller)
        for column, caller in callers.items()
    }
    endpoint, method = asked.split()
    described = DOCUMENT["paths"][route_of(endpoint, method).path][method.lower()]["responses"]
    successes = {int(status) for status in described if status.startswith("2")}
    shown = {column: "yes" if one in successes else str(one) for column, one in found.items()}
    advice = "400 where a caller should get in: does _target make a valid request?"
    assert shown == EXPECTED[_row(asked)], advice if "400" in shown.values() else ""


async def _status(made: Registry, asked: str, column: str, caller: Caller) -> int:
    method = asked.split()[1]
    target = _target(made, asked)
    headers = [*caller.headers, *target.headers]
    body = target.body
    if asked in ("token POST", "session POST"):
        headers = [("Content-Type", "application/x-www-form-urlencoded")]
        body = urlencode({"service": REALM, **caller.form}).encode()
    before = _contents(made)
    made.record.clear()
    if asked == "events GET":
        # It ends with the drain, and so at once.
        made.hooks.feed().drain()
    answer = await made.server.ask(method, target.path, headers, body)
    if answer.status in (401, 403):
        assert _contents(made) == before, f"{asked} {column}: refused, and something was changed"
        read = [step for step in made.record if step.startswith(("store.", "names.resolve"))]
        assert not read, f"{asked} {column}: refused, and the store was read"
        if method != "HEAD":
            assert answer.code == {401: "UNAUTHORIZED", 403: "DENIED"}[answer.status]
    expected = _challenge(made, asked, column) if answer.status == 401 else None
    assert answer.challenge == expected, f"{asked} {column}"
    return answer.status


def _challenge(made: Registry, asked: str, column: str) -> str:
    if asked.startswith(("token ", "session ")):
        return f'Basic realm="{REALM}"'
    parts = [f'realm="{made.server.url}/auth/token"', f'service="{REALM}"']
    if scope := SCOPES.get(_row(asked)):
        parts.append(f'scope="{scope}"')
    if column in INVALID:
        parts.append('error="invalid_token"')
    elif column in INSUFFICIENT:
        parts.append('error="insufficient_scope"')
    return "Bearer " + ",".join(parts)


def _contents(made: Registry) -> dict[str, tuple[int, int]]:
    """Every file of the store: its size and the time of its last change."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in made.root.rglob("*")
        if path.is_file()
    }
