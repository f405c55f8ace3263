"""What the real BuildKit attests of an image, provenance and an SBOM, is carried bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.signatures.conftest import PLATFORMS, Tools, Upstream
from tests.support.process import REPO, Mayfly, Process, find_program, need, need_root, remove_tree
from tests.support.programs import versioned, versions

SCANNER, IMAGE = "tools/scanner", "team/built"
PROVENANCE, SPDX = "https://slsa.dev/provenance/", "https://spdx.dev/Document"
CONTENT = b"a file of the image\n"

(_VERSION,) = versions("buildkit")
BUILDKIT = versioned("buildkit", _VERSION)


@dataclass(frozen=True)
class Built:
    """An image that BuildKit pushed.

    Attributes:
        reference: of it upstream.
        index: its bytes.
    """

    reference: str
    index: bytes

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """The entries of its index."""
        found: list[dict[str, Any]] = json.loads(self.index)["manifests"]
        return found

    @property
    def attestations(self) -> list[dict[str, Any]]:
        """The manifests that attest to another one."""
        key = "vnd.docker.reference.type"
        return [one for one in self.manifests if key in one.get("annotations", {})]


def _push_scanner(tools: Tools, upstream: Upstream, directory: Path) -> str:
    """Build the SBOM generator and push it as an image."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    go = find_program("go", Path("/usr/local/go/bin"))
    if go is None:
        pytest.skip("needs Go, as .ci/install does")
    build = [go, "build", "-trimpath", "-o", str(directory / "scanner"), "main.go"]
    source = REPO / "tests/signatures/scanner"
    subprocess.run(build, cwd=source, env=environment, check=True, timeout=300)
    layer = directory / "layer.tar"
    with tarfile.open(layer, "w") as archive:
        archive.add(directory / "scanner", "scanner")
    reference = f"{upstream.host}/{SCANNER}:1"
    tools.program("crane", "append", "--insecure", "--new_layer", layer, "--new_tag", reference)
    change = ("--entrypoint", "/scanner", "--set-platform", "linux/amd64", "--tag", reference)
    tools.program("crane", "mutate", "--insecure", *change, reference)
    return reference


@pytest.fixture(scope="module")
def buildkit(tmp_path_factory: pytest.TempPathFactory, plain: Upstream) -> Iterator[str]:
    """The address of a buildkitd that may use the upstream without TLS."""
    need_root()
    need("runc")
    need("buildkitd", "buildctl", directory=BUILDKIT)
    place = tmp_path_factory.mktemp("buildkit")
    (place / "buildkitd.toml").write_text(f'[registry."{plain.host}"]\nhttp = true\n')
    address = f"unix://{place}/socket"
    words = [
        *("--root", place / "root", "--addr", address, "--config", place / "buildkitd.toml"),
        *("--containerd-worker=false", "--oci-worker=true", "--oci-worker-net=host"),
        *("--oci-worker-snapshotter=native", "--oci-worker-binary", find_program("runc")),
    ]
    process = Process([BUILDKIT / "buildkitd", *words], place / "log")
    try:
        process.wait_for(lambda: (place / "socket").exists())
        yield address
    finally:
        process.stop()
        remove_tree(place / "root")


@pytest.fixture(scope="module")
def built(
    tools: Tools, plain: Upstream, buildkit: str, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    """An image of two platforms with provenance and an SBOM."""
    place = tmp_path_factory.mktemp("build")
    scanner = _push_scanner(tools, plain, place)
    context = place / "context"
    context.mkdir()
    (context / "data").write_bytes(CONTENT)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY data /data\n")
    reference = f"{plain.host}/{IMAGE}:1"
    platforms = ",".join(f"linux/{one}" for one in PLATFORMS)
    tools.run(
        BUILDKIT / "buildctl", "--addr", buildkit, "build", "--progress=plain",
        "--frontend=dockerfile.v0",
        f"--local=context={context}", f"--local=dockerfile={context}",
        f"--opt=platform={platforms}", "--opt=attest:provenance=mode=max",
        f"--opt=attest:sbom=generator={scanner}",
        f"--output=type=image,name={reference},push=true,registry.insecure=true",
    )  # fmt: skip
    found = tools.program("crane", "manifest", "--insecure", reference)
    return Built(reference, found.encode())


@pytest.fixture(scope="module")
def bundle(tools: Tools, built: Built) -> Path:
    """The bundle with that image."""
    return _create(tools, built, "built.tar")


def _create(tools: Tools, built: Built, name: str, *words: str) -> Path:
    output = tools.directory / name
    create = ("-m", "mayfly", "bundle", "create", built.reference, "-o", str(output), *words)
    tools.run(sys.executable, *create)
    return output


def _blobs(bundle: Path) -> dict[str, bytes]:
    """Every blob by its digest, which is compared."""
    found = {}
    with tarfile.open(bundle) as archive:
        for member in archive:
            if member.name.startswith("blobs/sha256/"):
                file = archive.extractfile(member)
                assert file is not None
                data = file.read()
                digest = _digest(data)
                assert member.name == f"blobs/{digest.replace(':', '/')}"
                found[digest] = data
    return found


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_statements_are_carried(built: Built, bundle: Path) -> None:
    """For each platform its provenance, and an SBOM that lists the file."""
    blobs = _blobs(bundle)
    assert blobs[_digest(built.index)] == built.index
    assert len(built.attestations) == len(PLATFORMS)
    for entry in built.attestations:
        manifest = json.loads(blobs[entry["digest"]])
        statements = [json.loads(blobs[layer["digest"]]) for layer in manifest["layers"]]
        kinds = {one["predicateType"]: one for one in statements}
        assert any(kind.startswith(PROVENANCE) for kind in kinds)
        (file,) = kinds[SPDX]["predicate"]["files"]
        assert file["checksums"][0]["checksumValue"] == hashlib.sha256(CONTENT).hexdigest()


def test_they_are_served(tools: Tools, built: Built, bundle: Path, tmp_path: Path) -> None:
    """The index, its manifests and every blob come from Mayfly as from upstream."""
    with Mayfly(tmp_path / "root", tmp_path / "state", str(bundle)) as running:
        served = f"{running.host.replace('127.0.0.1', 'localhost')}/{IMAGE}"
        upstream = built.reference.rpartition(":")[0]
        for reference in (":1", *(f"@{one['digest']}" for one in built.manifests)):
            ours = tools.program("crane", "manifest", "--insecure", served + reference)
            theirs = tools.program("crane", "manifest", "--insecure", upstream + reference)
            assert ours == theirs
            for layer in json.loads(ours).get("layers", []):
                path = f"/v2/{IMAGE}/blobs/{layer['digest']}"
                with urllib.request.urlopen(running.url + path, timeout=60) as answer:
                    assert _digest(answer.read()) == layer["digest"]


def test_a_platform_takes_its_attestation_along(tools: Tools, built: Built) -> None:
    """With --platform the index keeps its digest, and the other platform's statements stay."""
    blobs = _blobs(_create(tools, built, "amd64.tar", "--platform", "linux/amd64"))
    (ours,) = (
        one["digest"] for one in built.manifests if one["platform"]["architecture"] == "amd64"
    )
    carried = {
        one["annotations"]["vnd.docker.reference.digest"]
        for one in built.attestations
        if one["digest"] in blobs
    }
    assert carried == {ours}
    assert _digest(built.index) in blobs


def test_they_are_shown(tools: Tools, built: Built, bundle: Path) -> None:
    """`inspect` names what each attestation attests to."""
    inspect = ("-m", "mayfly", "inspect", f"{IMAGE}:1", str(bundle), "--json")
    found = json.loads(tools.run(sys.executable, *inspect))
    attests = [one["attests"] for one in found["platforms"] if one["attests"]]
    platforms = [one["digest"] for one in found["platforms"] if not one["attests"]]
    assert sorted(attests) == sorted(platforms)
