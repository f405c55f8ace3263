"""Parses the value of a Basic ``Authorization`` header (RFC 7617, in UTF-8)."""

from __future__ import annotations

import base64
import binascii

from mayfly.auth.errors import CredentialsInvalid

MAX_LENGTH = 8192
"""Longest header value read, in characters; a short-lived credential takes about 700."""


def parse_basic(value: str) -> tuple[str, str]:
    """Read ``Basic base64(name:password)``.

    The name ends at the first colon; the password may contain more.

    Raises:
        CredentialsInvalid: another scheme, not base64, not UTF-8, no colon, or over-long.
    """
    scheme, _, encoded = value.partition(" ")
    if len(value) > MAX_LENGTH or scheme.lower() != "basic":
        raise CredentialsInvalid
    try:
        text = base64.b64decode(encoded.strip(" "), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise CredentialsInvalid from None
    name, colon, password = text.partition(":")
    if not colon:
        raise CredentialsInvalid
    return name, password
