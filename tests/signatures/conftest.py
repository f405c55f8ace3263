"""Two registries as upstreams, and what real tools put there: signatures, a chart, an artifact."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from mayfly.storage.directory.store import DistributionStore
from tests.support.certificates import Pair, self_signed
from tests.support.images import descriptor, image_body, index_body, push, put
from tests.support.process import Process, find_program, need
from tests.support.programs import versioned

USER, PASSWORD = "mirror", "correct-horse-battery"
COUNT = 60
PLATFORMS = ("amd64", "arm64")
MULTI_PLATFORM = 3
"""Of the images, how many have several platforms; all but one of them with attestations."""

BASE = [os.urandom(1) * 400_000 + bytes([number]) for number in range(3)]
"""Layers that all images share."""


@dataclass(frozen=True)
class Tools:
    """The programs, and the environment in which they find logins and trust."""

    environment: dict[str, str]
    directory: Path

    def run(self, program: str | Path, *words: str | Path) -> str:
        """Run one; its standard output."""
        done = subprocess.run(
            [str(program), *map(str, words)],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{program} {words}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def cosign(self, version: str, *words: str | Path) -> str:
        """Run one version of cosign."""
        directory = versioned("cosign", version)
        need("cosign", directory=directory)
        return self.run(directory / "cosign", *words)

    def program(self, name: str, *words: str | Path) -> str:
        """Run another program of the tests."""
        need(name)
        return self.run(find_program(name) or name, *words)


@dataclass(frozen=True)
class Upstream:
    """A registry.

    Attributes:
        host: as tools reach it.
        name: of its images in lists: an upstream, or the host itself.
        ca: the certificate to trust, if it speaks TLS.
    """

    host: str
    name: str
    ca: Path | None


def image(number: int) -> str:
    """The repository of one of the images."""
    return f"kolla/service-{number:02}"


def _fill(root: Path) -> None:
    """Sixty images on a common base; three of them for two platforms, two of these attested."""
    with closing(DistributionStore(root)) as store:
        for number in range(COUNT):
            repository = image(number)
            own = b"service %d" % number * 3000
            for data in (b"{}", own, *BASE):
                push(store, repository, data)
            if number >= MULTI_PLATFORM:
                put(store, repository, image_body(b"{}", [*BASE, own]), "1")
                continue
            entries = []
            for platform in PLATFORMS:
                layer = own + platform.encode()
                push(store, repository, layer)
                manifest, digest = put(store, repository, image_body(b"{}", [*BASE, layer]))
                entries.append(
                    descriptor(
                        manifest.body,
                        manifest.media_type,
                        platform={"os": "linux", "architecture": platform},
                    )
                )
                if number == 0:
                    continue
                statement = json.dumps({"_type": "https://in-toto.io/Statement/v0.1"}).encode()
                push(store, repository, statement)
                attestation, _ = put(store, repository, image_body(b"{}", [statement]))
                entries.append(
                    descriptor(
                        attestation.body,
                        attestation.media_type,
                        platform={"os": "unknown", "architecture": "unknown"},
                        annotations={
                            "vnd.docker.reference.type": "attestation-manifest",
                            "vnd.docker.reference.digest": str(digest),
                        },
                    )
                )
            put(store, repository, index_body(manifests=entries), "1")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Of the registry with TLS."""
    return self_signed(tmp_path_factory.mktemp("tls"), ca=True)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, certificate: Pair) -> Iterator[Upstream]:
    """docker-registry with TLS and users, filled."""
    need("docker-registry", "htpasswd")
    place = tmp_path_factory.mktemp("secure")
    _fill(place / "root")
    users = subprocess.run(
        [find_program("htpasswd") or "", "-Bbn", USER, PASSWORD],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    (place / "htpasswd").write_text(users.stdout)
    (place / "config.yml").write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {place / 'root'}}}}}\n"
        f"auth: {{htpasswd: {{realm: x, path: {place / 'htpasswd'}}}}}\n"
        "http:\n"
        "  addr: 127.0.0.1:0\n"
        "  secret: not-a-secret\n"
        f"  tls: {{certificate: {certificate.certificate}, key: {certificate.key}}}\n"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
    program = find_program("docker-registry") or ""
    process = Process([program, "serve", place / "config.yml"], place / "log", env=own)
    try:
        port = process.wait_for(lambda: _port(process, r"listening on 127\.0\.0\.1:(\d+)"))
        yield Upstream(f"localhost:{port}", "registry.example", certificate.certificate)
    finally:
        process.kill()


def _port(process: Process, pattern: str) -> str | None:
    found = re.search(pattern, process.output())
    return found[1] if found else None


def _answers(port: int) -> bool | None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return None


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """olareg over plain HTTP, with a referrers API; empty."""
    need("olareg")
    place = tmp_path_factory.mktemp("plain")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", "--dir", place / "root", "--port", port, "--addr", "127.0.0.1"]
    process = Process([find_program("olareg") or "", *map(str, words)], place / "log")
    try:
        process.wait_for(lambda: _answers(port))
        yield Upstream(f"localhost:{port}", f"localhost:{port}", None)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory, secure: Upstream, certificate: Pair) -> Tools:
    """Logged in, as docker login leaves it, and trusting the registry's certificate."""
    place = tmp_path_factory.mktemp("tools")
    pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    auths = {secure.host: {"auth": pair}}
    (place / "config.json").write_text(json.dumps({"auths": auths}))
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("MAYFLY_")},
        "HOME": str(place),
        "DOCKER_CONFIG": str(place),
        "HELM_REGISTRY_CONFIG": str(place / "config.json"),
        "REGISTRY_AUTH_FILE": str(place / "config.json"),
        "SSL_CERT_FILE": str(certificate.certificate),
        "COSIGN_PASSWORD": "",
    }
    return Tools(environment, place)
