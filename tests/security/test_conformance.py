"""The official conformance suite, whole, with TLS and users."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance import suite
from tests.security.servers import SECURE, one_run_users
from tests.support.process import Mayfly


@pytest.mark.parametrize("version", ["1.1", "dev"])
def test_suite_passes_with_tls_and_users(
    version: str,
    start_mayfly: Callable[..., Mayfly],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing fails, errs or is skipped, and all that was asked for passes, as without both."""
    server = start_mayfly(*SECURE)
    suite.run(
        server.host,
        version,
        tmp_path,
        capsys,
        told="TLS and users",
        OCI_TLS="enabled",
        OCI_USERNAME="admin",
        OCI_PASSWORD=one_run_users(server)["admin"],
        SSL_CERT_FILE=str(server.state_dir / "ca.crt"),
    )
