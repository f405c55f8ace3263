"""containerd: pull with ctr, exact content, a whole index, push."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.clients.images import Images
from tests.clients.programs import Client, Containerd
from tests.process import Mayfly

PLAIN = "--plain-http"


@pytest.fixture
def ctr(containerd: Containerd) -> Iterator[Client]:
    """ctr, with no image left over to the next test."""
    yield containerd.ctr
    for reference in containerd.ctr("images", "ls", "--quiet").split():
        containerd.ctr("images", "rm", "--sync", reference)


@pytest.fixture
def reference(
    skopeo: Client, images: Images, mayfly: Mayfly, repository: str, request: pytest.FixtureRequest
) -> str:
    """An image or index of the layout in the registry, named by the test's parameter."""
    target = f"{mayfly.host}/{repository}:{request.param}"
    source = f"oci:{images.layout}:{request.param}"
    skopeo("copy", "--all", "--dest-tls-verify=false", source, f"docker://{target}")
    return target


def content(ctr: Client, digest: str) -> str:
    """The digest of what containerd holds under a digest."""
    held = ctr.bytes("content", "get", digest)
    return f"sha256:{hashlib.sha256(held).hexdigest()}"


@pytest.mark.parametrize("reference", ["debian"], indirect=True)
def test_pulled_image_is_exact_and_runs(ctr: Client, images: Images, reference: str) -> None:
    """Manifest, configuration and layers of 250 MB arrive as they are, and a container runs."""
    ctr("images", "pull", PLAIN, reference)
    digest = images.digest("debian")
    assert digest in ctr("images", "ls", f"name=={reference}")
    manifest = images.manifest("debian")
    for descriptor in [{"digest": digest}, manifest["config"], *manifest["layers"]]:
        assert content(ctr, descriptor["digest"]) == descriptor["digest"]
    output = ctr("run", "--rm", reference, "container-of-a-pull")
    assert "ID=debian" in output.splitlines()


@pytest.mark.parametrize("reference", ["multi"], indirect=True)
def test_index_is_pulled_with_all_platforms(ctr: Client, images: Images, reference: str) -> None:
    """--all-platforms brings every image of an index."""
    ctr("content", "fetch", PLAIN, "--all-platforms", reference)
    for digest in [images.digest("multi")] + [
        entry["digest"] for entry in images.manifest("multi")["manifests"]
    ]:
        assert content(ctr, digest) == digest


@pytest.mark.parametrize("reference", ["multi"], indirect=True)
def test_pulled_index_is_pushed(
    ctr: Client, skopeo: Client, images: Images, mayfly: Mayfly, reference: str
) -> None:
    """An index that containerd pulled goes to another repository under the same digest."""
    ctr("content", "fetch", PLAIN, "--all-platforms", reference)
    target = reference.replace(":multi", "/pushed:multi")
    ctr("images", "push", PLAIN, target, reference)
    raw = skopeo.bytes("inspect", "--raw", "--tls-verify=false", f"docker://{target}")
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == images.digest("multi")
