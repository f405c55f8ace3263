"""regctl: copy with referrers, chunked upload, tag delete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.images import Images, sha256
from tests.clients.programs import Client
from tests.support.process import Mayfly

SBOM = "application/vnd.example.sbom"


@pytest.fixture(scope="module")
def regctl(home: Path, mayfly: Mayfly) -> Client:
    """regctl, told that the server speaks plain HTTP."""
    return Client("regctl", home, "--host", f"reg={mayfly.host},tls=disabled")


@pytest.fixture
def multi(regctl: Client, images: Images, mayfly: Mayfly, repository: str) -> str:
    """An index copied in from a layout."""
    reference = f"{mayfly.host}/{repository}:multi"
    regctl("image", "copy", f"ocidir://{images.layout}:multi", reference)
    return reference


@pytest.fixture
def sbom(regctl: Client, multi: str, scratch: Path) -> str:
    """The digest of an artifact that refers to the index."""
    file = scratch / "sbom.json"
    file.write_text('{"packages": []}')
    options = [f"--artifact-type={SBOM}", f"--subject={multi}", f"--file={file}"]
    shown = "--format={{.Manifest.GetDescriptor.Digest}}"
    return regctl("artifact", "put", shown, *options)


def referrers(regctl: Client, reference: str, *options: str) -> list[str]:
    """The digests of what refers to a reference."""
    listed = json.loads(regctl("artifact", "list", "--format={{json .}}", *options, reference))
    return [entry["digest"] for entry in listed["descriptors"] or []]


def test_index_copied_between_repositories(regctl: Client, images: Images, multi: str) -> None:
    """A copy has the digest of its source, in the index and for every platform."""
    copy = multi.replace(":multi", "/copy:multi")
    regctl("image", "copy", multi, copy)
    assert regctl("image", "digest", copy).strip() == images.digest("multi")
    for entry in images.manifest("multi")["manifests"]:
        platform = "/".join((entry["platform"]["os"], entry["platform"]["architecture"]))
        found = regctl("image", "digest", f"--platform={platform}", copy)
        assert found.strip() == entry["digest"]


def test_referrer_is_listed_by_type(regctl: Client, multi: str, sbom: str) -> None:
    """An artifact is listed under its subject, and not when another type is asked for."""
    assert referrers(regctl, multi) == [sbom]
    assert referrers(regctl, multi, f"--filter-artifact-type={SBOM}") == [sbom]
    assert referrers(regctl, multi, "--filter-artifact-type=application/vnd.other") == []


def test_referrers_are_copied(regctl: Client, multi: str, sbom: str) -> None:
    """A copy with referrers has them; the only tag it makes is the one asked for."""
    copy = multi.replace(":multi", "/copy:multi")
    regctl("image", "copy", "--referrers", multi, copy)
    assert referrers(regctl, copy) == [sbom]
    assert regctl("tag", "ls", copy.rpartition(":")[0]).split() == ["multi"]


def test_deleted_tag_leaves_the_image(regctl: Client, images: Images, multi: str) -> None:
    """Deleting a tag leaves the manifest, and another tag of it, in place."""
    regctl("image", "copy", multi, multi.replace(":multi", ":kept"))
    regctl("tag", "delete", multi)
    repository = multi.rpartition(":")[0]
    assert regctl("tag", "ls", repository).split() == ["kept"]
    by_digest = f"{repository}@{images.digest('multi')}"
    assert regctl("image", "digest", by_digest).strip() == images.digest("multi")
    regctl.fails("image", "digest", multi)


def test_deleted_manifest_takes_its_tags(regctl: Client, images: Images, multi: str) -> None:
    """Deleting a manifest by digest deletes the tags that name it."""
    repository = multi.rpartition(":")[0]
    regctl("manifest", "delete", f"{repository}@{images.digest('multi')}")
    regctl.fails("image", "digest", multi)


def test_large_blob_is_uploaded_in_chunks(
    mayfly: Mayfly, images: Images, repository: str, scratch: Path
) -> None:
    """A blob sent in many chunks with Content-Range is there, whole."""
    regctl = Client("regctl", scratch)
    chunks = ["--blob-chunk=4000000", "--blob-max=1000000"]
    regctl("registry", "set", "--tls=disabled", "--skip-check", *chunks, mayfly.host)
    target = f"{mayfly.host}/{repository}"
    layer = images.tar("python")
    options = ["--verbosity=trace", "blob", "put", target]
    put = regctl.run(*options, stdin=layer)
    assert put.returncode == 0, put.stderr.decode()
    assert put.stderr.count(b"Content-Range") == -(-layer.stat().st_size // 4_000_000)
    digest = put.stdout.decode().strip()
    assert digest == sha256(layer)
    assert regctl.bytes("blob", "get", target, digest) == layer.read_bytes()
