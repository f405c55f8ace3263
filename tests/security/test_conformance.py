"""The official conformance suite, whole, with TLS and users."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conformance.test_conformance import AT_LEAST, UNASKED, failures, read_statuses
from tests.process import Mayfly, find_program, need
from tests.security.servers import SECURE, one_run_users


@pytest.mark.parametrize("version", ["1.1", "dev"])
def test_suite_passes_with_tls_and_users(
    version: str,
    start_mayfly: Callable[..., Mayfly],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing fails, errs or is skipped, and all that was asked for passes, as without both."""
    need("conformance")
    server = start_mayfly(*SECURE)
    environment = {
        "OCI_VERSION": version,
        "OCI_REGISTRY": server.host,
        "OCI_TLS": "enabled",
        "OCI_USERNAME": "admin",
        "OCI_PASSWORD": one_run_users(server)["admin"],
        "OCI_REPO1": f"conformance/{version}/one",
        "OCI_REPO2": f"conformance/{version}/two",
        "OCI_RESULTS_DIR": str(tmp_path),
        "SSL_CERT_FILE": str(server.state_dir / "ca.crt"),
    }
    done = subprocess.run(
        [find_program("conformance") or ""],
        env={"PATH": os.environ["PATH"], **environment},
        cwd=tmp_path,
        timeout=300,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    # A configuration that the suite cannot use exits 0 and writes no results.
    assert (tmp_path / "results.yaml").exists(), done.stdout
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    kinds = ("failures", "errors", "skipped", "disabled")
    counts = {name: int(suites.get(name, "0")) for name in kinds}
    passed = int(suites.get("tests", "0")) - sum(counts.values())
    with capsys.disabled():
        sys.stdout.write(f"\nconformance {version}, TLS and users: passed {passed}, {counts}\n")
    others = {name: s for name, s in read_statuses(tmp_path).items() if s != "Pass"}
    assert others == dict.fromkeys(UNASKED[version, False], "Disabled"), failures(suites)
    assert (counts["failures"], counts["errors"], counts["skipped"]) == (0, 0, 0), failures(suites)
    assert passed >= AT_LEAST[version]
