"""Make certificates. Import this module only to make one: `cryptography` costs 80 ms and 13 MiB.

The profile is RFC 5280's, as far as Go's crypto/x509 (docker, containerd, podman) and OpenSSL with
X509_V_FLAG_X509_STRICT (Python 3.13) check it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mayfly.registry.pki.addresses import is_address
from mayfly.registry.pki.errors import TrustError

_MAX_HOST = 30
"""Characters of the host's name in the CA's: a common name ends at 64 (RFC 5280, upper bounds)."""


def new_authority(
    not_before: datetime, not_after: datetime, permitted: Collection[str] | None = None
) -> tuple[bytes, bytes]:
    """A fresh CA: its certificate and private key, PEM.

    It may sign for the ``permitted`` names and addresses (and names below those names) only; for
    any if that is None. At least one of each kind is needed: a kind without is not constrained.

    Its name is its own, so that two CAs a host had one after the other can be told apart.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = _name(f"Mayfly CA {socket.gethostname()[:_MAX_HOST]} {serial & 0xFFFFFFFF:08x}")
    builder = (
        _builder(name, name, key, serial, not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    if permitted is not None:
        subtrees = x509.NameConstraints([*map(_subtree, permitted)], excluded_subtrees=None)
        builder = builder.add_extension(subtrees, critical=True)
    return _pem(builder.sign(key, hashes.SHA256())), _key_pem(key)


def new_leaf(
    authority: Path,
    authority_key: Path,
    names: Collection[str],
    not_before: datetime,
    not_after: datetime,
    key_pem: bytes | None = None,
) -> tuple[bytes, bytes]:
    """A server certificate for canonical ``names``, and its private key, PEM.

    Args:
        authority, authority_key: files of the CA.
        names: of the server.
        not_before, not_after: in UTC.
        key_pem: the key to use again, if it is one like ours.

    Raises:
        TrustError: the CA's key is missing, damaged, or another CA's, or it may not sign a name.
    """
    issuer, issuer_key = _load(authority, authority_key)
    _check_permitted(authority, issuer, names)
    key = _read_key(key_pem) or ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    certificate = (
        _builder(_name("Mayfly"), issuer.subject, key, serial, not_before, not_after)
        .add_extension(x509.SubjectAlternativeName(map(_general_name, names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def _load(
    authority: Path, authority_key: Path
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    advice = (
        f"put the key of {authority} back, or remove both files for a new CA, "
        "which every node must be told to trust"
    )
    try:
        issuer = x509.load_pem_x509_certificate(authority.read_bytes())
        key = serialization.load_pem_private_key(authority_key.read_bytes(), password=None)
    except FileNotFoundError as error:
        raise TrustError(f"{error.filename}: missing; {advice}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise TrustError(f"{authority_key}: not a usable private key; {advice}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != issuer.public_key():
        raise TrustError(f"{authority_key}: is the key of another certificate; {advice}")
    return issuer, key


def _read_key(pem: bytes | None) -> ec.EllipticCurvePrivateKey | None:
    try:
        key = serialization.load_pem_private_key(pem, password=None) if pem else None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _check_permitted(authority: Path, issuer: x509.Certificate, names: Collection[str]) -> None:
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return
    permitted = [subtree.value for subtree in constraints.permitted_subtrees or ()]
    refused = [name for name in names if not any(_covers(one, name) for one in permitted)]
    if refused:
        raise TrustError(
            f"{authority}: this CA may not sign {', '.join(refused)}: it was made with "
            f"--tls-constrain for {', '.join(map(str, permitted))}; serve without that name, or "
            "remove ca.crt and ca.key for another CA, which every node must be told to trust"
        )


def _covers(permitted: object, name: str) -> bool:
    if is_address(name):
        networks = (ipaddress.IPv4Network, ipaddress.IPv6Network)
        return isinstance(permitted, networks) and ipaddress.ip_address(name) in permitted
    bare = name.removeprefix("*.")
    return isinstance(permitted, str) and (bare == permitted or bare.endswith(f".{permitted}"))


def _subtree(name: str) -> x509.GeneralName:
    if is_address(name):
        return x509.IPAddress(ipaddress.ip_network(name))
    return x509.DNSName(name.removeprefix("*."))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    serial: int,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if is_address(name) else x509.DNSName(name)


def _key_usage(**granted: bool) -> x509.KeyUsage:
    none = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**(none | granted))


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
