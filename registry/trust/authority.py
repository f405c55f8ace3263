"""`--tls auto`: a CA of our own, and a server certificate for every name of this host.

Four files in the state directory: ``ca.crt`` and ``tls.crt``, and 0600 ``ca.key`` and ``tls.key``.
They are used again by the next start as long as they serve, so nodes that trust the CA keep
trusting it:

- The CA is made when there is none or it has expired. It is never replaced for another reason.
- The server certificate is made anew, by the same CA, when it lacks a wanted name, is within the
  last third of its life, does not fit its key or the CA, or others could read its key.
- A CA key that others could read is refused: only the operator knows whether they did.

Each key is in place before its certificate. A crash between the two leaves a certificate that is
absent, expired or does not fit, and each of these is mended by the rules above.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from registry.trust.certificate import (
    Certificate,
    check_key_mode,
    fingerprint,
    read_authority,
    read_pair,
)
from registry.trust.errors import TrustError
from registry.trust.files import Attributes, locked, publish

CA_LIFETIME = timedelta(days=3650)
"""Nodes trust the CA for this registry's host and port alone, so it may outlive many upgrades."""

LEAF_LIFETIME = timedelta(days=365)
"""Under the 398 days public CAs keep to."""

BACKDATE = timedelta(days=1)
"""Nodes without a time server lag; a certificate from the future is refused like a forged one."""

_KEY = Attributes(0o600)
_CERTIFICATE = Attributes(0o644)


@dataclass(frozen=True)
class Identity:
    """Where the certificates of `--tls auto` lie.

    ``fingerprint`` is the CA's SHA-256, in the form openssl prints. ``made`` says what was made by
    this call: both in a fresh state directory, nothing when all could be used again.
    """

    ca: Path
    certificate: Path
    key: Path
    fingerprint: str
    made: frozenset[Literal["ca", "certificate"]]


def ensure(directory: Path, names: Collection[str], now: datetime) -> Identity:
    """See to it that ``directory`` holds a CA and a server certificate for all of ``names``.

    Cheap enough (milliseconds, and no `cryptography`) to be asked again every day when nothing
    has to be made. ``names`` are canonical, see `registry.trust.addresses.wanted_names`; ``now``
    is in UTC.

    Raises:
        TrustError: a file there is damaged, open to others, or the CA's key is gone or another
            CA's: replacing that CA would cut off every node that trusts it.
        OSError: the directory cannot be written.
    """
    ca, ca_key = directory / "ca.crt", directory / "ca.key"
    certificate, key = directory / "tls.crt", directory / "tls.key"
    made: set[Literal["ca", "certificate"]] = set()
    with locked(directory):
        if ca_key.exists():
            check_key_mode(ca_key)
        if not _serves_as_authority(ca, now):
            _make_authority(ca, ca_key, now)
            made.add("ca")
        if not _serves(certificate, key, ca, names, now):
            _make_leaf(ca, ca_key, certificate, key, names, now)
            made.add("certificate")
        return Identity(ca, certificate, key, fingerprint(ca.read_bytes()), frozenset(made))


def _serves_as_authority(ca: Path, now: datetime) -> bool:
    return ca.exists() and now < read_authority(ca).not_after


def _serves(certificate: Path, key: Path, ca: Path, names: Collection[str], now: datetime) -> bool:
    """Whether the server certificate there can be used again."""
    if not (certificate.exists() and key.exists()):
        return False
    try:
        found = read_pair(certificate, key, ca)
    except TrustError:
        # Half replaced, or made by a CA that is gone: it is ours to make anew.
        return False
    return found.names.issuperset(names) and not _in_last_third(found, now)


def _in_last_third(found: Certificate, now: datetime) -> bool:
    lifetime = found.not_after - found.not_before
    return not found.not_before <= now < found.not_after - lifetime / 3


def _make_authority(ca: Path, ca_key: Path, now: datetime) -> None:
    from registry.trust.issue import new_authority

    certificate_pem, key_pem = new_authority(now - BACKDATE, now + CA_LIFETIME)
    publish(ca_key, key_pem, _KEY)
    publish(ca, certificate_pem, _CERTIFICATE)


def _make_leaf(
    ca: Path, ca_key: Path, certificate: Path, key: Path, names: Collection[str], now: datetime
) -> None:
    from registry.trust.issue import new_leaf

    certificate_pem, key_pem = new_leaf(
        ca, ca_key, names, now - BACKDATE, min(now + LEAF_LIFETIME, read_authority(ca).not_after)
    )
    publish(key, key_pem, _KEY)
    publish(certificate, certificate_pem, _CERTIFICATE)
