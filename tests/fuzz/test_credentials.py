"""Whatever an Authorization header holds: a caller it proves, or a refusal in the same words."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mayfly.auth.basic import parse_basic
from mayfly.auth.errors import CredentialsInvalid, ScopeInvalid, TokenInvalid
from mayfly.auth.globs import parse_glob
from mayfly.auth.identity import Identity, Permission
from mayfly.auth.robots import Robots
from mayfly.auth.roles import Role
from mayfly.auth.scope import MAX_SCOPES, parse_scopes, render_scopes
from mayfly.auth.signing import new_key
from mayfly.auth.tokens import TokenIssuer
from tests.fuzz.budget import EXAMPLES
from tests.fuzz.documents import ANY_JSON, TEXTS

NOW = 1_700_000_000.0
KEY = new_key()
ISSUER = TokenIssuer(KEY, "mayfly", "a run")
SCOPES = parse_scopes(["repository:team/app:pull,push", "registry:catalog:*"])
TOKEN = ISSUER.issue(Identity("bob", "basic", fingerprint="f"), SCOPES, NOW).token
ROBOT = (
    Robots(KEY, "a run")
    .issue("ci", [Permission(Role.GUEST, parse_glob("a/**"))], 3600, NOW)
    .password
)
HEADER, CLAIMS, SIGNATURE = TOKEN.split(".")
WIRE = st.binary(max_size=60).map(lambda data: data.decode("utf-8", "surrogateescape"))


def _encoded(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _claims(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    value=WIRE
    | WIRE.map("Basic ".__add__)
    | st.binary().map(base64.b64encode).map(lambda data: f"basic {data.decode()}")
)
@example(value="Basic \udcff")
def test_any_basic(value: str) -> None:
    """A name without a colon and a password, or a refusal."""
    try:
        name, password = parse_basic(value)
    except CredentialsInvalid:
        return
    assert ":" not in name
    f"{name}{password}".encode()


def _verified(token: str) -> list[Identity]:
    """The callers that a text proves in any of the places that take a token."""
    found = []
    for verify in (
        lambda: ISSUER.verify(token, NOW),
        lambda: ISSUER.verify_refresh(token, NOW),
        lambda: Robots(KEY, "a run").verify("robot+ci", token, NOW),
    ):
        try:
            found.append(verify())
        except (TokenInvalid, CredentialsInvalid) as error:
            assert error.message
    return found


PARTS = st.sampled_from([HEADER, CLAIMS, SIGNATURE, "", "e30", *ROBOT.split(".")])
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.sampled_from(["none", "HS256", "HS512", "RS256", "", "hs256"]) | ANY_JSON,
        "typ": ANY_JSON,
        "kid": ANY_JSON,
        "crit": ANY_JSON,
        "b64": ANY_JSON,
        "jwk": ANY_JSON,
    },
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    token=WIRE
    | st.lists(PARTS | WIRE, max_size=4).map(".".join)
    | st.tuples(HEADERS | ANY_JSON, PARTS, PARTS).map(
        lambda parts: ".".join((_encoded(json.dumps(parts[0]).encode()), *parts[1:]))
    )
)
@example(token=_encoded(b'{"alg":"none"}') + f".{CLAIMS}.")
@example(token=_encoded(b"[" * 5000) + f".{CLAIMS}.{SIGNATURE}")
def test_any_token(token: str) -> None:
    """Nothing but what was issued proves anything, whatever its header says."""
    if _verified(token):
        assert token in (TOKEN, ROBOT)


NAMES = st.sampled_from([*_claims(TOKEN), *_claims(ROBOT), "node", "groups", "permissions", "x"])


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    base=st.sampled_from([TOKEN, ROBOT]),
    changes=st.dictionaries(NAMES, ANY_JSON | st.lists(ANY_JSON, max_size=3), max_size=3),
    left_out=st.sets(NAMES, max_size=2),
)
def test_any_claims_under_the_right_key(
    base: str, changes: dict[str, Any], left_out: set[str]
) -> None:
    """Claims of any type that someone with the key signed: a caller of the right types, or none."""
    claims = {name: v for name, v in (_claims(base) | changes).items() if name not in left_out}
    try:
        token = jwt.encode(claims, KEY, "HS256")
    except TypeError:
        return  # pyjwt itself writes no such claims
    for found in _verified(token):
        assert isinstance(found.name, str)
        assert found.node is None or isinstance(found.node, str)
        assert all(isinstance(group, str) for group in found.groups)
        assert len(found.access or ()) <= MAX_SCOPES
        hash(found)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    values=st.lists(
        TEXTS
        | WIRE
        | st.from_regex(r"[a-z()]{1,12}:[a-zA-Z0-9:/._-]{0,30}:[a-z*,]{0,9}", fullmatch=True),
        max_size=4,
    )
)
def test_any_scopes(values: list[str]) -> None:
    """Scopes of several values: refused, or scopes that a header can hold and that read back."""
    try:
        found = parse_scopes(values)
    except ScopeInvalid as error:
        assert len(error.message) < 200
        return
    rendered = render_scopes(found)
    assert rendered.isascii() and not set(rendered) & set('"\r\n\t\\')
    assert parse_scopes([rendered]) == found
