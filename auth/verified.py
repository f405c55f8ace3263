"""Tokens that were checked a moment ago.

Checking a signature and the claims takes some 150 µs; a client shows the same token with each of a
pull's requests. What was found is kept under the token's SHA-256 until the token expires. A key
never changes while a process runs, so nothing else can make a good token bad.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from mayfly.auth.errors import TokenInvalid
from mayfly.auth.identity import Identity
from mayfly.auth.limits import BoundedDict

MAX_REMEMBERED = 4096
"""Tokens remembered: some 5 MiB at most. The one seen first is forgotten first."""


class VerifiedTokens:
    """Checks tokens, each in full only once. Safe for use from several threads.

    Args:
        verify: the full check of a token at a Unix time; its identities say when they expire.
    """

    def __init__(self, verify: Callable[[str, float], Identity]) -> None:
        self._verify = verify
        self._found: BoundedDict[bytes, Identity] = BoundedDict(MAX_REMEMBERED)

    def __call__(self, token: str, now: float) -> Identity:
        """The caller a token speaks for.

        Raises:
            TokenInvalid: as the full check, and when the token has expired since.
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
