"""Read a certificate and its key with nothing but `ssl`, by the way a client would: a handshake.

The standard library decodes only certificates that were verified in a handshake, so one is made,
in memory: it takes about a millisecond and proves at once that the pair loads, that the key
belongs to the certificate, that the chain leads to the authority and that a client accepts the
purpose. (`cryptography` would take 80 ms and 13 MiB for it.)
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mayfly.registry.pki.addresses import canonical
from mayfly.registry.pki.errors import TrustError
from mayfly.registry.text import host_time, to_the_minute
from mayfly.storage.files import OPEN_TO_OTHERS, exposed_mode

EXPIRES_SOON = timedelta(days=14)
"""From here on an expiry is worth a warning."""

# <openssl/x509_vfy.h>; the times are judged here, where the error can name them.
_X509_V_FLAG_NO_CHECK_TIME = 0x200000
_MAX_FLIGHTS = 10
_NAME_CONSTRAINTS = bytes.fromhex("0603551d1e")
"""DER of the object identifier 2.5.29.30 (RFC 5280, 4.2.1.10)."""
_PEM_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----"
)


@dataclass(frozen=True)
class Certificate:
    """The contents of a server certificate.

    ``names`` are its subjectAltNames, canonical; times are UTC.
    """

    path: Path
    names: frozenset[str]
    not_before: datetime
    not_after: datetime

    def check_time(self, now: datetime) -> None:
        """Refuse a certificate that no client would accept now.

        Raises:
            TrustError: it has expired or is not valid yet.
        """
        fault = self.expired(now) or self.not_yet_valid(now)
        if fault is not None:
            raise TrustError(
                f"{self.path}: certificate {fault}: set the clock if it is wrong, otherwise renew "
                "the certificate, or serve with --tls auto"
            )

    def expired(self, now: datetime) -> str | None:
        """Return a text such as "expired …, and this host's clock says …"; None if it has not."""
        if now < self.not_after:
            return None
        return f"expired {to_the_minute(self.not_after)}, and {host_time(now)}"

    def not_yet_valid(self, now: datetime) -> str | None:
        """Return a text such as "is not valid before …, and this host's clock says …", or None."""
        if now >= self.not_before:
            return None
        return f"is not valid before {to_the_minute(self.not_before)}, and {host_time(now)}"

    def warnings(self, now: datetime) -> tuple[str, ...]:
        """Return problems that clients will have with a certificate that can be served."""
        found = []
        if not self.names:
            found.append(
                f"{self.path}: certificate has no subjectAltName; docker, containerd and podman "
                "refuse it whatever its common name says"
            )
        if self.not_after - now < EXPIRES_SOON:
            found.append(
                f"{self.path}: certificate expires {to_the_minute(self.not_after)}; renew it"
            )
        return tuple(found)


def check_key_mode(key: Path) -> None:
    """Refuse a private key that others on this host can read, see `OPEN_TO_OTHERS`.

    Raises:
        TrustError: its mode is too open.
        OSError: it cannot be looked at.
    """
    mode = exposed_mode(key.stat(), OPEN_TO_OTHERS)
    if mode is not None:
        raise TrustError(
            f"{key}: private key is open to others (mode {mode}); run: chmod 600 {key} "
            "(in a Kubernetes Secret volume: defaultMode: 0400)"
        )


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load a certificate chain and its private key into a context.

    Raises:
        TrustError: a file is missing, unreadable, not PEM, encrypted or open to others, or the
            key is another certificate's. The context is then unusable.
    """
    _expect(certificate, b"-----BEGIN CERTIFICATE-----", "PEM certificate")
    _expect(key, b"PRIVATE KEY-----", "PEM private key")
    check_key_mode(key)
    try:
        context.load_cert_chain(certificate, key, password=lambda: _refuse_encrypted(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TrustError(
                f"{key}: private key does not belong to the first certificate in {certificate}; "
                "give the server's own certificate first, its issuers after it"
            ) from None
        raise TrustError(f"{certificate}, {key}: {_reason(error)}") from None


def read_pair(certificate: Path, key: Path, authority: Path | None = None) -> Certificate:
    """Read a server certificate after it and its key proved good in a handshake.

    Given an ``authority`` file, the chain must lead there; without one it is trusted as it is.
    Times are not judged: see `Certificate.check_time`.

    Raises:
        TrustError: as `load_pair`, or a client would not accept the chain.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(server, certificate, key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _X509_V_FLAG_NO_CHECK_TIME
    load_authority(client, authority or certificate)
    try:
        decoded = _handshake(server, client)
    except ssl.SSLCertVerificationError as error:
        raise TrustError(
            f"{certificate}: clients would refuse this certificate: {error.verify_message}"
        ) from None
    except ssl.SSLError as error:
        raise TrustError(f"{certificate}: TLS handshake fails: {_reason(error)}") from None
    return _certificate(certificate, decoded)


def load_authority(context: ssl.SSLContext, path: Path) -> None:
    """Trust the certificates in a PEM file.

    Raises:
        TrustError: the file is missing, unreadable or holds no certificate.
    """
    _expect(path, b"-----BEGIN CERTIFICATE-----", "PEM certificate")
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise TrustError(f"{path}: {_reason(error)}") from None


def read_authority(path: Path) -> Certificate:
    """Read the one CA certificate in a file.

    Raises:
        TrustError: the file is missing, unreadable or holds no CA certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_authority(context, path)
    authorities = context.get_ca_certs()
    if not authorities:
        raise TrustError(f"{path}: holds no CA certificate (basicConstraints CA:TRUE)")
    return _certificate(path, authorities[0])


def is_constrained(path: Path) -> bool:
    """Whether the CA certificate in a file has name constraints.

    Raises:
        TrustError: it holds no certificate.
    """
    _expect(path, b"-----BEGIN CERTIFICATE-----", "PEM certificate")
    block = _PEM_CERTIFICATE.search(path.read_text("ascii", errors="replace"))
    # Its name is enough: nothing else of a CA of ours has these bytes, but by a chance of 2**-40.
    return block is not None and _NAME_CONSTRAINTS in ssl.PEM_cert_to_DER_cert(block.group())


def pem_certificates(pem: bytes, source: str) -> bytes:
    """Only the certificates of a PEM text: comments dropped, and any private key.

    Raises:
        TrustError: there is none, or one is damaged; ``source`` says where.
    """
    blocks = _PEM_CERTIFICATE.findall(pem.decode("ascii", errors="replace"))
    if not blocks:
        raise TrustError(f"{source}: holds no PEM certificate; give the CA's certificate file")
    try:
        text = "".join(
            ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(block)) for block in blocks
        )
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ValueError, ssl.SSLError) as error:
        raise TrustError(f"{source}: damaged certificate: {error}") from None
    return text.encode("ascii")


def fingerprint(pem: bytes) -> str:
    """SHA-256 of the first certificate in a PEM text, as `openssl x509 -fingerprint` prints it.

    Raises:
        TrustError: there is no certificate.
    """
    first = _PEM_CERTIFICATE.search(pem.decode("ascii", errors="replace"))
    if first is None:
        raise TrustError("no PEM certificate to take the fingerprint of")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first.group())).digest().hex(":").upper()


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> Mapping[str, object]:
    """The server certificate as the client decoded it.

    Raises:
        ssl.SSLError: the handshake failed.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [asking, answering]
    for _ in range(_MAX_FLIGHTS):
        waiting = [side for side in waiting if not _advance(side)]
        if not waiting:
            break
    return asking.getpeercert() or {}


def _advance(side: ssl.SSLObject) -> bool:
    """Whether this side's handshake is done."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _certificate(path: Path, decoded: Mapping[str, object]) -> Certificate:
    return Certificate(
        path,
        frozenset(_names(decoded.get("subjectAltName", ()))),
        _time(decoded["notBefore"]),
        _time(decoded["notAfter"]),
    )


def _names(entries: object) -> Iterator[str]:
    assert isinstance(entries, tuple)
    for kind, value in entries:
        if kind in ("DNS", "IP Address"):
            # Somebody else's certificate may hold names nobody can ask for.
            with contextlib.suppress(TrustError):
                yield canonical(value)


def _time(text: object) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(text)), UTC)


def _expect(path: Path, marker: bytes, what: str) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrustError(f"{path}: cannot be read: {error.strerror}") from None
    if marker not in content:
        raise TrustError(f"{path}: holds no {what}")


def _refuse_encrypted(key: Path) -> str:
    # Otherwise OpenSSL asks on the terminal, and a service waits for ever.
    raise TrustError(
        f"{key}: private key is encrypted; decrypt it: openssl pkey -in {key} -out PLAIN, chmod 600"
    )


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
