"""The CA and certificate that `--tls auto` makes, and when it makes them anew."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mayfly.registry.pki import authority, issue
from mayfly.registry.pki.authority import (
    CA_LEAST_AHEAD,
    CA_LIFETIME,
    CA_MARGIN,
    LEAF_LIFETIME,
    CertificateFiles,
    ensure,
    locked,
    renew,
)
from mayfly.registry.pki.certificate import (
    Certificate,
    fingerprint,
    is_constrained,
    read_authority,
    read_pair,
)
from mayfly.registry.pki.context import ServerTLS
from mayfly.registry.pki.errors import TrustError
from tests.support.certificates import self_signed
from tests.support.commands import mayfly
from tests.support.process import need

NAMES = ("localhost", "127.0.0.1", "::1", "registry.example.com", "fd00::2")
NOW = datetime.now(UTC).replace(microsecond=0)
BOTH = {"ca", "certificate"}


def _ensure(
    directory: Path, names: tuple[str, ...] = NAMES, after: timedelta = timedelta()
) -> CertificateFiles:
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
    assert _ensure(tmp_path, ("localhost",), timedelta(days=2)).made == set()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert _ensure(tmp_path).fingerprint == first.fingerprint


def test_the_ca_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While other processes are kept out, so that all that is told of it is of the same CA."""
    _ensure(tmp_path)
    free: list[bool] = []

    def read(path: Path) -> Certificate:
        with contextlib.suppress(TrustError), locked(tmp_path):
            free.append(True)
            return read_authority(path)
        free.append(False)
        return read_authority(path)

    monkeypatch.setattr(authority, "read_authority", read)
    for after in (timedelta(), LEAF_LIFETIME, timedelta(days=2)):
        ensure(tmp_path, NAMES, NOW + after, continued=True)
        assert free == [False]
        free.clear()


def test_a_second_start_does_not_load_cryptography(tmp_path: Path) -> None:
    """It costs 80 ms and 13 MiB, so only making a certificate may load it."""
    _ensure(tmp_path)
    program = (
        "import sys; from datetime import UTC, datetime; from pathlib import Path\n"
        "from mayfly.registry.pki.authority import ensure\n"
        "from mayfly.registry.pki.context import ServerTLS\n"
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
    """Nodes that trust the CA notice nothing, nor do clients that pinned the public key."""
    first = _ensure(tmp_path)
    key = first.key.read_bytes()
    second = ensure(tmp_path, NAMES, NOW + after, continued=True)
    assert second.made == {"certificate"}
    assert second.fingerprint == first.fingerprint
    assert second.key.read_bytes() == key
    read_pair(second.certificate, second.key, second.ca).check_time(NOW + after)


def test_a_missing_name_renews_the_certificate(tmp_path: Path) -> None:
    """A new address of the host is in the next certificate."""
    _ensure(tmp_path)
    second = _ensure(tmp_path, (*NAMES, "10.0.0.9"))
    assert second.made == {"certificate"}
    assert "10.0.0.9" in read_pair(second.certificate, second.key).names


HOUR = timedelta(hours=1)


@pytest.mark.parametrize("hours", [1, 4, 24 * 90])
def test_the_ca_outlives_the_deadline_by_a_margin(tmp_path: Path, hours: int) -> None:
    """A week is for nodes whose clock is ahead, and for the report; then nobody trusts it."""
    deadline = NOW + hours * HOUR
    made = ensure(tmp_path, NAMES, NOW, deadline=deadline)
    assert read_authority(made.ca).not_after == deadline + CA_MARGIN
    again = ensure(tmp_path, NAMES, deadline - HOUR / 2, deadline=deadline, continued=True)
    assert again.fingerprint == made.fingerprint


def test_a_ca_that_the_run_outlasts_is_replaced(tmp_path: Path) -> None:
    """At the start of another run only, and the end of the old one is told."""
    first = ensure(tmp_path, NAMES, NOW, deadline=NOW + 4 * HOUR)
    end = read_authority(first.ca).not_after
    tomorrow = NOW + 24 * HOUR
    short = ensure(tmp_path, NAMES, tomorrow, deadline=tomorrow + 4 * HOUR)
    assert (short.fingerprint, short.replaced) == (first.fingerprint, None)
    gone_on = ensure(tmp_path, NAMES, tomorrow, continued=True)
    assert gone_on.fingerprint == first.fingerprint
    for deadline in (end, None):
        directory = tmp_path / str(deadline)
        shutil.copytree(first.ca.parent, directory, ignore=shutil.ignore_patterns("20*", "None"))
        long = ensure(directory, NAMES, tomorrow, deadline=deadline)
        assert long.made == BOTH
        assert long.replaced is not None
        assert long.replaced.not_after == end


def test_the_log_says_why_a_ca_is_replaced(tmp_path: Path) -> None:
    """A run without a deadline ends at no time that the CA could outlast."""
    places = ("--state-dir", tmp_path / "state", "--root", tmp_path / "root")
    for deadline, says in (
        ("1h", None),
        ("30m", None),
        ("never", ", and this run has no deadline (--max-lifetime): make every node trust it"),
        ("400d", ", before this run ends: make every node trust it"),
    ):
        words = ("--listen", "127.0.0.1:0", "--tls", "auto", "--max-lifetime", deadline)
        done = mayfly("run", *words, *places, "--", "true")
        assert done.returncode == 0, done.stderr
        assert ("the CA is new" in done.stderr) == (says is not None)
        assert (says or "ready") in done.stderr


@pytest.mark.parametrize("left", [timedelta(), CA_LEAST_AHEAD])
def test_an_expired_ca_is_replaced_with_its_certificate(tmp_path: Path, left: timedelta) -> None:
    """Without a deadline, one that is about to end is, too."""
    first = _ensure(tmp_path)
    second = _ensure(tmp_path, after=CA_LIFETIME - left)
    assert second.made == BOTH
    assert second.fingerprint != first.fingerprint
    assert _ensure(tmp_path / "b").fingerprint != first.fingerprint
    third = _ensure(tmp_path / "b", after=CA_LIFETIME - CA_LEAST_AHEAD - HOUR)
    assert third.made == {"certificate"}


def test_a_ca_from_the_future_is_not_replaced(tmp_path: Path) -> None:
    """The clock may be behind now: a run that is resumed keeps its CA, a new one does not start."""
    first = _ensure(tmp_path, after=timedelta(days=3))
    begins = read_authority(first.ca).not_before
    assert begins > NOW
    gone_on = ensure(tmp_path, NAMES, NOW, continued=True)
    assert (gone_on.fingerprint, gone_on.replaced) == (first.fingerprint, None)
    assert gone_on.authority.not_before == begins
    with pytest.raises(TrustError, match=r"is not valid before .* set the clock; if it is right"):
        _ensure(tmp_path)
    assert fingerprint(first.ca.read_bytes()) == first.fingerprint
    assert _ensure(tmp_path, after=timedelta(days=3)).fingerprint == first.fingerprint


def test_a_certificate_does_not_outlive_its_ca(tmp_path: Path) -> None:
    """Clients refuse a chain when any part has expired. Renewing never replaces a CA."""
    first = _ensure(tmp_path)
    assert renew(tmp_path, NAMES, NOW + CA_LIFETIME - timedelta(days=3))
    leaf = read_pair(first.certificate, first.key, first.ca)
    assert leaf.not_after == read_authority(first.ca).not_after
    assert fingerprint(first.ca.read_bytes()) == first.fingerprint


def test_renewing_beyond_the_end_of_the_ca(tmp_path: Path) -> None:
    """Near its end nothing is gained by another certificate; after it the CA is named."""
    first = _ensure(tmp_path)
    end = read_authority(first.ca).not_after
    assert renew(tmp_path, NAMES, end - HOUR)
    assert not renew(tmp_path, NAMES, end - HOUR / 2)
    problems = set()
    for late in (timedelta(), timedelta(days=30)):
        with pytest.raises(TrustError, match="this CA expired") as caught:
            renew(tmp_path, NAMES, end + late)
        problems.add(str(caught.value))
    assert len(problems) == 1, "the server logs each new problem, and tries each minute"


def test_renewing_under_way(tmp_path: Path) -> None:
    """Nothing until it is due; then the server takes the new certificate, for the key it has."""
    made = NOW - LEAF_LIFETIME * 3 / 4
    first = ensure(tmp_path, NAMES, made)
    tls = ServerTLS(first.certificate, first.key, renewed=True)
    key = first.key.read_bytes()
    assert not renew(tmp_path, NAMES, made + LEAF_LIFETIME / 2)
    assert not tls.reload_if_changed()
    assert renew(tmp_path, NAMES, NOW)
    assert tls.reload_if_changed()
    assert first.key.read_bytes() == key
    read_pair(first.certificate, first.key, first.ca).check_time(NOW + LEAF_LIFETIME * 3 / 4)
    assert renew(tmp_path, NAMES, NOW, extra=("fd00::99",))
    assert "fd00::99" in read_pair(first.certificate, first.key).names


def _constrained(directory: Path, *names: str, **options: Any) -> CertificateFiles:
    given = ("localhost", "127.0.0.1", "::1", *names)
    return ensure(directory, given, NOW, constrain=True, **options)


def test_a_constrained_ca(tmp_path: Path) -> None:
    """It signs what it was made for, and leaves out what would only have been nice."""
    made = _constrained(tmp_path, "r.example.com", "10.0.0.9", extra=("host", "10.0.0.8"))
    assert is_constrained(made.ca)
    assert not is_constrained(_ensure(tmp_path / "b").ca)
    names = {"localhost", "127.0.0.1", "::1", "r.example.com", "10.0.0.9"}
    assert read_pair(made.certificate, made.key, made.ca).names == names
    again = _constrained(tmp_path, "r.example.com", extra=("host", "10.0.0.8"))
    assert again.made == set()
    # It stays constrained, asked for or not; a name below a permitted one is permitted.
    again = ensure(tmp_path, ("a.r.example.com",), NOW, extra=("host",))
    assert again.made == {"certificate"}
    assert read_pair(again.certificate, again.key, again.ca).names == {"a.r.example.com"}


@pytest.mark.parametrize(
    "name", ["example.com", "xr.example.com", "10.0.0.8", "::2", "other", "*.example.com"]
)
def test_a_name_that_the_ca_may_not_sign(tmp_path: Path, name: str) -> None:
    """The start fails and says which; nothing is changed."""
    made = _constrained(tmp_path, "r.example.com", "10.0.0.9")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for constrain in (True, False):
        with pytest.raises(TrustError, match=rf"may not sign {re.escape(name)}: .*--tls-constrain"):
            ensure(tmp_path, ("localhost", name), NOW, constrain=constrain)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    read_pair(made.certificate, made.key, made.ca)


def test_a_ca_that_may_sign_any_name_is_not_passed_off_as_constrained(tmp_path: Path) -> None:
    """Nodes trust it as it is, so only the operator can replace it."""
    _ensure(tmp_path)
    with pytest.raises(TrustError, match="may sign any name, so --tls-constrain"):
        _constrained(tmp_path)


def test_a_constrained_ca_is_refused_by_clients_for_other_names(tmp_path: Path) -> None:
    """OpenSSL refuses what its key signs beyond its names, addresses of either kind too."""
    made = _constrained(tmp_path, "r.example.com")
    key = tmp_path / "ca.key"
    unbound = x509.ExtensionNotFound("", x509.NameConstraints.oid)
    for name in ("evil.example.com", "10.0.0.1", "fd00::1"):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(issue, "_check_permitted", lambda *_: unbound)
            pems = issue.new_leaf(made.ca, key, ["localhost", name], NOW, NOW + LEAF_LIFETIME)
        for path, pem in zip((made.certificate, made.key), pems, strict=True):
            path.write_bytes(pem)
        with pytest.raises(TrustError, match="permitted subtree violation"):
            read_pair(made.certificate, made.key, made.ca)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of other users")
@pytest.mark.parametrize("name", ["ca.crt", "ca.key"])
def test_a_planted_ca_is_refused(tmp_path: Path, name: str) -> None:
    """A CA file of another user was put there by them."""
    _ensure(tmp_path)
    os.chown(tmp_path / name, 65532, -1)
    with pytest.raises(TrustError, match=rf"{name}: belongs to user 65532"):
        _ensure(tmp_path)


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
    """The second one is told so."""
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
