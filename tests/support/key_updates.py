"""A TLS 1.3 client that asks for new keys again and again, which Python's own cannot (RFC 8446)."""

from __future__ import annotations

import ssl
import struct
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

_UPDATE_REQUESTED = b"\x18\x00\x00\x01\x01"
_HANDSHAKE = b"\x16"
_TAG = 16
_LOGGED = "CLIENT_TRAFFIC_SECRET_0"


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label without a context (7.1)."""
    name = b"tls13 " + label
    info = struct.pack(">HB", length, len(name)) + name + b"\0"
    return HKDFExpand(SHA384(), length, info).derive(secret)


def key_updates(count: int, client: ssl.SSLSocket | ssl.SSLObject, keys: Path) -> bytes:
    """So many records, each asking for an answer, that follow the client's handshake at once.

    Args:
        client: that has sent nothing since; it has to send nothing after them.
        keys: the file that its context logs keys to.
    """
    cipher = client.cipher()
    assert cipher is not None and cipher[0] == "TLS_AES_256_GCM_SHA384", cipher
    (line,) = (one for one in keys.read_text().splitlines() if one.startswith(_LOGGED))
    secret = bytes.fromhex(line.split()[2])
    plain = _UPDATE_REQUESTED + _HANDSHAKE
    head = b"\x17\x03\x03" + struct.pack(">H", len(plain) + _TAG)
    records = []
    for _ in range(count):
        # The first record under a new key: its number is 0, and its nonce the IV as it is.
        sealing = AESGCM(_expand(secret, b"key", 32))
        records.append(head + sealing.encrypt(_expand(secret, b"iv", 12), plain, head))
        secret = _expand(secret, b"traffic upd", 48)
    return b"".join(records)
