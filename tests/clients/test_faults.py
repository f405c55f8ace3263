"""Real clients on a network that breaks connections: each pull and push ends right, or says no.

A proxy closes, resets and stalls connections at offsets that a seed chooses. A client may give up,
with a message; run again, it ends right. Nothing half-sent is ever visible in the store.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from tests.clients.images import blob_path, sha256
from tests.clients.medium import Medium
from tests.clients.programs import Client, Containerd, Cri, push_by_skopeo
from tests.clients.proxy import FaultyProxy
from tests.support.commands import mayfly
from tests.support.process import Mayfly, remove_tree

SEEDS = int(os.environ.get("MAYFLY_SOAK_SEEDS", "1"))
"""Networks for each client and direction; `make soak` gives more."""

FAULTS = 2
LARGEST = 12_000_000
"""Offsets of faults in bytes, at most; the largest layer has 17 million."""

TLS = "--tls-verify=false"
CLIENTS = ["docker", "ctr", "skopeo", "podman", "crane"]


class Puller(Protocol):
    """A client as this test uses it: `pull` is one attempt, `None` for success."""

    client: Client

    def pull(self, reference: str) -> str | None: ...

    def check(self, reference: str) -> None: ...

    def forget(self, reference: str) -> None: ...


class Program(Puller, Protocol):
    """One that pushes as well."""

    def push(self, reference: str) -> str | None: ...


def attempt(client: Client, *args: str | Path) -> str | None:
    """Run a client: what it said if it failed, None if not."""
    done = client.run(*args, timeout=200)
    return None if done.returncode == 0 else (done.stdout + done.stderr).decode()


@dataclass
class Engine:
    """docker and podman, which have the image in a storage of their own."""

    client: Client
    local: str
    id: str
    tls: tuple[str, ...] = ()

    def pull(self, reference: str) -> str | None:
        return attempt(self.client, "pull", *self.tls, reference)

    def check(self, reference: str) -> None:
        found = self.client("image", "inspect", "--format={{.Id}}", reference).strip()
        assert found.removeprefix("sha256:") == self.id.removeprefix("sha256:")

    def forget(self, reference: str) -> None:
        self.client.run("image", "rm", "--force", reference, self.local)

    def push(self, reference: str) -> str | None:
        self.client("tag", self.local, reference)
        return attempt(self.client, "push", *self.tls, reference)


@dataclass
class Ctr:
    """containerd."""

    client: Client
    medium: Medium

    def pull(self, reference: str) -> str | None:
        return attempt(self.client, "content", "fetch", "--plain-http", reference)

    def check(self, reference: str) -> None:
        check_content(self.client, self.medium)

    def forget(self, reference: str) -> None:
        for name in self.client("images", "ls", "--quiet").split():
            self.client("images", "rm", "--sync", name)

    def push(self, reference: str) -> str | None:
        local = self.client("images", "ls", "--quiet").split()[0]
        return attempt(self.client, "images", "push", "--plain-http", reference, local)


@dataclass
class Kubelet:
    """What kubelet asks of containerd: PullImage, which unpacks as well."""

    client: Client
    daemon: Cri
    medium: Medium

    def pull(self, reference: str) -> str | None:
        self.daemon.trust(reference.partition("/")[0])
        return attempt(self.client, "pull", reference)

    def check(self, reference: str) -> None:
        check_content(self.daemon.ctr, self.medium)
        (listed,) = json.loads(self.client("images", "--output=json"))["images"]
        assert (listed["id"], listed["repoTags"]) == (self.medium.id, [reference])

    def forget(self, reference: str) -> None:
        self.client("rmi", reference)


def check_content(ctr: Client, medium: Medium) -> None:
    """containerd holds every blob of the image, right to the byte."""
    for digest in (medium.digest, *medium.blobs):
        held = ctr.bytes("content", "get", digest)
        assert held == blob_path(medium.layout, digest).read_bytes(), digest


@dataclass
class Copier:
    """skopeo and crane, which carry an OCI layout to and fro."""

    client: Client
    medium: Medium
    scratch: Path

    def pull(self, reference: str) -> str | None:
        self.forget(reference)
        if self.client.name == "crane":
            return attempt(self.client, "pull", "--format=oci", reference, self.scratch / "in")
        source, target = f"docker://{reference}", f"oci:{self.scratch}/in:medium"
        return attempt(self.client, "copy", f"--src{TLS[1:]}", source, target)

    def check(self, reference: str) -> None:
        for digest in (self.medium.digest, *self.medium.blobs):
            assert sha256(blob_path(self.scratch / "in", digest)) == digest

    def forget(self, reference: str) -> None:
        shutil.rmtree(self.scratch / "in", ignore_errors=True)

    def push(self, reference: str) -> str | None:
        if self.client.name == "crane":
            return attempt(self.client, "push", self.medium.layout, reference)
        source = f"oci:{self.medium.layout}:medium"
        return attempt(self.client, "copy", f"--dest{TLS[1:]}", source, f"docker://{reference}")


@pytest.fixture
def program(request: pytest.FixtureRequest, medium: Medium, scratch: Path) -> Iterator[Puller]:
    """The client that the test's parameter names, with the image at hand to push."""
    name: str = request.param
    client: Client
    if name == "cri":
        cri: Cri = request.getfixturevalue("cri")
        yield Kubelet(cri.crictl, cri, medium)
        return
    if name == "ctr":
        containerd: Containerd = request.getfixturevalue("containerd")
        yield Ctr(containerd.ctr, medium)
        return
    client = request.getfixturevalue(name)
    if name in ("skopeo", "crane"):
        yield Copier(client, medium, scratch)
        return
    local = "localhost/mayfly-test/medium:1"
    tls = () if name == "docker" else (TLS,)
    yield Engine(client, local, medium.id, tls)
    client.run("image", "rm", "--force", local)


@pytest.fixture
def server(start_mayfly: Callable[..., Mayfly]) -> Iterator[Mayfly]:
    """A server of the test's own; whatever the network does, it logs no traceback."""
    server = start_mayfly()
    yield server
    assert "Traceback" not in server.output(), server.describe()


def load(program: Program, skopeo: Client, medium: Medium, scratch: Path) -> None:
    """Bring the image to where a push takes it from."""
    archive = scratch / "medium.tar"
    source = f"oci:{medium.layout}:medium"
    if isinstance(program, Ctr):
        skopeo("copy", source, f"oci-archive:{archive}:medium")
        program.client("images", "import", "--digests", "--base-name=medium", archive)
        return
    if not isinstance(program, Engine):
        return
    skopeo("copy", source, f"docker-archive:{archive}:{program.local}")
    program.client("load", "--input", archive)


def assert_nothing_half(server: Mayfly) -> None:
    """Every blob that can be seen has its digest."""
    for data in server.root.glob("docker/registry/v2/blobs/sha256/*/*/data"):
        assert sha256(data) == f"sha256:{data.parent.name}"


def assert_whole(server: Mayfly) -> None:
    """`mayfly verify` finds nothing, and nothing is left but upload sessions."""
    done = mayfly("verify", "--root", server.root)
    assert done.returncode == 0, done.stdout
    assert list(server.root.rglob("_mayfly/scratch/*/*")) == []


def until_done(
    what: Callable[[], str | None], proxy: FaultyProxy, after_each: Callable[[], None]
) -> int:
    """Try until it succeeds; a failure needs a fault and a message. How many tries it took."""
    for number in range(1, FAULTS + 2):
        left = proxy.left
        told = what()
        after_each()
        if told is None:
            assert proxy.happened
            return number
        assert told.strip()
        assert proxy.left < left, f"failed without a fault: {told}"
    raise AssertionError(f"never succeeded; {proxy.happened}")


@pytest.mark.parametrize("program", [*CLIENTS, "cri"], indirect=True)
def test_pull(program: Puller, skopeo: Client, medium: Medium, server: Mayfly) -> None:
    """What a client says it has pulled is what was pushed."""
    push_by_skopeo(skopeo, medium.layout, "medium", f"{server.host}/faults:1")
    for _ in range(SEEDS):
        seed = random.randrange(2**32)
        with FaultyProxy(server.host, seed, FAULTS, LARGEST) as proxy:
            reference = f"{proxy.host}/faults:1"
            tries = until_done(partial(program.pull, reference), proxy, lambda: None)
            program.check(reference)
            program.forget(reference)
        report("pull", program, seed, tries, proxy)
    assert_whole(server)


@pytest.mark.parametrize("program", CLIENTS, indirect=True)
def test_push(
    program: Program, skopeo: Client, medium: Medium, server: Mayfly, scratch: Path
) -> None:
    """What a client says it has pushed can be pulled; before, no part of it is to be seen."""
    load(program, skopeo, medium, scratch)
    for number in range(SEEDS):
        seed = random.randrange(2**32)
        with FaultyProxy(server.host, seed, FAULTS, LARGEST) as proxy:
            reference = f"{proxy.host}/faults{number}:1"
            tries = until_done(
                partial(program.push, reference), proxy, lambda: assert_nothing_half(server)
            )
        report("push", program, seed, tries, proxy)
        source = f"docker://{server.host}/faults{number}:1"
        skopeo("copy", "--src-tls-verify=false", source, f"dir:{scratch}/{number}")
        remove_tree(scratch / str(number))
    program.forget(reference)
    assert_whole(server)


def report(direction: str, program: Puller, seed: int, tries: int, proxy: FaultyProxy) -> None:
    """For people who look why a run failed, or what clients do."""
    name = program.client.name
    resumed = [asked for asked in proxy.ranges if not asked.startswith("bytes=0-")]
    print(
        f"{direction} {name} seed {seed}: {tries} tries, {proxy.passed} bytes of answers, "
        f"resumed at {resumed}, {proxy.happened}"
    )
