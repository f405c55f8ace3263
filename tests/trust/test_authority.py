"""The CA and certificate that `--tls auto` makes, and when it makes them anew."""

from __future__ import annotations

import fcntl
import os
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry.trust.authority import CA_LIFETIME, LEAF_LIFETIME, Identity, ensure
from registry.trust.certificate import fingerprint, read_authority, read_pair
from registry.trust.errors import TrustError
from tests.process import need
from tests.trust.certificates import self_signed

NAMES = ("localhost", "127.0.0.1", "::1", "registry.example.com", "fd00::2")
NOW = datetime.now(UTC).replace(microsecond=0)
BOTH = {"ca", "certificate"}


def _ensure(
    directory: Path, names: tuple[str, ...] = NAMES, after: timedelta = timedelta()
) -> Identity:
    return ensure(directory, names, NOW + after)


def test_a_fresh_directory_gets_four_files(tmp_path: Path) -> None:
    """Keys are 0600, and so is the directory to others."""
    made = _ensure(tmp_path / "state")
    assert made.made == BOTH
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()
    }
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "tls.crt": 0o644, "tls.key": 0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert made.fingerprint == fingerprint(made.ca.read_bytes())


def test_the_pair_proves_good_and_holds_every_name(tmp_path: Path) -> None:
    """Dated back for nodes whose clock lags, and within the CA's life."""
    made = _ensure(tmp_path)
    leaf = read_pair(made.certificate, made.key, made.ca)
    assert leaf.names == set(NAMES)
    assert leaf.not_before == NOW - timedelta(days=1)
    assert leaf.not_after == NOW + LEAF_LIFETIME
    assert read_authority(made.ca).not_after == NOW + CA_LIFETIME


def test_a_second_start_uses_the_same_files(tmp_path: Path) -> None:
    """Nothing is written again, and fewer names are covered too."""
    first = _ensure(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert _ensure(tmp_path, ("localhost",), timedelta(days=200)).made == set()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert _ensure(tmp_path).fingerprint == first.fingerprint


def test_a_second_start_does_not_load_cryptography(tmp_path: Path) -> None:
    """It costs 80 ms and 13 MiB, so only making a certificate may load it."""
    _ensure(tmp_path)
    program = (
        "import sys; from datetime import UTC, datetime; from pathlib import Path\n"
        "from registry.trust.authority import ensure\n"
        "from registry.trust.context import ServerTLS\n"
        f"made = ensure(Path({str(tmp_path)!r}), {NAMES!r}, datetime.now(UTC))\n"
        "ServerTLS(made.certificate, made.key)\n"
        "sys.exit('cryptography' in sys.modules or len(made.made))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0


@pytest.mark.parametrize(
    "after",
    [LEAF_LIFETIME * 2 / 3 + timedelta(days=2), LEAF_LIFETIME * 2, timedelta(days=-10)],
    ids=["last third", "expired", "clock set back"],
)
def test_the_certificate_is_renewed_by_the_same_ca(tmp_path: Path, after: timedelta) -> None:
    """Nodes that trust the CA notice nothing."""
    first = _ensure(tmp_path)
    second = _ensure(tmp_path, after=after)
    assert second.made == {"certificate"}
    assert second.fingerprint == first.fingerprint
    read_pair(second.certificate, second.key, second.ca).check_time(NOW + after)


def test_a_missing_name_renews_the_certificate(tmp_path: Path) -> None:
    """A new address of the host is in the next certificate."""
    _ensure(tmp_path)
    second = _ensure(tmp_path, (*NAMES, "10.0.0.9"))
    assert second.made == {"certificate"}
    assert "10.0.0.9" in read_pair(second.certificate, second.key).names


def test_an_expired_ca_is_replaced_with_its_certificate(tmp_path: Path) -> None:
    """The only reason for which a CA goes."""
    first = _ensure(tmp_path)
    second = _ensure(tmp_path, after=CA_LIFETIME)
    assert second.made == BOTH
    assert second.fingerprint != first.fingerprint


def test_a_certificate_does_not_outlive_its_ca(tmp_path: Path) -> None:
    """Clients refuse a chain when any part has expired."""
    _ensure(tmp_path)
    second = _ensure(tmp_path, after=CA_LIFETIME - timedelta(days=9))
    leaf = read_pair(second.certificate, second.key, second.ca)
    assert leaf.not_after == read_authority(second.ca).not_after


@pytest.mark.parametrize("name", ["tls.crt", "tls.key"])
def test_half_a_pair_is_made_anew(tmp_path: Path, name: str) -> None:
    """As a crash between two files leaves it: absent, or not of the other."""
    first = _ensure(tmp_path)
    (tmp_path / name).unlink()
    assert _ensure(tmp_path).made == {"certificate"}
    other = _ensure(tmp_path / "other")
    (tmp_path / name).write_bytes((other.certificate.parent / name).read_bytes())
    third = _ensure(tmp_path)
    assert third.made == {"certificate"}
    assert third.fingerprint == first.fingerprint
    read_pair(third.certificate, third.key, third.ca)


def test_a_ca_key_without_certificate_makes_a_new_ca(tmp_path: Path) -> None:
    """As a crash in the first start leaves it: nobody trusts that key yet."""
    _ensure(tmp_path)
    (tmp_path / "ca.crt").unlink()
    assert _ensure(tmp_path).made == BOTH


def test_an_exposed_server_key_is_replaced(tmp_path: Path) -> None:
    """It is ours to make anew, and no node has to know."""
    _ensure(tmp_path)
    (tmp_path / "tls.key").chmod(0o644)
    assert _ensure(tmp_path).made == {"certificate"}
    assert stat.S_IMODE((tmp_path / "tls.key").stat().st_mode) == 0o600


def test_an_exposed_ca_key_is_refused(tmp_path: Path) -> None:
    """Whether anybody read it, only the operator knows."""
    _ensure(tmp_path)
    (tmp_path / "ca.key").chmod(0o644)
    with pytest.raises(TrustError, match=r"ca\.key: private key is open to others"):
        _ensure(tmp_path)


def test_a_ca_without_its_key_serves_until_it_has_to_sign(tmp_path: Path) -> None:
    """An operator may keep the CA's key elsewhere; the error says what to do then."""
    _ensure(tmp_path)
    (tmp_path / "ca.key").unlink()
    assert _ensure(tmp_path).made == set()
    with pytest.raises(TrustError, match=r"ca.key: missing; put the key of .*ca.crt back"):
        _ensure(tmp_path, after=LEAF_LIFETIME)


@pytest.mark.parametrize("content", [b"noise", None], ids=["noise", "another key"])
def test_a_ca_key_that_does_not_fit_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """A new CA would cut off every node, so the operator decides."""
    _ensure(tmp_path)
    other = _ensure(tmp_path / "other").ca.with_name("ca.key").read_bytes()
    (tmp_path / "ca.key").write_bytes(content or other)
    with pytest.raises(TrustError, match=r"ca.key: .* or remove both files for a new CA"):
        _ensure(tmp_path, after=LEAF_LIFETIME)


def test_a_damaged_ca_is_refused(tmp_path: Path) -> None:
    """It is not silently replaced: nodes trust what it was."""
    _ensure(tmp_path)
    (tmp_path / "ca.crt").write_bytes(self_signed(tmp_path, "leaf").certificate.read_bytes())
    with pytest.raises(TrustError, match=r"ca\.crt: holds no CA certificate"):
        _ensure(tmp_path)


def test_two_processes_do_not_make_two_cas(tmp_path: Path) -> None:
    """Whoever comes second is told so."""
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        with pytest.raises(TrustError, match="another mayfly process"):
            _ensure(tmp_path)
    finally:
        os.close(holder)
    assert _ensure(tmp_path).made == BOTH


def test_two_cas_of_a_host_can_be_told_apart(tmp_path: Path) -> None:
    """Their subjects differ, or clients would pick one of them by chance."""

    def subject(directory: Path) -> object:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(_ensure(directory).ca)
        return context.get_ca_certs()[0]["subject"]

    assert subject(tmp_path / "one") != subject(tmp_path / "two")


def test_the_profile_is_what_strict_clients_want(tmp_path: Path) -> None:
    """basicConstraints, key usages and identifiers, as RFC 5280 has them."""
    need("openssl")
    made = _ensure(tmp_path)

    def text(path: Path) -> str:
        return subprocess.check_output(
            ["openssl", "x509", "-in", path, "-noout", "-text"], text=True
        )

    ca, leaf = text(made.ca), text(made.certificate)
    for expected in ("CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign", "prime256v1"):
        assert expected in ca
    for expected in ("CA:FALSE", "Digital Signature\n", "TLS Web Server Authentication"):
        assert expected in leaf
    for both in ("Subject Key Identifier", "Authority Key Identifier"):
        assert both in ca
        assert both in leaf
    check = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_ip", NAMES[-1]]
    subprocess.run([*check, "-CAfile", made.ca, made.certificate], check=True, timeout=30)
