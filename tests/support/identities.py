"""A CA and certificates made once, as fixtures; tests that change files make their own."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mayfly.registry.pki.authority import CertificateFiles, ensure


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    """A CA and a certificate for loopback, as `--tls auto` makes them."""
    names = ("localhost", "127.0.0.1", "::1")
    return ensure(tmp_path_factory.mktemp("state"), names, datetime.now(UTC))


@pytest.fixture(scope="session")
def constrained(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    """The same with `--tls-constrain`."""
    names = ("localhost", "127.0.0.1", "::1")
    directory = tmp_path_factory.mktemp("constrained")
    return ensure(directory, names, datetime.now(UTC), constrain=True)


@pytest.fixture(scope="session")
def ca_pem(identity: CertificateFiles) -> bytes:
    """The CA's certificate."""
    return identity.ca.read_bytes()
