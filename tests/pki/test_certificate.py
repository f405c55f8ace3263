"""Reading somebody's certificate and key, and what is said when they cannot be used."""

from __future__ import annotations

import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mayfly.registry.pki.certificate import (
    check_key_mode,
    fingerprint,
    load_pair,
    pem_certificates,
    read_authority,
    read_pair,
)
from mayfly.registry.pki.errors import TrustError
from tests.support.certificates import CLIENT, DAY, self_signed
from tests.support.process import need


def test_a_good_pair_is_read_without_cryptography(tmp_path: Path) -> None:
    """Names and times come from the standard library alone."""
    pair = self_signed(tmp_path, dns=["Registry.example.com", "localhost"])
    found = read_pair(pair.certificate, pair.key)
    assert found.names == {"registry.example.com", "localhost"}
    now = datetime.now(UTC)
    assert found.not_before < now < found.not_after
    found.check_time(now)
    assert found.warnings(now) == ()


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666, 0o620, 0o601, 0o660])
def test_a_key_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    """The error says which command closes it."""
    key = self_signed(tmp_path).key
    key.chmod(mode)
    with pytest.raises(TrustError, match=rf"open to others \(mode {mode:04o}\); run: chmod 600"):
        check_key_mode(key)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_key_for_owner_and_group_is_accepted(tmp_path: Path, mode: int) -> None:
    """0640 is what a key group or a Kubernetes fsGroup makes."""
    key = self_signed(tmp_path).key
    key.chmod(mode)
    check_key_mode(key)


def test_a_link_to_an_open_key_is_refused(tmp_path: Path) -> None:
    """The mode of what the link leads to counts."""
    key = self_signed(tmp_path).key
    key.chmod(0o644)
    (tmp_path / "link").symlink_to(key)
    with pytest.raises(TrustError, match="open to others"):
        check_key_mode(tmp_path / "link")


def _load(certificate: Path, key: Path) -> str:
    """What loading the pair complains of."""
    with pytest.raises(TrustError) as error:
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_errors_of_files_name_the_file(tmp_path: Path) -> None:
    """Missing, not PEM, the wrong way round: each says which file."""
    pair = self_signed(tmp_path)
    absent = tmp_path / "absent"
    noise = tmp_path / "noise"
    noise.write_bytes(b"\x30\x82\x01")
    assert _load(absent, pair.key) == f"{absent}: cannot be read: No such file or directory"
    assert _load(noise, pair.key) == f"{noise}: holds no PEM certificate"
    assert _load(pair.certificate, noise) == f"{noise}: holds no PEM private key"
    assert _load(pair.key, pair.certificate) == f"{pair.key}: holds no PEM certificate"
    assert "cannot be read" in _load(tmp_path, pair.key)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    """Both files are named, and the usual cause."""
    one, other = self_signed(tmp_path, "one"), self_signed(tmp_path, "other")
    text = _load(one.certificate, other.key)
    assert str(other.key) in text
    assert str(one.certificate) in text
    assert "own certificate first" in text


def test_an_encrypted_key_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    """OpenSSL would ask on the terminal, and a service wait for ever."""
    pair = self_signed(tmp_path, password=b"secret")
    assert "is encrypted" in _load(pair.certificate, pair.key)


def test_a_damaged_certificate_is_refused(tmp_path: Path) -> None:
    """Base64 that is no certificate."""
    pair = self_signed(tmp_path)
    pair.certificate.write_text(
        "-----BEGIN CERTIFICATE-----\nMIIBAAAA\n-----END CERTIFICATE-----\n"
    )
    assert str(pair.certificate) in _load(pair.certificate, pair.key)


def test_a_client_certificate_cannot_serve(tmp_path: Path) -> None:
    """What every client would refuse is refused at the start."""
    pair = self_signed(tmp_path, purpose=CLIENT)
    with pytest.raises(TrustError, match=r"clients would refuse .* purpose"):
        read_pair(pair.certificate, pair.key)


def test_times_are_judged_with_the_clock_named(tmp_path: Path) -> None:
    """Expired and future certificates are refused; the host's clock may be what is wrong."""
    old = self_signed(tmp_path, "old", begins=-9 * DAY, ends=-DAY)
    with pytest.raises(TrustError, match=r"expired .* clock says .*: set the clock"):
        read_pair(old.certificate, old.key).check_time(datetime.now(UTC))
    new = self_signed(tmp_path, "new", begins=DAY)
    with pytest.raises(TrustError, match=r"not valid before .* clock says .*: set the clock"):
        read_pair(new.certificate, new.key).check_time(datetime.now(UTC))


def test_what_will_trouble_clients_is_a_warning(tmp_path: Path) -> None:
    """No subjectAltName, and an expiry near."""
    pair = self_signed(tmp_path, dns=[], ends=timedelta(days=3))
    first, second = read_pair(pair.certificate, pair.key).warnings(datetime.now(UTC))
    assert "no subjectAltName" in first
    assert "expires" in second


def test_a_chain_must_lead_to_the_authority_given(tmp_path: Path) -> None:
    """A pair of another CA does not pass for ours."""
    pair, other = self_signed(tmp_path, "one"), self_signed(tmp_path, "other", ca=True)
    with pytest.raises(TrustError, match="clients would refuse"):
        read_pair(pair.certificate, pair.key, other.certificate)


def test_read_authority_wants_a_ca(tmp_path: Path) -> None:
    """A leaf is no authority."""
    leaf, ca = self_signed(tmp_path, "leaf"), self_signed(tmp_path, "ca", ca=True)
    assert read_authority(ca.certificate).names == {"localhost"}
    with pytest.raises(TrustError, match="holds no CA certificate"):
        read_authority(leaf.certificate)


def test_only_certificates_leave_a_pem_text(tmp_path: Path) -> None:
    """A private key in the same file never reaches a node."""
    one, two = self_signed(tmp_path, "one"), self_signed(tmp_path, "two")
    text = (
        "a comment: ünïcode\n".encode()
        + one.key.read_bytes()
        + one.certificate.read_bytes().replace(b"\n", b"\r\n")
        + two.certificate.read_bytes()
    )
    found = pem_certificates(text, "here")
    assert found == one.certificate.read_bytes() + two.certificate.read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "here: holds no PEM certificate"),
        (b"\xff\xfe", "here: holds no PEM certificate"),
        (
            b"-----BEGIN CERTIFICATE-----\nMIIBAAAA\n-----END CERTIFICATE-----\n",
            "here: damaged certificate",
        ),
    ],
)
def test_a_bad_pem_text_is_refused(text: bytes, message: str) -> None:
    """The error says where it came from."""
    with pytest.raises(TrustError, match=message):
        pem_certificates(text, "here")


def test_the_fingerprint_is_openssl_s(tmp_path: Path) -> None:
    """An operator compares it with what openssl prints."""
    need("openssl")
    pair = self_signed(tmp_path)
    shown = subprocess.check_output(
        ["openssl", "x509", "-in", pair.certificate, "-noout", "-fingerprint", "-sha256"], text=True
    )
    assert fingerprint(pair.certificate.read_bytes()) == shown.strip().partition("=")[2]
    with pytest.raises(TrustError):
        fingerprint(b"")
