"""Tokens that are issued, and tokens that are refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.auth.errors import InputInvalid, ScopeInvalid, TokenInvalid
from mayfly.auth.globs import parse_glob
from mayfly.auth.identity import ANONYMOUS, Identity, Permission
from mayfly.auth.robots import Robots
from mayfly.auth.roles import Role
from mayfly.auth.scope import MAX_TEXT, Scope, parse_scopes
from mayfly.auth.signing import LEEWAY, MAX_LENGTH, Signer, check_key, new_key
from mayfly.auth.tokens import MIN_LIFETIME, TokenIssuer

KEY = b"0123456789abcdef0123456789abcdef"
SERVICE = "registry.local:5000"
RUN = "a run"
NOW = 1_700_000_000
SCOPES = parse_scopes(["repository:team/app:pull,push", "registry:catalog:*"])
BOB = Identity("bob", "basic", fingerprint="f" * 32)
CLAIMS: dict[str, Any] = {
    "iss": "mayfly",
    "sub": "bob",
    "aud": SERVICE,
    "exp": NOW + 300,
    "nbf": NOW,
    "iat": NOW,
    "jti": "x",
    "run": RUN,
    "access": [{"type": "repository", "name": "a", "actions": ["pull"]}],
}


@pytest.fixture
def issuer() -> TokenIssuer:
    return TokenIssuer(KEY, SERVICE, RUN)


def _signed(changes: dict[str, Any], key: bytes = KEY, algorithm: str = "HS256") -> str:
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not ...}
    segments = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": algorithm, "typ": "JWT"}, claims)
    ]
    signed = b".".join(segments)
    signature = jwt.get_algorithm_by_name(algorithm).sign(
        signed, key if algorithm != "none" else None
    )
    return b".".join((signed, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


def _reason(issuer: TokenIssuer, token: str, now: float = NOW) -> str:
    with pytest.raises(TokenInvalid) as caught:
        issuer.verify(token, now)
    assert len(token) < 8 or token not in caught.value.message
    return caught.value.reason


def test_claims_are_distributions(issuer: TokenIssuer) -> None:
    """The claims are those of distribution's token specification."""
    issued = issuer.issue(BOB, SCOPES, NOW + 0.9)
    claims = jwt.decode(issued.token, options={"verify_signature": False})
    assert claims.pop("jti")
    assert claims == {
        "iss": "mayfly",
        "sub": "bob",
        "aud": SERVICE,
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 300,
        "run": RUN,
        "fingerprint": "f" * 32,
        "access": [
            {"type": "repository", "name": "team/app", "actions": ["pull", "push"]},
            {"type": "registry", "name": "catalog", "actions": ["*"]},
        ],
    }
    assert (issued.expires_in, issued.issued_at) == (300, NOW)
    assert issued.issued_at_text == "2023-11-14T22:13:20Z"
    assert issued.token not in repr(issued)


@pytest.mark.parametrize(
    "identity",
    [
        ANONYMOUS,
        BOB,
        Identity("n", "certificate", groups=frozenset({"rack", "ops"}), node="n"),
        Identity(
            "robot+n",
            "robot",
            node="n",
            expires=NOW + 9999,
            permissions=(Permission(Role.GUEST, parse_glob("a/**")),),
        ),
    ],
)
def test_round_trip(issuer: TokenIssuer, identity: Identity) -> None:
    """The caller comes back with what the token grants, twice (the second is remembered)."""
    token = issuer.issue(identity, SCOPES, NOW).token
    expected = Identity(
        identity.name,
        "token",
        identity.groups,
        identity.node,
        SCOPES,
        identity.permissions,
        NOW + 300,
        identity.fingerprint,
    )
    assert issuer.verify(token, NOW) == expected
    assert issuer.verify(token, NOW + 299) == expected


@pytest.mark.parametrize("run", ["another run", "", None, ..., 1, ["a run"]])
def test_token_of_another_run(issuer: TokenIssuer, run: object) -> None:
    """A token of another run, or of none, is refused though the key is the same; so is a refresh
    token."""
    assert _reason(issuer, _signed({"run": run})) == "another run"
    refresh = _signed({"run": run, "aud": f"{SERVICE} refresh"})
    with pytest.raises(TokenInvalid, match="another run"):
        issuer.verify_refresh(refresh, NOW)


def test_runs_differ_unless_they_are_named() -> None:
    """Two issuers that were given no run take none of each other's tokens."""
    token = TokenIssuer(KEY, SERVICE).issue(BOB, SCOPES, NOW).token
    assert _reason(TokenIssuer(KEY, SERVICE), token) == "another run"


def test_no_scope(issuer: TokenIssuer) -> None:
    """A token may grant nothing: docker login asks for one."""
    assert issuer.verify(issuer.issue(BOB, (), NOW).token, NOW).access == ()


def test_expiry(issuer: TokenIssuer) -> None:
    """A token ends to the second, remembered or not."""
    token = issuer.issue(BOB, SCOPES, NOW).token
    assert _reason(issuer, token, NOW + 300) == "expired"
    issuer.verify(token, NOW + 299.9)
    assert _reason(issuer, token, NOW + 300) == "expired"
    assert _reason(issuer, token, NOW + 300) == "expired"


def test_clock_set_back(issuer: TokenIssuer) -> None:
    """A small step back is borne, a larger one is not."""
    token = issuer.issue(BOB, SCOPES, NOW).token
    assert _reason(issuer, token, NOW - LEEWAY - 1) == "not yet valid"
    issuer.verify(token, NOW - LEEWAY)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *(({name: ...}, "bad claims") for name in ("exp", "nbf", "iat", "jti", "sub", "access")),
        ({"iss": ...}, "bad claims"),
        ({"aud": ...}, "bad claims"),
        ({"iss": "other"}, "wrong issuer"),
        ({"iss": ["mayfly"]}, "wrong issuer"),
        ({"aud": "other"}, "wrong audience"),
        ({"aud": [SERVICE]}, "wrong audience"),
        ({"aud": f"{SERVICE} refresh"}, "wrong audience"),
        ({"exp": NOW}, "expired"),
        ({"exp": str(NOW + 300)}, "bad claims"),
        ({"exp": NOW + 300.5}, "bad claims"),
        ({"exp": True}, "bad claims"),
        ({"exp": float("inf")}, "bad claims"),
        ({"exp": None}, "bad claims"),
        ({"nbf": NOW + 60}, "not yet valid"),
        ({"iat": NOW + 60}, "not yet valid"),
        ({"iat": "now"}, "bad claims"),
        ({"sub": 7}, "bad claims"),
        ({"sub": ["bob"]}, "bad claims"),
        ({"jti": 7}, "bad claims"),
        ({"node": 7}, "bad claims"),
        ({"groups": "ops"}, "bad claims"),
        ({"fingerprint": 7}, "bad claims"),
        ({"permissions": "all"}, "bad claims"),
        ({"permissions": [["root", "**"]]}, "bad claims"),
        ({"permissions": [["guest", "a", "b"]]}, "bad claims"),
        ({"permissions": ["ab"]}, "bad claims"),
        ({"access": {"type": "repository"}}, "bad claims"),
        ({"access": ["repository:a:pull"]}, "bad claims"),
        ({"access": [{"type": "repository", "name": "a"}]}, "bad claims"),
        ({"access": [{"type": "repository", "name": "a", "actions": "pull"}]}, "bad claims"),
        ({"access": [{"type": "repository", "name": "a b", "actions": ["pull"]}]}, "bad claims"),
        ({"access": [{"type": "repository", "name": "a", "actions": [1]}]}, "bad claims"),
        ({"access": [{"type": "repository", "name": "a", "actions": [], "x": 1}]}, "bad claims"),
        ({"access": [{"type": "r", "name": "a", "actions": []}] * 33}, "bad claims"),
    ],
)
def test_refused_claims(issuer: TokenIssuer, changes: dict[str, Any], reason: str) -> None:
    """A genuine signature does not excuse a missing or odd claim."""
    assert _reason(issuer, _signed(changes)) == reason


def test_the_forger_of_these_tests_can_sign(issuer: TokenIssuer) -> None:
    """Unchanged claims pass, so that the tokens above are refused for their changes."""
    assert issuer.verify(_signed({}), NOW).access == parse_scopes(["repository:a:pull"])


@pytest.mark.parametrize("algorithm", ["none", "HS384", "HS512"])
def test_other_algorithms(issuer: TokenIssuer, algorithm: str) -> None:
    """One algorithm is taken, whatever the header says, the right key or not."""
    assert _reason(issuer, _signed({}, KEY * 2 if algorithm == "HS512" else KEY, algorithm)) in (
        "bad signature",
        "malformed",
    )
    for name in ("None", "NONE", "nOnE", "hs256", "RS256", "EdDSA", "", None, 7, ["HS256"]):
        head = base64.urlsafe_b64encode(json.dumps({"alg": name, "typ": "JWT"}).encode())
        _, payload, signature = _signed({}).split(".")
        for ending in (signature, ""):
            forged = f"{head.decode().rstrip('=')}.{payload}.{ending}"
            assert _reason(issuer, forged) in ("bad signature", "malformed")


def test_another_key(issuer: TokenIssuer) -> None:
    """A token of another run or server is refused."""
    assert _reason(issuer, _signed({}, new_key())) == "bad signature"
    assert _reason(issuer, TokenIssuer(new_key(), SERVICE).issue(BOB, (), NOW).token) == (
        "bad signature"
    )


def _header(header: str) -> str:
    head = base64.urlsafe_b64encode(header.encode()).decode().rstrip("=")
    return ".".join([head, *_signed({}).split(".")[1:]])


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "\u00e9.b.c",
        "\udc80",
        "\0",
        " ",
        _signed({}) + ".x",
        "Bearer " + _signed({}),
        _header("[" * 4000),
        _header('{"a":' * 800),
        _header("7"),
        _header("null"),
        _header('{"alg":"HS256","crit":["b64"],"b64":false}'),
        _header('{"alg":"HS256","kid":7}'),
    ],
    ids=range(19),
)
def test_malformed(issuer: TokenIssuer, token: str) -> None:
    """Text that is no token is refused as malformed, without another kind of error."""
    assert _reason(issuer, token) in ("malformed", "bad signature")


def test_oversized(issuer: TokenIssuer) -> None:
    """Too large a token is refused before anything is read from it."""
    assert _reason(issuer, _signed({"pad": "x" * MAX_LENGTH})) == "too large"
    assert _reason(issuer, "x" * 10_000_000) == "too large"


@settings(deadline=None)
@given(st.data())
def test_any_changed_character(data: st.DataObject) -> None:
    """A token with any character changed is refused, but for the signature's unused last bits."""
    token = TokenIssuer(KEY, SERVICE, RUN).issue(BOB, SCOPES, NOW).token
    position = data.draw(st.integers(0, len(token) - 2))
    other = data.draw(st.characters(codec="ascii").filter(lambda one: one != token[position]))
    with pytest.raises(TokenInvalid):
        TokenIssuer(KEY, SERVICE, RUN).verify(token[:position] + other + token[position + 1 :], NOW)


def test_kinds_are_not_mixed(issuer: TokenIssuer) -> None:
    """Access token, refresh token and short-lived password never stand in for each other."""
    robots = Robots(KEY, RUN)
    access = issuer.issue(BOB, SCOPES, NOW).token
    refresh = issuer.issue_refresh(BOB, NOW)
    robot = robots.issue("x", [Permission(Role.GUEST, parse_glob("**"))], 3600, NOW).password
    assert refresh is not None
    assert issuer.verify_refresh(refresh.token, NOW).name == "bob"
    for wrong in (refresh.token, robot):
        assert _reason(issuer, wrong) == "wrong audience"
    for wrong in (access, robot):
        with pytest.raises(TokenInvalid, match="wrong audience"):
            issuer.verify_refresh(wrong, NOW)


def test_service_names_cannot_collide_with_other_kinds() -> None:
    """A service named as another kind's audience would mix them, so it is refused."""
    for service in ("", "mayfly robot", "a refresh"):
        with pytest.raises(ValueError, match="service"):
            TokenIssuer(KEY, service, RUN)


def test_refresh_token(issuer: TokenIssuer) -> None:
    """It brings the caller back without any grant, and is none for a certificate or anonymous."""
    issued = issuer.issue_refresh(BOB, NOW)
    assert issued is not None
    assert issuer.verify_refresh(issued.token, NOW + 3600) == Identity(
        "bob", "refresh", expires=NOW + 12 * 3600, fingerprint="f" * 32
    )
    assert issuer.issue_refresh(ANONYMOUS, NOW) is None
    assert issuer.issue_refresh(Identity("n", "certificate"), NOW) is None


def test_access_token_buys_no_token(issuer: TokenIssuer) -> None:
    """A leaked access token cannot be renewed."""
    identity = issuer.verify(issuer.issue(BOB, SCOPES, NOW).token, NOW)
    with pytest.raises(ValueError, match="no token is issued"):
        issuer.issue(identity, SCOPES, NOW)
    with pytest.raises(ValueError, match="no token is issued"):
        issuer.issue_refresh(identity, NOW)


def test_tokens_end_with_the_proof(issuer: TokenIssuer) -> None:
    """A short-lived credential's tokens end with it, but access tokens live their minute."""
    robot = Identity("robot+x", "robot", permissions=(), expires=NOW + 100)
    assert issuer.issue(robot, (), NOW).expires_in == 100
    assert issuer.issue(robot, (), NOW + 99).expires_in == MIN_LIFETIME


def test_refreshing_does_not_outlive_the_proof(issuer: TokenIssuer) -> None:
    """Refresh tokens bought with refresh tokens all end when the first proof does."""
    identity = Identity("robot+x", "robot", permissions=(), expires=NOW + 100)
    for now in range(NOW, NOW + 100, 10):
        issued = issuer.issue_refresh(identity, now)
        assert issued is not None
        identity = issuer.verify_refresh(issued.token, now)
        assert identity.expires == NOW + 100


def test_full_scope_list_fits(issuer: TokenIssuer) -> None:
    """All a request may ask for fits in a token; what does not is refused by name."""
    longest = (MAX_TEXT - 31) // 32 - len("repository::pull,push")
    asked = parse_scopes([f"repository:{'a' * (longest - 2)}{n:02}:pull,push" for n in range(32)])
    token = issuer.issue(BOB, asked, NOW).token
    assert issuer.verify(token, NOW).access == asked
    huge = [Scope("repository", f"{'a' * 250}{n}", frozenset({"pull"})) for n in range(32)]
    with pytest.raises(ScopeInvalid, match="do not fit"):
        issuer.issue(BOB, huge, NOW)


def test_lifetime_bounds() -> None:
    """No token is configured to live under a minute."""
    for lifetimes in ((59, 3600), (300, 59)):
        with pytest.raises(ValueError, match="at least 60"):
            TokenIssuer(KEY, SERVICE, RUN, *lifetimes)


def test_signed_as_the_library_signs() -> None:
    """A token has the bytes that the library makes of the same claims."""
    token = Signer(KEY, SERVICE, RUN).sign("bób", NOW, NOW + 60, {"access": [{"name": "a/b"}]})
    claims = jwt.decode(token, options={"verify_signature": False})
    assert token == jwt.encode(claims, KEY, "HS256")


def test_claims_cannot_replace_standard_ones() -> None:
    """Added claims never change the owner or the end of a token."""
    token = Signer(KEY, SERVICE, RUN).sign("bob", NOW, NOW + 60, {"sub": "admin", "exp": 2 * NOW})
    claims = Signer(KEY, SERVICE, RUN).verify(token, NOW)
    assert (claims["sub"], claims["exp"]) == ("bob", NOW + 60)


def test_short_key() -> None:
    """A short key is a programming error."""
    with pytest.raises(ValueError, match="32 bytes"):
        Signer(b"secret", SERVICE)


def test_new_key() -> None:
    """Each is long enough, and another."""
    key = new_key()
    check_key(key)
    assert len(key) >= 32
    assert new_key() != key


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (b"zuul-secret", "fewer than 32"),
        (b"secret" * 6, "not random"),
        (b"", "fewer than 32"),
        (b"-----BEGIN RSA PRIVATE KEY-----\n" + new_key(), "PEM"),
        (b"ssh-ed25519 " + new_key() + b" me@host", "SSH"),
        (b'{"kty":"oct","k":"' + new_key() + b'"}', "JWK"),
    ],
    ids=["short", "repeated", "blank", "pem", "ssh", "jwk"],
)
def test_refused_key(key: bytes, message: str) -> None:
    """A key that others can guess, or meant for something else."""
    with pytest.raises(InputInvalid, match=message):
        check_key(key)
