"""Digests: ``algorithm:hex``, the names of content.

Grammar and registered algorithms: OCI image-spec, descriptor.md, "Digests". Only the two
registered algorithms are accepted; a path is built from a `Digest`, never from text.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, NamedTuple

from mayfly.storage.errors import DigestInvalid

if TYPE_CHECKING:
    from hashlib import _Hash

HEX_LENGTHS = {"sha256": 64, "sha512": 128}
"""The length of the lower-case hexadecimal text of each registered algorithm."""

CANONICAL = "sha256"
"""The algorithm used if the client does not choose one."""

_HEX = re.compile(r"[0-9a-f]+")


class Digest(NamedTuple):
    """A validated digest. Make one with `parse` or `of`, never from unchecked parts."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def parse(text: str) -> Digest:
    """Read ``algorithm:hex``.

    Raises:
        DigestInvalid: the text is not a digest, or its algorithm is not sha256 or sha512.
    """
    algorithm, separator, encoded = text.partition(":")
    if not separator:
        raise DigestInvalid(f"not a digest: {text[:100]!r} (expected algorithm:hex)")
    length = HEX_LENGTHS.get(algorithm)
    if length is None:
        known = ", ".join(HEX_LENGTHS)
        raise DigestInvalid(f"digest algorithm {algorithm[:40]!r} is not supported ({known} are)")
    if len(encoded) != length or not _HEX.fullmatch(encoded):
        raise DigestInvalid(f"a {algorithm} digest has {length} lower-case hexadecimal digits")
    return Digest(algorithm, encoded)


def hasher(algorithm: str = CANONICAL) -> _Hash:
    """Return a new hash for a registered algorithm.

    Raises:
        DigestInvalid: the algorithm is not supported.
    """
    if algorithm not in HEX_LENGTHS:
        known = ", ".join(HEX_LENGTHS)
        raise DigestInvalid(f"digest algorithm {algorithm[:40]!r} is not supported ({known} are)")
    return hashlib.new(algorithm, usedforsecurity=True)


def of(data: bytes, algorithm: str = CANONICAL) -> Digest:
    """Return the digest of ``data``."""
    made = hasher(algorithm)
    made.update(data)
    return Digest(algorithm, made.hexdigest())
