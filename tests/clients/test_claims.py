"""What container runtimes ask for when they have an image: the table of docs/lifetime.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.registry.control.client import ask
from mayfly.registry.coverage.states import State
from tests.clients.images import Images
from tests.clients.programs import Client, Containerd, Cri, Dockerd, push_by_skopeo
from tests.support.process import PATIENCE, Mayfly, poll

NODE = "127.0.0.1"
Pull = Callable[[str], object]
Start = Callable[..., Mayfly]
Registries = tuple[Mayfly, Callable[[], Mayfly]]


@pytest.fixture
def registries(
    skopeo: Client, images: Images, start_mayfly: Start, scratch: Path
) -> Iterator[Registries]:
    """A registry with an image, and another at the same place that knows of no pull."""
    listed = scratch / "images.txt"
    listed.write_text("claims/app:1\n")
    options = ("--until-pulled", str(listed), "--nodes", "2")
    first = start_mayfly(*options, state_dir=scratch / "first")
    push_by_skopeo(skopeo, images.layout, "small", f"{first.host}/claims/app:1")

    def second() -> Mayfly:
        first.popen.terminate()
        first.popen.wait(PATIENCE)
        return start_mayfly(*options, state_dir=scratch / "second", listen=first.host)

    yield first, second


def wait_for(server: Mayfly, state: State) -> None:
    """Until the node is so far with the image."""
    poll(lambda: _state(server) == state, lambda: (_state(server), server.describe()))


def _state(server: Mayfly) -> str | None:
    matrix: dict[str, dict[str, str]] = ask(server.state_dir, "status")["coverage"]["matrix"]
    return matrix["claims/app:1"].get(NODE)


def check(pull: Pull, registries: Registries) -> None:
    """A first pull is served, a second one is a claim."""
    first, second = registries
    pull(f"{first.host}/claims/app:1")
    wait_for(first, State.SERVED)
    again = second()
    pull(f"{again.host}/claims/app:1")
    wait_for(again, State.CLAIMED)
    # Terminated here: coverage is not complete, and that is an exit code of its own.
    again.popen.terminate()
    again.popen.wait(PATIENCE)


@pytest.fixture
def clean_docker(each_dockerd: Dockerd) -> Iterator[Client]:
    """docker, and nothing of these tests in it afterwards: others count on having to fetch it."""
    docker = each_dockerd.docker
    yield docker
    for found in set(docker("images", "--quiet", "--filter", "reference=*/claims/*").split()):
        docker("image", "rm", "--force", found)


@pytest.fixture
def clean_containerd(each_containerd: Containerd) -> Iterator[Containerd]:
    """The same for containerd."""
    yield each_containerd
    for name in each_containerd.ctr("images", "ls", "--quiet").split():
        each_containerd.ctr("images", "rm", "--sync", name)


@pytest.fixture
def clean_cri(each_cri: Cri) -> Iterator[Cri]:
    """The same for containerd as kubelet uses it."""
    yield each_cri
    for name in each_cri.ctr("images", "ls", "--quiet").split():
        each_cri.ctr("images", "rm", "--sync", name)


def test_containerd(clean_containerd: Containerd, registries: Registries) -> None:
    """ctr makes a HEAD and nothing else."""
    check(lambda name: clean_containerd.ctr("images", "pull", "--plain-http", name), registries)


def test_cri(clean_cri: Cri, registries: Registries) -> None:
    """So does containerd for a kubelet."""
    clean_cri.trust(registries[0].host)
    check(lambda name: clean_cri.crictl("pull", name), registries)


def test_docker(clean_docker: Client, registries: Registries) -> None:
    """dockerd makes a HEAD; of an image it has from elsewhere it asks for the manifest, too."""
    check(lambda name: clean_docker("pull", name), registries)


def test_podman(podman: Client, registries: Registries) -> None:
    """podman asks for the manifest and the config, and for no layer."""
    check(lambda name: podman("pull", "--tls-verify=false", name), registries)


def test_programs_that_look(skopeo: Client, crane: Client, registries: Registries) -> None:
    """skopeo and crane claim nothing by looking, though they read manifest and config."""
    server, _ = registries
    skopeo("inspect", "--tls-verify=false", f"docker://{server.host}/claims/app:1")
    crane("config", "--insecure", f"{server.host}/claims/app:1")
    crane("digest", "--insecure", f"{server.host}/claims/app:1")
    wait_for(server, State.INCOMPLETE)
    server.popen.terminate()
    server.popen.wait(PATIENCE)
