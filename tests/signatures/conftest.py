"""Two registries as upstreams, and what real tools put there: signatures, a chart, an artifact."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from mayfly.storage.directory.store import DistributionStore
from tests.support.certificates import Pair, self_signed
from tests.support.images import descriptor, image_body, index_body, push, put
from tests.support.others import PASSWORD, USER, distribution, olareg
from tests.support.process import find_program, need
from tests.support.programs import versioned

COUNT = 60
PLATFORMS = ("amd64", "arm64")
MULTI_PLATFORM = 3
"""Number of images with several platforms; all but one have attestations."""

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
    """The certificate of the registry with TLS."""
    return self_signed(tmp_path_factory.mktemp("tls"), ca=True)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, certificate: Pair) -> Iterator[Upstream]:
    """docker-registry with TLS and users, filled."""
    place = tmp_path_factory.mktemp("secure")
    _fill(place / "root")
    with distribution(place, "docker-registry", certificate) as found:
        yield Upstream(found.host, "registry.example", certificate.certificate)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """olareg over plain HTTP, with a referrers API; empty."""
    with olareg(tmp_path_factory.mktemp("plain")) as found:
        yield Upstream(found.host, found.host, None)


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
