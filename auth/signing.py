"""Makes and checks signed tokens (JWT).

A token contains the ID of the run of the registry that issued it, and ends with that run: the key
may be a file that several runs share.

The only algorithm is HS256, with a random key: issuer and verifier are one program, so no public
key is needed, and a verifier with one algorithm and one kind of key cannot be made to use another
(RFC 8725, 3.1 and 3.2). The audience is the purpose of a token, so that no kind passes for another
(RFC 8725, 3.12): see `Signer`.

Tokens are made here and checked by the library. It is imported at the first use; `preload` imports
it in a thread beforehand, which takes some 50 ms and 10 MiB, because it imports the `cryptography`
package.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any

from mayfly.auth.errors import InputInvalid, TokenInvalid, TokenReason

ALGORITHM = "HS256"

ISSUER = "mayfly"

MIN_KEY_BYTES = 32
"""Shortest key: as long as the hash (RFC 7518, 3.2)."""

MAX_LENGTH = 7168
"""Longest token in characters, so that ``Authorization`` fits in an 8 KiB header line."""

LEEWAY = 5
"""Clock-skew leeway for ``nbf`` and ``iat``, in seconds; there is none for ``exp``."""

_MIN_DISTINCT_BYTES = 10
_CLAIMS = {"iss": str, "sub": str, "aud": str, "exp": int, "nbf": int, "iat": int, "jti": str}


def new_key() -> bytes:
    """Return a random key."""
    return secrets.token_urlsafe(48).encode()


def check_key(key: bytes) -> None:
    """Refuse a key that can be guessed, or that is meant for another algorithm.

    Raises:
        InputInvalid: it is a PEM file, an SSH key or a JWK, with which the library would check no
            token; it is shorter than `MIN_KEY_BYTES`, or plainly not random.
    """
    if key.startswith(b"-----BEGIN"):
        raise InputInvalid("is a PEM file, not an HMAC key")
    if key.startswith((b"ssh-", b"ecdsa-")):
        raise InputInvalid("is an SSH key, not an HMAC key")
    if b'"kty"' in key:
        raise InputInvalid("is a JWK, not an HMAC key")
    if len(key) < MIN_KEY_BYTES:
        raise InputInvalid(f"has fewer than {MIN_KEY_BYTES} bytes")
    if len(set(key)) < _MIN_DISTINCT_BYTES:
        raise InputInvalid("is not random")


def preload() -> None:
    """Import the library."""
    import jwt  # noqa: F401


def _base64url(data: bytes) -> bytes:
    """Return base64url without padding (RFC 7515, 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


_HEADER = _base64url(b'{"alg":"HS256","typ":"JWT"}')
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class Signer:
    """Signs and checks the claims of one kind of token.

    Args:
        key: at least `MIN_KEY_BYTES` random bytes.
        audience: the kind of token; signers with the same key accept each other's tokens only if
            it is the same.
        run: ID of the run that the tokens belong to; None for a new one.

    Raises:
        ValueError: the key is too short.
    """

    def __init__(self, key: bytes, audience: str, run: str | None = None) -> None:
        if len(key) < MIN_KEY_BYTES:
            raise ValueError(f"a signing key has at least {MIN_KEY_BYTES} bytes")
        self._key = key
        self._audience = audience
        self._run = run or secrets.token_urlsafe(12)

    def sign(self, subject: str, now: int, expires: int, claims: Mapping[str, object]) -> str:
        """Return a token.

        Args:
            subject: ``sub``.
            now: ``iat`` and ``nbf``, in Unix seconds.
            expires: ``exp``, in Unix seconds.
            claims: further claims, with values for JSON.
        """
        standard = {
            "iss": ISSUER,
            "sub": subject,
            "aud": self._audience,
            "exp": expires,
            "nbf": now,
            "iat": now,
            "jti": secrets.token_urlsafe(12),
            "run": self._run,
        }
        # Signed here, not by the library, which would examine the key's format with each token.
        signed = b"%b.%b" % (_HEADER, _base64url(_to_json({**claims, **standard}).encode()))
        signature = hmac.digest(self._key, signed, "sha256")
        return (b"%b.%b" % (signed, _base64url(signature))).decode()

    def verify(self, token: str, now: float, *, early: bool = False) -> dict[str, Any]:
        """Return the claims of a token that is genuine, of this kind, and valid now.

        The claims of RFC 7519 are complete and have their types; the caller checks the others.

        Args:
            now: Unix seconds.
            early: whether to accept one from the future: it is genuine, so the clock was set back.

        Raises:
            TokenInvalid: it is not genuine, of another kind or run, or not valid now.
        """
        if len(token) > MAX_LENGTH:
            raise TokenInvalid("too large")
        claims = self._decode(token)
        for name, kind in _CLAIMS.items():
            if type(claims[name]) is not kind:
                raise TokenInvalid("bad claims")
        if claims.get("run") != self._run:
            raise TokenInvalid("another run")
        if claims["exp"] <= now:
            raise TokenInvalid("expired")
        if not early and max(claims["nbf"], claims["iat"]) > now + LEEWAY:
            raise TokenInvalid("not yet valid")
        return claims

    def _decode(self, token: str) -> dict[str, Any]:
        import jwt

        reasons: dict[type[Exception], TokenReason] = {
            jwt.InvalidIssuerError: "wrong issuer",
            jwt.InvalidAudienceError: "wrong audience",
            jwt.MissingRequiredClaimError: "bad claims",
            jwt.InvalidSignatureError: "bad signature",
            jwt.InvalidAlgorithmError: "bad signature",
        }
        try:
            return jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=self._audience,
                # `verify` checks times, against the clock it is given, and types.
                options={
                    "require": list(_CLAIMS),
                    "strict_aud": True,
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_sub": False,
                    "verify_jti": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            # The header is parsed before the signature is checked, so that any error may occur.
            raise TokenInvalid(reasons.get(type(error), "malformed")) from None
