"""Forged tokens and scopes made to mislead: each is refused, and none gets more than it should."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from urllib.parse import urlencode

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from mayfly.auth import signing
from mayfly.auth.identity import Identity, Permission
from mayfly.auth.policy import EVERYTHING
from mayfly.auth.roles import Role
from mayfly.registry.access.guard import REALM
from tests.security.registries import Registry, by_password, password_of, push_image
from tests.support.client import Answer, Header, basic, bearer

REPOSITORY = "team/app"
SCOPE = f"repository:{REPOSITORY}:pull"
TAGS = f"/v2/{REPOSITORY}/tags/list"
REFUSED = 'error="invalid_token"'

Claims = dict[str, object]
Forgery = Callable[[Registry, Claims], str]


def _segment(value: object) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def _unsigned(name: str) -> Forgery:
    return lambda _, claims: f"{_segment({'alg': name, 'typ': 'JWT'})}.{_segment(claims)}."


def _signed(
    algorithm: str = "HS256", headers: dict[str, object] | None = None, **changed: object
) -> Forgery:
    """A token signed with the right key, of another algorithm or with other headers or claims."""

    def forge(made: Registry, claims: Claims) -> str:
        kept = {name: value for name, value in {**claims, **changed}.items() if value is not None}
        return jwt.encode(kept, made.key, algorithm, headers)

    return forge


def _with_public_key(made: Registry, claims: Claims) -> str:
    """RS256's public key as HS256's secret: the classic confusion."""
    return jwt.encode(claims, b"-----BEGIN PUBLIC KEY-----\nMFww\n" * 2, "HS256", {"alg": "HS256"})


def _with_private_key(made: Registry, claims: Claims) -> str:
    return jwt.encode(claims, rsa.generate_private_key(65537, 2048), "RS256")


def _tampered(made: Registry, claims: Claims) -> str:
    """A genuine token with more access written in."""
    header, _, signature = _signed()(made, claims).split(".")
    more = [{"type": "repository", "name": REPOSITORY, "actions": ["delete", "pull", "push"]}]
    return f"{header}.{_segment({**claims, 'access': more})}.{signature}"


def _nested(made: Registry, claims: Claims) -> str:
    return f"{_segment(b'[' * 2500 + b']' * 2500)}.{_segment(claims)}.AAAA"


FORGERIES: dict[str, Forgery] = {
    **{f"alg {name}": _unsigned(name) for name in ("none", "None", "NONE", "nOnE", "", "HS256")},
    **{f"alg {name}": _signed(name) for name in ("HS384", "HS512")},
    "alg RS256": _with_private_key,
    "secret is a public key": _with_public_key,
    "empty secret": lambda _, claims: jwt.encode(claims, b"\0" * 32, "HS256"),
    "tampered": _tampered,
    "critical header": _signed(headers={"crit": ["b64"], "b64": False}),
    "nested header": _nested,
    "header is a list": lambda _, claims: f"{_segment([])}.{_segment(claims)}.AAAA",
    "no dots": lambda _made, _claims: "a" * 1000,
    "only dots": lambda _made, _claims: "....",
    "too large": lambda made, claims: _signed(filler="x" * 5500)(made, claims),
    "not ASCII": lambda _made, _claims: "\u00e9.\u00e9.\u00e9",
    "not UTF-8": lambda _made, _claims: "\udcff.\udcff.\udcff",
    "other issuer": _signed(iss="another"),
    "other audience": _signed(aud="another"),
    "a list of audiences": _signed(aud=[REALM, "another"]),
    "robot's audience": _signed(aud="mayfly robot"),
    "refresh audience": _signed(aud=f"{REALM} refresh"),
    "no audience": _signed(aud=None),
    "no expiry": _signed(exp=None),
    "expiry is a text": _signed(exp="9999999999"),
    "expiry is a fraction": _signed(exp=9999999999.5),
    "expired": _signed(exp=int(time.time()) - 1),
    "not yet valid": _signed(nbf=int(time.time()) + 3600),
    "issued tomorrow": _signed(iat=int(time.time()) + 86400),
    "no access": _signed(access=None),
    "access is a text": _signed(access=SCOPE),
    "access is of everything": _signed(access=[{"type": "*", "name": "*", "actions": ["*"]}]),
    "action out of grammar": _signed(
        access=[{"type": "repository", "name": REPOSITORY, "actions": ["pull", "PUSH"]}]
    ),
    "name is a number": _signed(sub=7),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_forged_token_is_refused(forgery: str, closed: Registry) -> None:
    """Whatever its header and claims say, a token this server did not make is invalid_token."""
    push_image(closed.store, REPOSITORY, "1")
    good = closed.token(SCOPE, now=time.time())
    assert (await closed.server.ask("GET", TAGS, [bearer(good)])).status == 200
    claims = jwt.decode(good, closed.key, ["HS256"], audience=REALM)
    forged = FORGERIES[forgery](closed, claims)
    answer = await closed.server.ask("GET", TAGS, [bearer(forged)])
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    assert answer.challenge is not None and answer.challenge.endswith(REFUSED)
    assert forged not in answer.body.decode()


@pytest.mark.parametrize("header", ["kid", "jku", "x5u", "jwk", "x5c"])
async def test_key_named_in_a_header_is_not_fetched(header: str, closed: Registry) -> None:
    """A header that points at another key changes nothing: our key alone counts."""
    claims = jwt.decode(closed.token(SCOPE, now=time.time()), closed.key, ["HS256"], audience=REALM)
    named = {header: "../../../../dev/null"}
    forged = jwt.encode(claims, signing.new_key(), "HS256", named)
    assert (await closed.server.ask("GET", TAGS, [bearer(forged)])).status == 401


async def test_no_kind_of_token_passes_for_another(closed: Registry) -> None:
    """Access tokens, refresh tokens and short-lived credentials are each taken in one place."""
    now = time.time()
    robot = closed.robots.issue("node", [Permission(Role.DEVELOPER, EVERYTHING)], 60, now)
    access = closed.token(SCOPE, now=now)
    as_bearer = await closed.server.ask("GET", TAGS, [bearer(robot.password)])
    as_password = await closed.server.ask("GET", TAGS, [basic("robot+node", access)])
    as_user = await closed.server.ask("GET", TAGS, [basic("developer", access)])
    as_refresh = await _refresh(closed, access)
    robot_as_refresh = await _refresh(closed, robot.password)
    answers = [as_bearer, as_password, as_user, as_refresh, robot_as_refresh]
    assert [answer.status for answer in answers] == [401] * len(answers)


async def test_robot_of_another_name_is_refused(closed: Registry) -> None:
    """A short-lived password is good for its own name only."""
    robot = closed.robots.issue("one", [Permission(Role.GUEST, EVERYTHING)], 60, time.time())
    for name in ("robot+two", "robot+", "one", "admin"):
        assert (await closed.server.ask("GET", TAGS, [basic(name, robot.password)])).status == 401


async def test_robot_expires(closed: Registry) -> None:
    """A short-lived credential works until its second, and is refused from then on."""
    push_image(closed.store, REPOSITORY, "1")
    for age, status in ((0, 200), (58, 200), (60, 401), (600, 401)):
        permission = Permission(Role.GUEST, EVERYTHING)
        robot = closed.robots.issue("node", [permission], 60, int(time.time()) - age)
        answer = await closed.server.ask("GET", TAGS, [basic(robot.name, robot.password)])
        assert answer.status == status, age


async def _refresh(made: Registry, token: str, **fields: str) -> Answer:
    form = {"grant_type": "refresh_token", "refresh_token": token, "service": REALM, **fields}
    return await made.server.ask("POST", "/auth/token", [], urlencode(form).encode())


async def test_refresh_token_dies_with_the_password(closed: Registry) -> None:
    """A refresh token buys access tokens by the policy of the moment, and its kind only."""
    answer = await closed.server.ask(
        "GET", "/auth/token?offline_token=true", [by_password("guest")]
    )
    refresh = answer.json["refresh_token"]
    bought = await _refresh(closed, refresh, scope=f"repository:{REPOSITORY}:pull,push")
    assert _access(bought) == {REPOSITORY: ["pull"]}
    revoked = closed.issuer.issue_refresh(
        Identity("guest", "basic", fingerprint="of an earlier password"), time.time()
    )
    assert revoked is not None
    assert (await _refresh(closed, revoked.token)).status == 401


def _access(answer: Answer) -> dict[str, list[str]]:
    """Repository → actions that the token in an answer grants."""
    assert answer.status == 200, answer.body
    claims = jwt.decode(answer.json["token"], options={"verify_signature": False})
    return {entry["name"]: entry["actions"] for entry in claims["access"]}


MISLEADING = {
    "comma in the name": "repository:team/app,secret/app:pull",
    "space in the name": "repository:secret app:pull",
    "encoded space": "repository:secret%20app:pull",
    "quote in the name": 'repository:secret/app":pull',
    "newline in the name": "repository:secret/app\n:pull",
    "carriage return": "repository:secret/app\r\nX-Evil: 1:pull",
    "tab": "repository:secret/app\t:pull",
    "NUL": "repository:secret/app\0:pull",
    "dots": "repository:team/../secret/app:pull",
    "slashes": "repository:team//secret/app:pull",
    "star": "repository:*:pull",
    "upper case": "repository:Secret/App:pull",
    "no name": "repository::pull",
    "no action": "repository:team/app:",
    "no colon": "repository",
    "action of two words": "repository:team/app:pull push",
    "upper-case action": "repository:team/app:PULL",
    "colon in the middle": "repository:team/app:pull:push",
    "type of another form": "repo sitory:team/app:pull",
    "quote in the type": 'repo"sitory:team/app:pull',
    "Unicode digits": "repository:team/app\u0661:pull",
    "too many": " ".join(f"repository:team/{n}:pull" for n in range(33)),
    "too long": "repository:" + "a" * 4000 + ":pull",
}


@pytest.mark.parametrize("scope", MISLEADING.values(), ids=MISLEADING.keys())
@pytest.mark.parametrize("flow", ["GET", "POST"])
async def test_misleading_scope_grants_nothing(flow: str, scope: str, closed: Registry) -> None:
    """A scope outside the grammar is a bad request; in no reading does it grant the secret."""
    answer = await _ask_token(closed, flow, "developer", scope)
    if answer.status == 200:
        assert _access(answer) == {}, scope
    else:
        assert (answer.status, answer.code) == (400, "UNSUPPORTED"), scope
    assert "X-Evil" not in answer.headers


async def _ask_token(made: Registry, flow: str, name: str, *scopes: str) -> Answer:
    if flow == "GET":
        query = urlencode([("service", REALM), *(("scope", scope) for scope in scopes)])
        return await made.server.ask("GET", f"/auth/token?{query}", [by_password(name)])
    form = {"grant_type": "password", "username": name, "password": password_of(name)}
    body = urlencode([*form.items(), ("scope", " ".join(scopes))]).encode()
    return await made.server.ask("POST", "/auth/token", [], body)


@pytest.mark.parametrize("flow", ["GET", "POST"])
async def test_token_holds_what_was_asked_and_allowed(flow: str, closed: Registry) -> None:
    """The token is the intersection, for every resource apart; a port in a name is no action."""
    answer = await _ask_token(
        closed,
        flow,
        "developer",
        "repository:team/app:pull,push,delete",
        "repository:secret/app:pull",
        "repository:team/app:*",
        "repository:registry.local:5000/team/app:pull",
        "repository:team/app:grants,lifetime",
        "registry:lifetime:*",
        "plugin:team/app:pull",
    )
    assert _access(answer) == {"team/app": ["pull", "push"]}
    assert answer.json["scope"] == "repository:team/app:pull,push"
    assert answer.json["expires_in"] >= 60


@pytest.mark.parametrize(
    "parameters",
    [
        {"service": "another"},
        {"account": "admin"},
        {"client_id": "admin", "account": "admin", "username": "admin"},
    ],
)
async def test_other_parameters_name_nobody(parameters: dict[str, str], closed: Registry) -> None:
    """The token is for the user that logged in, whatever account= and client_id= say."""
    query = urlencode({"scope": "repository:secret/app:pull", **parameters})
    answer = await closed.server.ask("GET", f"/auth/token?{query}", [by_password("guest")])
    assert _access(answer) == {}
    claims = jwt.decode(answer.json["token"], options={"verify_signature": False})
    assert claims["sub"] == "guest"


async def test_token_answer_is_not_to_be_kept(closed: Registry) -> None:
    """No cache may keep a token."""
    answer = await closed.server.ask("GET", "/auth/token", [by_password("guest")])
    assert answer.headers["Cache-Control"] == "no-store"


QUOTING: list[Header] = [
    ("GET", '/v2/team/app"/tags/list'),
    ("GET", "/v2/team/app%22,error=%22x/tags/list"),
    ("GET", "/v2/team/app%0d%0aX-Evil:1/tags/list"),
    ("POST", "/v2/team/app/blobs/uploads/?mount=sha256:" + "0" * 64 + "&from=a%22,scope=%22b"),
    ("POST", "/v2/team/app/blobs/uploads/?mount=sha256:" + "0" * 64 + "&from=a%0d%0aX-Evil:1"),
    ("POST", "/v2/team/app/blobs/uploads/?mount=sha256:" + "0" * 64 + "&from=a:pull,push%20b"),
]


@pytest.mark.parametrize(("method", "target"), QUOTING)
async def test_challenge_cannot_be_written_into(method: str, target: str, closed: Registry) -> None:
    """A name with quotes, commas or line ends reaches no challenge and no header."""
    answer = await closed.server.ask(method, target)
    if method == "POST":  # no source at all: what is asked for is an upload
        assert answer.status == 401 and answer.challenge is not None
        assert answer.challenge.endswith('scope="repository:team/app:pull,push"')
    else:
        assert answer.status == 400, answer.body
        assert answer.challenge is None
    assert "X-Evil" not in answer.headers
