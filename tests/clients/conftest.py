"""Fixtures of the client tests: images, daemons, clients and names nobody else uses."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from tests.clients.images import COMMAND, Images, make_images
from tests.clients.medium import Medium, make_medium
from tests.clients.node_machines import network_of_machines
from tests.clients.programs import Client, Containerd, Cri, Dockerd
from tests.kubelet.namespace import own_network
from tests.support.process import CACHE, Process, find_program, need, need_root, remove_tree
from tests.support.programs import versions

BASE_IMAGE = "mayfly-test/base:1"
BUILT_IMAGE = "mayfly-test/debian:1"


def version_id(version: str) -> str:
    """How a version shows in the name of a test."""
    return version or "debian"


@pytest.fixture(scope="session")
def images() -> Images:
    """Images of real files in an OCI layout."""
    need_root()
    need("debootstrap")
    return make_images(CACHE)


@pytest.fixture(scope="session")
def medium(images: Images, workspace: Path) -> Medium:
    """An image of some twenty megabytes, to be sent many times."""
    return make_medium(images, workspace / "medium")


@pytest.fixture(scope="session")
def home(workspace: Path) -> Path:
    """A home for clients, with no credentials: podman wants the file it is told of to exist."""
    path = workspace / "home"
    path.mkdir()
    (path / "auth.json").write_text("{}")
    return path


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """A network of the module's own, for machines of `node_machines`."""
    need_root()
    with own_network():
        network_of_machines()
        yield


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """A repository name that is this test's own."""
    module = request.node.path.stem.removeprefix("test_").replace("_", "-")
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    return f"{module}/{name.strip('-')}"


@pytest.fixture
def scratch(workspace: Path) -> Iterator[Path]:
    """A directory for what a test downloads, removed at once."""
    path = Path(tempfile.mkdtemp(prefix="scratch-", dir=workspace))
    yield path
    remove_tree(path)


Daemon = TypeVar("Daemon", bound=Process)


def _started_once(start: Callable[[str], Daemon]) -> Iterator[Callable[[str], Daemon]]:
    """Start the daemon of a version when a test asks for it first; stop all of them at the end.

    A fixture with one version after the other would start each again for the next module.
    """
    need_root()
    started: dict[str, Daemon] = {}
    with ExitStack() as stops:

        def get(version: str) -> Daemon:
            if version not in started:
                started[version] = start(version)
                stops.callback(started[version].stop)
            return started[version]

        yield get


@pytest.fixture(scope="session")
def dockerds(workspace: Path, home: Path) -> Iterator[Callable[[str], Dockerd]]:
    """Docker daemons by version; "" is the machine's own.

    The others keep images in containerd, of the newest version that the manifest has.
    """

    def start(version: str) -> Dockerd:
        containerd = versions("containerd")[-1] if version else ""
        return Dockerd(workspace / f"dockerd-{version_id(version)}", home, version, containerd)

    yield from _started_once(start)


@pytest.fixture(scope="session")
def dockerd(dockerds: Callable[[str], Dockerd]) -> Dockerd:
    """The machine's Docker daemon, with a directory of this run's own."""
    return dockerds("")


@pytest.fixture(scope="module", params=["", *versions("docker")], ids=version_id)
def each_dockerd(request: pytest.FixtureRequest, dockerds: Callable[[str], Dockerd]) -> Dockerd:
    """The machine's Docker daemon, and each engine that the manifest of programs has."""
    return dockerds(request.param)


@pytest.fixture(scope="session")
def docker(dockerd: Dockerd) -> Client:
    """The docker command of that daemon."""
    return dockerd.docker


def runs_containers(docker: Client) -> bool:
    """Whether an engine can start containers with Debian 12's runc.

    From 29 on (API 1.52) it asks for a time namespace, which runc knows from 1.2 on.
    """
    major, minor = docker("version", "--format={{.Server.APIVersion}}").split(".")
    return (int(major), int(minor)) < (1, 52)


@pytest.fixture(scope="module")
def docker_base(docker: Client, images: Images) -> str:
    """A Debian of one layer in docker, brought again for a module that follows its removal."""
    if docker.run("image", "inspect", BASE_IMAGE).returncode != 0:
        docker("import", images.tar("base"), BASE_IMAGE)
    return BASE_IMAGE


@pytest.fixture(scope="module")
def docker_image(docker: Client, docker_base: str, images: Images, workspace: Path) -> str:
    """An image of several layers that docker built on the base."""
    layers = ["share", "python", "archives"]
    build = "RUN dpkg-query --show > /packages\n" if runs_containers(docker) else ""
    command = ", ".join(f'"{word}"' for word in COMMAND)
    with tempfile.TemporaryDirectory(dir=workspace) as context:
        for layer in layers:
            shutil.copy(images.tar(layer), context)
        (Path(context) / "Dockerfile").write_text(
            f"FROM {docker_base}\n"
            + "".join(f"ADD {layer}.tar /\n" for layer in layers)
            + f"{build}CMD [{command}]\n"
        )
        docker("build", "--network=none", f"--tag={BUILT_IMAGE}", context)
    return BUILT_IMAGE


@pytest.fixture(scope="session")
def containerds(workspace: Path, home: Path) -> Iterator[Callable[[str], Containerd]]:
    """Containerds by version; "" is the machine's own."""

    def start(version: str) -> Containerd:
        return Containerd(workspace / f"containerd-{version_id(version)}", home, version)

    yield from _started_once(start)


@pytest.fixture(scope="session")
def containerd(containerds: Callable[[str], Containerd]) -> Containerd:
    """The machine's containerd, with a directory of this run's own."""
    return containerds("")


@pytest.fixture(scope="module", params=["", *versions("containerd")], ids=version_id)
def each_containerd(
    request: pytest.FixtureRequest, containerds: Callable[[str], Containerd]
) -> Containerd:
    """The machine's containerd, and each version that the manifest of programs has."""
    return containerds(request.param)


@pytest.fixture(scope="session")
def cris(workspace: Path, home: Path) -> Iterator[Callable[[str], Cri]]:
    """Containerds as kubelet uses them, by version; "" is the machine's own."""

    def start(version: str) -> Cri:
        return Cri(workspace / f"cri-{version_id(version)}", home, version)

    yield from _started_once(start)


@pytest.fixture(scope="session")
def cri(cris: Callable[[str], Cri]) -> Cri:
    """The machine's containerd as kubelet uses it, with a directory of this run's own."""
    return cris("")


@pytest.fixture(scope="module", params=["", *versions("containerd")], ids=version_id)
def each_cri(request: pytest.FixtureRequest, cris: Callable[[str], Cri]) -> Cri:
    """A containerd as kubelet uses it: the machine's, and each that the manifest has."""
    return cris(request.param)


@pytest.fixture(scope="session")
def skopeo(home: Path) -> Client:
    """skopeo, with no signature policy."""
    return Client("skopeo", home, "--insecure-policy")


@pytest.fixture(scope="session")
def oras(home: Path) -> Client:
    """oras."""
    return Client("oras", home)


@pytest.fixture(scope="session")
def crane(home: Path) -> Client:
    """crane."""
    return Client("crane", home)


@pytest.fixture(scope="module")
def podman(workspace: Path, home: Path) -> Iterator[Client]:
    """podman with a storage of its own."""
    need_root()
    need("podman", "runc")
    storage = Path(tempfile.mkdtemp(prefix="podman-", dir=workspace))
    # runc: crun refuses machines that mount both versions of cgroups.
    yield Client(
        "podman",
        home,
        f"--root={storage}/root",
        f"--runroot={storage}/run",
        f"--runtime={find_program('runc')}",
        "--cgroup-manager=cgroupfs",
        "--events-backend=file",
    )
    remove_tree(storage)
