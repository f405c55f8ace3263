"""docker: push, push again, mount into a second repository, pull and run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.conftest import runs_containers
from tests.clients.images import ARCHITECTURE, Images
from tests.clients.programs import Client, Dockerd
from tests.support.process import Mayfly

DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


@dataclass(frozen=True)
class Pushed:
    """An image pushed to a server that held nothing, and what docker said about it."""

    host: str
    reference: str
    output: str


@pytest.fixture(scope="module")
def docker(each_dockerd: Dockerd) -> Client:
    """docker of each engine: in this module in place of the machine's alone."""
    return each_dockerd.docker


@pytest.fixture(scope="module")
def pushed(docker: Client, docker_image: str, workspace: Path) -> Iterator[Pushed]:
    """docker remembers what a registry has: only a server of its own sees the first push."""
    directory = Path(tempfile.mkdtemp(prefix="docker-", dir=workspace))
    with Mayfly(directory / "root", directory / "state") as server:
        reference = f"{server.host}/first/debian:1"
        docker("tag", docker_image, reference)
        yield Pushed(server.host, reference, docker("push", reference))
        docker("image", "rm", reference)


@pytest.fixture(scope="module")
def layers(docker: Client, pushed: Pushed) -> int:
    """How many layers the image has."""
    return len(json.loads(docker("image", "inspect", pushed.reference))[0]["RootFS"]["Layers"])


def test_first_push_uploads_every_layer(docker: Client, pushed: Pushed, layers: int) -> None:
    """A server that has nothing is sent all layers of an image of 120 MB and more."""
    size = json.loads(docker("image", "inspect", pushed.reference))[0]["Size"]
    assert size >= 120_000_000
    assert layers == (5 if runs_containers(docker) else 4)
    assert pushed.output.count(": Pushed") == layers


def test_second_push_uploads_nothing(docker: Client, pushed: Pushed, layers: int) -> None:
    """A push of what is there says so for every layer, and ends in the same digest."""
    again = docker("push", pushed.reference)
    assert again.count(": Layer already exists") == layers
    assert again.splitlines()[-1] == pushed.output.splitlines()[-1]


def test_second_repository_mounts(docker: Client, pushed: Pushed, layers: int) -> None:
    """Another repository gets its layers by mount, and a pull from it works."""
    second = f"{pushed.host}/second/debian:1"
    docker("tag", pushed.reference, second)
    output = docker("push", second)
    assert output.count(": Mounted from first/debian") == layers
    docker("image", "rm", second)
    docker("pull", second)
    docker("image", "rm", second)


def test_removed_image_is_pulled_and_runs(
    docker: Client, docker_base: str, docker_image: str, pushed: Pushed, layers: int
) -> None:
    """With every copy removed, a pull gives the same image id, and its container runs."""
    before = docker("image", "inspect", "--format={{.Id}}", pushed.reference)
    docker("image", "rm", pushed.reference, docker_image, docker_base)
    assert before.strip() not in docker("image", "ls", "--all", "--quiet", "--no-trunc")
    pulled = docker("pull", pushed.reference)
    assert pulled.count(": Pull complete") == layers
    assert docker("image", "inspect", "--format={{.Id}}", pushed.reference) == before
    if runs_containers(docker):
        output = docker("run", "--rm", "--network=none", pushed.reference)
        assert "ID=debian" in output.splitlines()


def test_pull_by_digest(docker: Client, pushed: Pushed) -> None:
    """The digest that the push printed is one to pull by."""
    digest = pushed.output.split("digest: ")[1].split()[0]
    name = pushed.reference.rpartition(":")[0]
    assert f"Digest: {digest}" in docker("pull", f"{name}@{digest}")


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_pull_from_index_takes_own_platform(
    docker: Client, skopeo: Client, images: Images, mayfly: Mayfly, repository: str, form: str
) -> None:
    """From an OCI index and from a manifest list, docker pulls the image of its platform."""
    reference = f"{mayfly.host}/{repository}:multi"
    source = f"oci:{images.layout}:multi"
    tls = "--dest-tls-verify=false"
    skopeo("copy", "--all", f"--format={form}", tls, source, f"docker://{reference}")
    docker("pull", reference)
    inspected = json.loads(docker("image", "inspect", reference))[0]
    assert inspected["Architecture"] == ARCHITECTURE
    docker("image", "rm", reference)
    if form == "v2s2":
        raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{reference}")
        assert json.loads(raw)["mediaType"] == DOCKER_MANIFEST_LIST
