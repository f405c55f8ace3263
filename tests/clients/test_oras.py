"""oras: artifacts and what refers to them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.images import Images
from tests.clients.programs import Client
from tests.support.process import Mayfly

PLAIN = "--plain-http"
SBOM = "application/vnd.example.sbom"
SIGNATURE = "application/vnd.example.signature"


@pytest.fixture
def artifact(oras: Client, mayfly: Mayfly, repository: str, scratch: Path) -> str:
    """An artifact of one file, with an SBOM and a signature attached."""
    reference = f"{mayfly.host}/{repository}:chart"
    for name in ("chart", "sbom", "signature"):
        (scratch / f"{name}.txt").write_text(f"the {name}\n")
    push = ["push", PLAIN, "--artifact-type=application/vnd.example.chart", reference]
    oras(*push, "chart.txt:text/plain", cwd=scratch)
    for artifact_type, name in ((SBOM, "sbom"), (SIGNATURE, "signature")):
        attach = ["attach", PLAIN, f"--artifact-type={artifact_type}"]
        oras(*attach, f"--annotation=org.example.of={name}", reference, f"{name}.txt", cwd=scratch)
    return reference


def referrers(oras: Client, reference: str, *options: str) -> list[dict[str, Any]]:
    """What oras discovers of a reference."""
    found = json.loads(oras("discover", PLAIN, "--format=json", *options, reference))
    return list(found.get("referrers", found.get("manifests", [])))


def test_pulled_artifact_is_the_pushed_file(oras: Client, artifact: str, scratch: Path) -> None:
    """The file comes back under its name."""
    oras("pull", PLAIN, f"--output={scratch}/out", artifact)
    assert (scratch / "out/chart.txt").read_text() == "the chart\n"


def test_referrers_are_discovered(oras: Client, artifact: str) -> None:
    """discover lists both referrers with type and annotations, or the one type asked for."""
    found = {entry["artifactType"]: entry for entry in referrers(oras, artifact)}
    assert set(found) == {SBOM, SIGNATURE}
    assert found[SBOM]["annotations"]["org.example.of"] == "sbom"
    filtered = referrers(oras, artifact, f"--artifact-type={SBOM}")
    assert [entry["artifactType"] for entry in filtered] == [SBOM]


def test_referrers_api_is_used(oras: Client, artifact: str) -> None:
    """No fallback tag was needed: the only tag is the artifact's."""
    repository = artifact.rpartition(":")[0]
    assert oras("repo", "tags", PLAIN, repository).split() == ["chart"]
    found = referrers(oras, artifact, "--distribution-spec=v1.1-referrers-api")
    assert len(found) == 2


def test_referrer_is_pulled_by_digest(oras: Client, artifact: str, scratch: Path) -> None:
    """What refers to an artifact is itself pulled."""
    (sbom,) = referrers(oras, artifact, f"--artifact-type={SBOM}")
    reference = artifact.replace(":chart", f"@{sbom['digest']}")
    oras("pull", PLAIN, f"--output={scratch}/out", reference)
    assert (scratch / "out/sbom.txt").read_text() == "the sbom\n"


def test_copy_brings_the_referrers(oras: Client, artifact: str) -> None:
    """A recursive copy to another repository has the same referrers."""
    copy = artifact.replace(":chart", "/copy:chart")
    oras("cp", "--recursive", "--from-plain-http", "--to-plain-http", artifact, copy)
    digests = [
        sorted(entry["digest"] for entry in referrers(oras, reference))
        for reference in (artifact, copy)
    ]
    assert digests[0] == digests[1]


def test_deleted_referrer_is_no_longer_listed(oras: Client, artifact: str) -> None:
    """The list follows a delete at once."""
    (sbom,) = referrers(oras, artifact, f"--artifact-type={SBOM}")
    reference = artifact.replace(":chart", f"@{sbom['digest']}")
    oras("manifest", "delete", "--force", PLAIN, reference)
    assert [entry["artifactType"] for entry in referrers(oras, artifact)] == [SIGNATURE]


def test_image_index_copied_from_a_layout(
    oras: Client, images: Images, mayfly: Mayfly, repository: str
) -> None:
    """An index goes from a layout into the registry with its images, digest unchanged."""
    reference = f"{mayfly.host}/{repository}:multi"
    oras("cp", "--from-oci-layout", "--to-plain-http", f"{images.layout}:multi", reference)
    manifest = oras.bytes("manifest", "fetch", PLAIN, reference)
    assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == images.digest("multi")
    for entry in images.manifest("multi")["manifests"]:
        oras("manifest", "fetch", PLAIN, reference.replace(":multi", f"@{entry['digest']}"))
