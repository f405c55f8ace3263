"""Registries of other makers, as processes: CNCF distribution with users and TLS, and olareg."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.certificates import Pair
from tests.support.process import Process, find_program, need

USER, PASSWORD = "mirror", "correct-horse-battery"


@dataclass(frozen=True)
class Other:
    """A registry.

    Attributes:
        host: as tools reach it.
        options: by which mayfly trusts it, and takes images from it.
        scheme: for a destination.
        environment: in which mayfly and others find the login.
    """

    host: str
    options: Sequence[str | Path] = ()
    environment: dict[str, str] = field(default_factory=dict)
    scheme: str = "http"

    @property
    def url(self) -> str:
        """The URL of the registry."""
        return f"{self.scheme}://{self.host}"


@contextlib.contextmanager
def distribution(
    place: Path, program: str, pair: Pair | None = None, root: Path | None = None
) -> Iterator[Other]:
    """CNCF distribution; with a certificate over TLS, and with a user.

    Args:
        place: for its files, and its log.
        program: ``registry`` (3) or ``docker-registry`` (2.8 of Debian).
        pair: its certificate.
        root: its store, below ``place`` without one.
    """
    need(program)
    place.mkdir(parents=True, exist_ok=True)
    config = [
        "version: 0.1",
        f"storage: {{filesystem: {{rootdirectory: {root or place / 'root'}}}, "
        "delete: {enabled: true}}",
        *(_users(place) if pair else ()),
        "http:",
        "  addr: 127.0.0.1:0",
        "  secret: not-a-secret",
    ]
    if pair:
        config.append(f"  tls: {{certificate: {pair.certificate}, key: {pair.key}}}")
    (place / "config.yml").write_text("\n".join(config) + "\n")
    own = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
    own["OTEL_TRACES_EXPORTER"] = "none"
    argv = [find_program(program) or "", "serve", place / "config.yml"]
    process = Process(argv, place / "log", env=own)
    try:
        port = process.wait_for(lambda: _port(process, r"listening on 127\.0\.0\.1:(\d+)"))
        if pair is None:
            yield Other(f"127.0.0.1:{port}")
        else:
            host = f"localhost:{port}"
            trust = ("--ca", pair.certificate, "--upstream", f"{host}=https://{host}")
            yield Other(host, trust, _login(place, host, pair), "https")
    finally:
        process.kill()


@contextlib.contextmanager
def olareg(place: Path) -> Iterator[Other]:
    """olareg over plain HTTP, with a referrers API; empty."""
    need("olareg")
    place.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", "--dir", place / "root", "--port", port, "--addr", "127.0.0.1"]
    process = Process([find_program("olareg") or "", *map(str, words)], place / "log")
    try:
        process.wait_for(lambda: _answers(port))
        yield Other(f"localhost:{port}")
    finally:
        process.kill()


def _users(place: Path) -> list[str]:
    need("htpasswd")
    users = subprocess.run(
        [find_program("htpasswd") or "", "-Bbn", USER, PASSWORD],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    (place / "htpasswd").write_text(users.stdout)
    return [f"auth: {{htpasswd: {{realm: x, path: {place / 'htpasswd'}}}}}"]


def _login(place: Path, host: str, pair: Pair) -> dict[str, str]:
    """As docker login leaves it, and where other tools find the certificate."""
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (place / "config.json").write_text(json.dumps({"auths": {host: {"auth": encoded}}}))
    return {
        "DOCKER_CONFIG": str(place),
        "REGISTRY_AUTH_FILE": str(place / "config.json"),
        "SSL_CERT_FILE": str(pair.certificate),
    }


def _port(process: Process, pattern: str) -> str | None:
    found = re.search(pattern, process.output())
    return found[1] if found else None


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
