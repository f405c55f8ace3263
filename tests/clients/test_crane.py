"""crane: push and pull of a layout, copy, tag, list, validate, append, delete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.images import Images, blob_path
from tests.clients.programs import Client
from tests.support.process import Mayfly


@pytest.fixture
def small(
    crane: Client, skopeo: Client, images: Images, mayfly: Mayfly, repository: str, scratch: Path
) -> str:
    """The small image, pushed by crane from a layout of its own."""
    reference = f"{mayfly.host}/{repository}:small"
    skopeo("copy", f"oci:{images.layout}:small", f"oci:{scratch}/small")
    crane("push", scratch / "small", reference)
    return reference


def test_layout_pushed_whole_is_valid(
    crane: Client, images: Images, mayfly: Mayfly, repository: str
) -> None:
    """A whole layout goes in as one index, nested index included; crane checks every blob."""
    reference = f"{mayfly.host}/{repository}:layout"
    crane("push", "--index", images.layout, reference)
    pushed = json.loads(crane("manifest", reference))
    listed = [entry["digest"] for entry in pushed["manifests"]]
    assert listed == [images.digest(name) for name in ("debian", "small", "multi")]
    crane("validate", "--remote", reference)


def test_pulled_layout_is_the_pushed_one(
    crane: Client, images: Images, small: str, scratch: Path
) -> None:
    """A pull into a layout holds the pushed manifest and every blob."""
    crane("pull", "--format=oci", small, scratch / "pulled")
    digest = images.digest("small")
    assert crane("digest", small).strip() == digest
    manifest = images.manifest("small")
    for wanted in [digest, manifest["config"]["digest"]] + [
        layer["digest"] for layer in manifest["layers"]
    ]:
        pulled = blob_path(scratch / "pulled", wanted).read_bytes()
        assert pulled == images.blob(wanted).read_bytes()


def test_copy_tag_and_list(crane: Client, images: Images, mayfly: Mayfly, small: str) -> None:
    """A copy in another repository and a second tag have the digest; ls and catalog list them."""
    repository = small.rpartition(":")[0]
    copy = f"{repository}/copy"
    crane("copy", small, f"{copy}:small")
    crane("tag", f"{copy}:small", "another")
    assert crane("digest", f"{copy}:another").strip() == images.digest("small")
    assert crane("ls", copy).split() == ["another", "small"]
    catalog = crane("catalog", mayfly.host).split()
    names = [name.partition("/")[2] for name in (repository, copy)]
    assert [name for name in catalog if name in names] == names


def test_exported_filesystem_has_the_files(crane: Client, small: str, scratch: Path) -> None:
    """The layers are read as one filesystem."""
    crane("export", small, scratch / "files.tar")
    assert b"usr/share/zoneinfo/UTC" in (scratch / "files.tar").read_bytes()


def test_appended_layer_makes_a_new_image(crane: Client, images: Images, small: str) -> None:
    """A layer appended in the registry keeps the layers below, which are already there."""
    appended = small.replace(":small", ":appended")
    layer = images.tar("perl")
    crane("append", f"--base={small}", f"--new_layer={layer}", f"--new_tag={appended}")
    layers = json.loads(crane("manifest", appended))["layers"]
    below = [layer["digest"] for layer in images.manifest("small")["layers"]]
    assert [layer["digest"] for layer in layers[:-1]] == below
    crane("validate", "--remote", appended)


def test_deleted_manifest_is_gone(crane: Client, images: Images, small: str) -> None:
    """A manifest deleted by digest is unknown, by tag too."""
    by_digest = small.replace(":small", f"@{images.digest('small')}")
    crane("delete", by_digest)
    for reference in (by_digest, small):
        assert "MANIFEST_UNKNOWN" in crane.fails("manifest", reference)
