"""Running the official conformance suite of the OCI distribution specification, whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.process import find_program, need

# Everything the suite may leave out, and why. What is not named here must pass.
NOT_IN_1_1 = "the suite asks for it from version 1.1+dev on"
UNASKED = {
    ("1.1", False): {
        "Blob upload cancel": NOT_IN_1_1,
        "Manifest put with tag params": NOT_IN_1_1,
        "Tag Param": NOT_IN_1_1,
        "Tag Param sha512": NOT_IN_1_1,
        "Sparse Manifests": "off by default; the runs with OCI_DATA_SPARSE=true ask for it",
    },
    ("1.1", True): {
        "Blob upload cancel": NOT_IN_1_1,
        "Manifest put with tag params": NOT_IN_1_1,
        "Tag Param": NOT_IN_1_1,
        "Tag Param sha512": NOT_IN_1_1,
    },
    ("dev", False): {
        "Sparse Manifests": "off by default; the runs with OCI_DATA_SPARSE=true ask for it",
    },
    ("dev", True): {},
}
# The suite of August 2026 counts 860 and 986, and 46 more with sparse manifests.
AT_LEAST = {"1.1": 800, "dev": 920}


def run(
    host: str,
    version: str,
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    told: str,
    sparse: bool = False,
    **environment: str,
) -> None:
    """Nothing fails, errs or is skipped, and all that was asked for passes.

    Args:
        host: and port of the registry.
        version: of the specification, as the suite calls it.
        directory: for its reports.
        told: what the run is, for the line that is printed of it.
        sparse: whether the registry takes manifests without what they name.
        environment: further settings of the suite.
    """
    need("conformance")
    environment = {
        "OCI_VERSION": version,
        "OCI_DATA_SPARSE": str(sparse).lower(),
        "OCI_REGISTRY": host,
        "OCI_TLS": "disabled",
        "OCI_REPO1": f"conformance/{version}/one",
        "OCI_REPO2": f"conformance/{version}/two",
        "OCI_RESULTS_DIR": str(directory),
    } | environment
    done = subprocess.run(
        [find_program("conformance") or ""],
        env={"PATH": os.environ["PATH"], **environment},
        cwd=directory,
        timeout=300,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    # A configuration that the suite cannot use exits 0 and writes no results.
    assert (directory / "results.yaml").exists(), done.stdout
    suites = ElementTree.parse(directory / "junit.xml").getroot()
    counts = {
        name: int(suites.get(name, "0")) for name in ("failures", "errors", "skipped", "disabled")
    }
    counts["passed"] = int(suites.get("tests", "0")) - sum(counts.values())
    with capsys.disabled():
        line = ", ".join(f"{name} {count}" for name, count in counts.items())
        sys.stdout.write(f"\nconformance {version}, {told}: {line}\n")
    others = {name: found for name, found in _statuses(directory).items() if found != "Pass"}
    assert others == dict.fromkeys(UNASKED[version, sparse], "Disabled"), _failures(suites)
    failed = (counts["failures"], counts["errors"], counts["skipped"])
    assert failed == (0, 0, 0), _failures(suites)
    assert counts["passed"] >= AT_LEAST[version]


def _statuses(results: Path) -> dict[str, str]:
    """What results.yaml says of each API and each kind of data."""
    statuses = {}
    section = ""
    for line in (results / "results.yaml").read_text().splitlines():
        if not line.startswith(" "):
            section = line
        elif section in ("apis:", "data:"):
            name, _, status = line.strip().rpartition(": ")
            statuses[name] = status
    return statuses


def _failures(suites: ElementTree.Element) -> str:
    """What the suite says of each case that did not pass."""
    cases = [case for case in suites.iter("testcase") if case.get("status") != "passed"]
    return "\n".join(
        f"{case.get('status')} {case.get('name')}: {case.findtext('system-out')}" for case in cases
    )
