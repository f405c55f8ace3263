"""Remembers tokens that were checked.

Checking a signature and the claims takes some 150 µs, and a client sends the same token with each
request of a pull. The identity is kept under the token's SHA-256 until the token expires. A key
never changes while a process runs, so that nothing else can invalidate a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from mayfly.auth.errors import TokenInvalid
from mayfly.auth.identity import Identity
from mayfly.auth.limits import BoundedDict

MAX_REMEMBERED = 4096
"""Most tokens remembered, some 5 MiB; the one seen first is forgotten first."""


class VerifiedTokens:
    """Checks tokens, each completely only once. Safe for use from several threads.

    Args:
        verify: checks a token completely at a Unix time; its identities have an end.
    """

    def __init__(self, verify: Callable[[str, float], Identity]) -> None:
        self._verify = verify
        self._found: BoundedDict[bytes, Identity] = BoundedDict(MAX_REMEMBERED)

    def __call__(self, token: str, now: float) -> Identity:
        """Return the owner of a token.

        Raises:
            TokenInvalid: the full check failed, or the token has expired since.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        identity = self._found.get(digest)
        if identity is None:
            identity = self._verify(token, now)
            self._found[digest] = identity
        elif identity.expires is None or identity.expires <= now:
            self._found.pop(digest, None)
            raise TokenInvalid("expired")
        return identity
