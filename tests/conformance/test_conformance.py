"""The official conformance suite of the OCI distribution specification, whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.process import Mayfly, find_program, need

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


@pytest.fixture
def results(
    version: str,
    sparse: bool,
    mayfly: Mayfly,
    start_mayfly: Callable[..., Mayfly],
    tmp_path: Path,
) -> Path:
    """The directory of the reports of one run."""
    need("conformance")
    server = start_mayfly("--allow-sparse") if sparse else mayfly
    environment = {
        "OCI_VERSION": version,
        "OCI_DATA_SPARSE": str(sparse).lower(),
        "OCI_REGISTRY": server.host,
        "OCI_TLS": "disabled",
        "OCI_REPO1": f"conformance/{version}/one",
        "OCI_REPO2": f"conformance/{version}/two",
        "OCI_RESULTS_DIR": str(tmp_path),
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
    return tmp_path


def read_statuses(results: Path) -> dict[str, str]:
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


@pytest.mark.parametrize("sparse", [False, True], ids=["whole", "sparse"])
@pytest.mark.parametrize("version", ["1.1", "dev"])
def test_suite_passes(
    results: Path, version: str, sparse: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing fails, nothing is skipped, and all that was asked for passes."""
    suites = ElementTree.parse(results / "junit.xml").getroot()
    counts = {
        name: int(suites.get(name, "0")) for name in ("failures", "errors", "skipped", "disabled")
    }
    counts["passed"] = int(suites.get("tests", "0")) - sum(counts.values())
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    kind = "sparse manifests too" if sparse else "no sparse manifests"
    with capsys.disabled():
        sys.stdout.write(f"\nconformance {version}, {kind}: {told}\n")

    others = {name: status for name, status in read_statuses(results).items() if status != "Pass"}
    assert others == dict.fromkeys(UNASKED[version, sparse], "Disabled"), failures(suites)
    assert (counts["failures"], counts["errors"], counts["skipped"]) == (0, 0, 0), failures(suites)
    assert counts["passed"] >= AT_LEAST[version]


def failures(suites: ElementTree.Element) -> str:
    """What the suite says of each case that did not pass."""
    cases = [case for case in suites.iter("testcase") if case.get("status") != "passed"]
    return "\n".join(
        f"{case.get('status')} {case.get('name')}: {case.findtext('system-out')}" for case in cases
    )
