"""skopeo: copy in and out, whole indexes, inspect, list, delete."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.clients.images import REF_NAME, Images, blob_path, sha256
from tests.clients.programs import Client
from tests.support.process import Mayfly

IN = "--dest-tls-verify=false"
OUT = "--src-tls-verify=false"
TLS = "--tls-verify=false"


def pushed(
    skopeo: Client, images: Images, mayfly: Mayfly, repository: str, name: str, *options: str
) -> str:
    """Copy an image of the layout into the registry; the reference skopeo knows it by."""
    reference = f"docker://{mayfly.host}/{repository}:{name}"
    converted = any(option.startswith("--format") for option in options)
    exact = [] if converted else ["--preserve-digests"]
    skopeo("copy", *exact, *options, IN, f"oci:{images.layout}:{name}", reference)
    return reference


def digest(skopeo: Client, reference: str) -> str:
    """The digest of the exact bytes that the registry gives for a reference."""
    raw = skopeo.bytes("inspect", "--raw", TLS, reference)
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def test_image_copied_in_and_out_is_the_same(
    skopeo: Client, images: Images, mayfly: Mayfly, repository: str, scratch: Path
) -> None:
    """An image of 140 MB goes in and comes out, every blob and the manifest byte for byte."""
    reference = pushed(skopeo, images, mayfly, repository, "debian")
    skopeo("copy", OUT, reference, f"dir:{scratch}/dir")
    assert sha256(scratch / "dir/manifest.json") == images.digest("debian")
    manifest = images.manifest("debian")
    for descriptor in [manifest["config"], *manifest["layers"]]:
        file = scratch / "dir" / descriptor["digest"].removeprefix("sha256:")
        assert sha256(file) == descriptor["digest"]


def test_index_copied_with_all_its_platforms(
    skopeo: Client, images: Images, mayfly: Mayfly, repository: str, scratch: Path
) -> None:
    """--all carries an index in and out with every platform, and no digest changes."""
    options = ["--all", "--preserve-digests"]
    reference = pushed(skopeo, images, mayfly, repository, "multi", *options)
    assert digest(skopeo, reference) == images.digest("multi")
    skopeo("copy", *options, OUT, reference, f"oci:{scratch}/oci:multi")
    for entry in images.manifest("multi")["manifests"]:
        copied = json.loads(blob_path(scratch / "oci", entry["digest"]).read_bytes())
        for descriptor in [copied["config"], *copied["layers"]]:
            assert sha256(blob_path(scratch / "oci", descriptor["digest"])) == descriptor["digest"]
    (found,) = json.loads((scratch / "oci/index.json").read_bytes())["manifests"]
    assert found["annotations"][REF_NAME] == "multi"
    assert found["digest"] == images.digest("multi")


def test_docker_schema2_is_kept(
    skopeo: Client, images: Images, mayfly: Mayfly, repository: str, scratch: Path
) -> None:
    """A manifest list of schema 2 images comes back as what was pushed."""
    reference = pushed(skopeo, images, mayfly, repository, "multi", "--all", "--format=v2s2")
    skopeo("copy", "--all", "--preserve-digests", OUT, reference, f"dir:{scratch}/dir")
    assert sha256(scratch / "dir/manifest.json") == digest(skopeo, reference)
    manifest_list = json.loads((scratch / "dir/manifest.json").read_bytes())
    media_types = {entry["mediaType"] for entry in manifest_list["manifests"]}
    assert media_types == {"application/vnd.docker.distribution.manifest.v2+json"}


def test_copy_from_repository_to_repository(
    skopeo: Client, images: Images, mayfly: Mayfly, repository: str
) -> None:
    """A copy within the registry has the digest of its source."""
    reference = pushed(skopeo, images, mayfly, repository, "small")
    other = f"docker://{mayfly.host}/{repository}/copy:small"
    skopeo("copy", OUT, IN, reference, other)
    assert digest(skopeo, other) == images.digest("small")


def test_inspect_and_list_tags(
    skopeo: Client, images: Images, mayfly: Mayfly, repository: str
) -> None:
    """inspect tells digest, layers and tags; list-tags tells the tags in order."""
    pushed(skopeo, images, mayfly, repository, "small")
    reference = pushed(skopeo, images, mayfly, repository, "debian")
    told = json.loads(skopeo("inspect", TLS, reference))
    assert told["Digest"] == images.digest("debian")
    assert told["Layers"] == [layer["digest"] for layer in images.manifest("debian")["layers"]]
    assert told["RepoTags"] == ["debian", "small"]
    repository_only = reference.rpartition(":")[0]
    assert json.loads(skopeo("list-tags", TLS, repository_only))["Tags"] == ["debian", "small"]


def test_delete_takes_effect_at_once_and_only_there(
    skopeo: Client, images: Images, mayfly: Mayfly, repository: str
) -> None:
    """A deleted image is unknown in its repository and untouched in another."""
    reference = pushed(skopeo, images, mayfly, repository, "small")
    other = pushed(skopeo, images, mayfly, f"{repository}/other", "small")
    skopeo("delete", TLS, reference)
    assert "manifest unknown" in skopeo.fails("inspect", TLS, reference).lower()
    assert digest(skopeo, other) == images.digest("small")
