"""A directory changes hands between Mayfly and the CNCF distribution registry, both ways."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.images import COMMAND, Images
from tests.clients.programs import Client, Distribution, collect_garbage
from tests.support.process import Mayfly

BLOBS = "docker/registry/v2/blobs"
SBOM = "application/vnd.example.sbom"
Digests = dict[str, str]
"""Reference without the host → the digest of its manifest."""

Copied = Callable[[tuple[Path, Digests]], tuple[Path, Digests]]
Start = Callable[[Path], Any]


class Pusher:
    """Pushes and checks real content with real clients."""

    def __init__(
        self, docker: Client, skopeo: Client, oras: Client, images: Images, docker_base: str
    ) -> None:
        self.docker = docker
        self.skopeo = skopeo
        self.oras = oras
        self.images = images
        self.docker_base = docker_base

    def fill(self, host: str, files: Path) -> Digests:
        """An image by docker, and what `add` brings."""
        pushed = "docker/base:1"
        self.docker("tag", self.docker_base, f"{host}/{pushed}")
        self.docker("push", f"{host}/{pushed}")
        self.docker("image", "rm", f"{host}/{pushed}")
        return {pushed: self.digest(host, pushed), **self.add(host, files)}

    def add(self, host: str, files: Path, prefix: str = "") -> Digests:
        """An image, an index and a manifest list by skopeo, an artifact and its SBOM by oras."""
        references = []
        for name, form in (("debian", "oci"), ("multi", "oci"), ("multi", "v2s2")):
            references.append(f"{prefix}skopeo/{form}/{name}:1")
            target = f"docker://{host}/{references[-1]}"
            options = ["--all", f"--format={form}", "--dest-tls-verify=false"]
            self.skopeo("copy", *options, f"oci:{self.images.layout}:{name}", target)
        references += self._push_artifact(host, f"{prefix}oras/chart", files)
        return {reference: self.digest(host, reference) for reference in references}

    def _push_artifact(self, host: str, repository: str, files: Path) -> list[str]:
        for name in ("chart", "sbom"):
            (files / f"{name}.txt").write_text(f"the {name}\n")
        artifact = f"{host}/{repository}:1"
        self.oras("push", "--plain-http", artifact, "chart.txt", cwd=files)
        attach = ["attach", "--plain-http", "--format=json", f"--artifact-type={SBOM}"]
        attached = json.loads(self.oras(*attach, artifact, "sbom.txt", cwd=files))
        return [f"{repository}:1", f"{repository}@{attached['digest']}"]

    def digest(self, host: str, reference: str) -> str:
        """The digest of the exact bytes that are served for a reference."""
        target = f"docker://{host}/{reference}"
        raw = self.skopeo.bytes("inspect", "--raw", "--tls-verify=false", target)
        return f"sha256:{hashlib.sha256(raw).hexdigest()}"

    def check(self, host: str, digests: Digests, scratch: Path) -> None:
        """Every manifest is the one that was pushed, and all it names can be downloaded."""
        for reference, digest in digests.items():
            assert self.digest(host, reference) == digest, reference
            source = f"docker://{host}/{reference}"
            options = ["--all", "--src-tls-verify=false"]
            self.skopeo("copy", *options, source, f"dir:{scratch}/copy")
            shutil.rmtree(scratch / "copy")

    def check_runs(self, host: str, reference: str) -> None:
        """docker pulls an image and its container runs."""
        image = f"{host}/{reference}"
        self.docker("pull", image)
        output = self.docker("run", "--rm", "--network=none", image, *COMMAND)
        assert "ID=debian" in output.splitlines()
        self.docker("image", "rm", image)


@pytest.fixture(scope="module")
def pusher(
    docker: Client, skopeo: Client, oras: Client, images: Images, docker_base: str
) -> Pusher:
    """The clients, with what they push."""
    return Pusher(docker, skopeo, oras, images, docker_base)


@pytest.fixture(scope="module")
def written_by_mayfly(
    pusher: Pusher, workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Digests]:
    """A directory that Mayfly filled, and what is in it."""
    directory = workspace / "written-by-mayfly"
    with Mayfly(directory / "root", directory / "state") as server:
        digests = pusher.fill(server.host, tmp_path_factory.mktemp("files"))
    return directory / "root", digests


@pytest.fixture(scope="module")
def written_by_distribution(
    pusher: Pusher, workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Digests]:
    """A directory that distribution filled, and what is in it."""
    directory = workspace / "written-by-distribution"
    with Distribution(directory / "root", directory / "state") as server:
        digests = pusher.fill(server.host, tmp_path_factory.mktemp("files"))
    return directory / "root", digests


@pytest.fixture
def copied(scratch: Path) -> Copied:
    """Copy a directory, so that a test may change it."""

    def copy(written: tuple[Path, Digests]) -> tuple[Path, Digests]:
        root, digests = written
        return Path(shutil.copytree(root, scratch / "root")), dict(digests)

    return copy


@pytest.fixture
def mayfly_on(start_mayfly: Callable[..., Mayfly]) -> Callable[[Path], Mayfly]:
    """Start Mayfly on a directory."""
    return lambda root: start_mayfly(root=root)


@pytest.fixture
def distribution_on(scratch: Path) -> Iterator[Callable[[Path], Distribution]]:
    """Start distribution on a directory."""
    servers: list[Distribution] = []

    def start(root: Path) -> Distribution:
        servers.append(Distribution(root, scratch / f"distribution-{len(servers)}"))
        return servers[-1]

    yield start
    for server in servers:
        if server.running:
            server.stop()


def test_distribution_serves_what_mayfly_wrote(
    pusher: Pusher,
    written_by_mayfly: tuple[Path, Digests],
    copied: Copied,
    distribution_on: Start,
    mayfly_on: Start,
    scratch: Path,
) -> None:
    """distribution serves Mayfly's directory and adds to it; Mayfly then serves all of it."""
    root, digests = copied(written_by_mayfly)
    distribution = distribution_on(root)
    pusher.check(distribution.host, digests, scratch)
    pusher.check_runs(distribution.host, "docker/base:1")
    digests |= pusher.add(distribution.host, scratch, prefix="added/")
    distribution.stop()
    mayfly = mayfly_on(root)
    pusher.check(mayfly.host, digests, scratch)


def test_mayfly_serves_what_distribution_wrote(
    pusher: Pusher,
    written_by_distribution: tuple[Path, Digests],
    copied: Copied,
    distribution_on: Start,
    mayfly_on: Start,
    scratch: Path,
) -> None:
    """Mayfly serves distribution's directory and adds to it; distribution then serves all."""
    root, digests = copied(written_by_distribution)
    mayfly = mayfly_on(root)
    pusher.check(mayfly.host, digests, scratch)
    pusher.check_runs(mayfly.host, "docker/base:1")
    digests |= pusher.add(mayfly.host, scratch, prefix="added/")
    mayfly.stop()
    distribution = distribution_on(root)
    pusher.check(distribution.host, digests, scratch)


def test_mayfly_finds_referrers_that_distribution_took_in(
    pusher: Pusher, written_by_distribution: tuple[Path, Digests], copied: Copied, mayfly_on: Start
) -> None:
    """distribution keeps no list of referrers; Mayfly answers from the manifests it finds."""
    root, digests = copied(written_by_distribution)
    (attached,) = [reference for reference in digests if "@" in reference]
    artifact = f"{mayfly_on(root).host}/oras/chart:1"
    options = ["--plain-http", "--format=json", "--distribution-spec=v1.1-referrers-api"]
    found = json.loads(pusher.oras("discover", *options, artifact))["referrers"]
    assert [entry["digest"] for entry in found] == [digests[attached]]
    assert [entry["artifactType"] for entry in found] == [SBOM]


def test_garbage_collect_loses_nothing(
    pusher: Pusher,
    written_by_mayfly: tuple[Path, Digests],
    copied: Copied,
    distribution_on: Start,
    mayfly_on: Start,
    scratch: Path,
) -> None:
    """distribution's collector finds nothing to delete, and both registries serve everything."""
    root, digests = copied(written_by_mayfly)
    before = files_in(root / BLOBS)
    output = collect_garbage(root, scratch / "collector")
    assert "0 blobs and 0 manifests eligible for deletion" in output
    assert files_in(root / BLOBS) == before
    distribution = distribution_on(root)
    pusher.check(distribution.host, digests, scratch)
    distribution.stop()
    pusher.check(mayfly_on(root).host, digests, scratch)


def test_garbage_collect_removes_only_what_was_deleted(
    pusher: Pusher,
    written_by_mayfly: tuple[Path, Digests],
    copied: Copied,
    mayfly_on: Start,
    scratch: Path,
) -> None:
    """After a delete in Mayfly the collector frees that image's layers, and only those."""
    root, digests = copied(written_by_mayfly)
    mayfly = mayfly_on(root)
    gone = "docker/base:1"
    by_digest = f"{mayfly.host}/docker/base@{digests[gone]}"
    manifest = json.loads(
        pusher.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{by_digest}")
    )
    pusher.skopeo("delete", "--tls-verify=false", f"docker://{by_digest}")
    mayfly.stop()
    del digests[gone]
    collect_garbage(root, scratch / "collector")
    left = files_in(root / BLOBS)
    for layer in manifest["layers"]:
        assert not [path for path in left if layer["digest"].removeprefix("sha256:") in path]
    pusher.check(mayfly_on(root).host, digests, scratch)


def files_in(directory: Path) -> set[str]:
    """The paths of all files in a directory."""
    return {str(path) for path in directory.rglob("*") if path.is_file()}
