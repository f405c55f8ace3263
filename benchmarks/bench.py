"""The place of one run: its directory, certificate, users, data, and each registry's own store."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import load, peers
from benchmarks.load import Data, Result
from benchmarks.peers import MAYFLY, PEERS, Launch, Peer
from benchmarks.server import Server, free_port, running

Figures = dict[str, float]
"""The values of one measurement, by name and unit."""

RATE = "MiB/s"
DURABLE = "MiB/s durable"
"""With the time that it takes to sync the files left unsynced."""

CPU = "CPU s/GiB"
PEAK = "peak MiB"

T = TypeVar("T")

SCOPES = [f"repository:{load.REPOSITORY}:pull,push", "registry:catalog:*"]

_GRANTS = """\
[[grant]]
user = "bench"
role = "developer"
repositories = "bench/**"

[[grant]]
user = "looker"
role = "guest"
repositories = "**"
"""


class Bench:
    """See the module.

    Args:
        directory: on a disk, empty, removed by the caller.
        scale: see `Data`.
    """

    def __init__(self, directory: Path, scale: float) -> None:
        self.directory = directory
        self.scale = scale
        peers.compile_mayfly()
        self.data = Data(directory, scale)
        self.tls = _certificate(directory)
        self.auth = _users(directory)
        self.library = peers.free_fsync(directory)
        self.ciphers: dict[str, str] = {}
        self._stored: dict[str, Path] = {}
        self._bundle: Path | None = None
        self._kept: dict[object, Any] = {}
        self.image_digest = ""

    @contextlib.contextmanager
    def serve(
        self,
        peer: Peer,
        root: Path,
        *,
        tls: bool = False,
        auth: bool = True,
        bundle: Path | None = None,
        probe: str = "/v2/",
    ) -> Iterator[Server]:
        """Run a registry on a directory until the block ends."""
        scratch = Path(tempfile.mkdtemp(prefix="scratch-", dir=self.directory))
        launch = Launch(
            free_port(),
            root,
            scratch,
            self.tls if tls else None,
            self.auth if auth else None,
            self.data.path,
            self.data.index,
            bundle,
        )
        ca = self.tls[0] if tls else None
        environment = peers.environment(peer, self.library)
        log = self.directory / f"{peer.name}-{launch.port}.log"
        assert peer.command is not None
        command = peer.command(launch)
        try:
            with running(command, launch.port, ca, log, environment, probe) as server:
                yield server
        finally:
            shutil.rmtree(scratch)

    @contextlib.contextmanager
    def empty(self) -> Iterator[Path]:
        """A directory for a new store."""
        root = self.directory / "new"
        root.mkdir()
        try:
            yield root
        finally:
            shutil.rmtree(root)

    def stored(self, peer: Peer) -> Path:
        """A registry's store with all images in it, filled by itself at the first call."""
        if peer.name not in self._stored:
            root = self.directory / f"store-{peer.name}"
            shutil.rmtree(root, ignore_errors=True)  # of an attempt that failed
            root.mkdir()
            if peer.keeps != "nothing":
                with self.serve(peer, root) as server:
                    authorization = self.login(server, peer)
                    blobs = [*self.data.large, *self.data.layers, self.data.small]
                    self.push(server, authorization, "push-put", blobs, 1)
                    self.put_images(server, authorization)
                os.sync()
            self._stored[peer.name] = root
        return self._stored[peer.name]

    @contextlib.contextmanager
    def serve_stored(self, peer: Peer, *, tls: bool = False) -> Iterator[tuple[Server, str]]:
        """Run a registry on its filled store; with the Authorization to use."""
        with self.serve(peer, self.stored(peer), tls=tls) as server:
            authorization = self.login(server, peer)
            if peer.keeps == "blobs":
                self.put_images(server, authorization)
            yield server, authorization

    def bundle(self) -> Path:
        """The image of six layers as an archive."""
        if self._bundle is None:
            self._bundle = self.directory / "bundle.tar"
            root = self.stored(PEERS["mayfly"])
            image = f"{load.REPOSITORY}:image"
            command = [MAYFLY, "export", image, "--root", str(root), "-o", str(self._bundle)]
            subprocess.run(command, check=True, capture_output=True)
        return self._bundle

    def kept(self, key: object, make: Callable[[], T]) -> T:
        """Something that several rows use, made at the first call."""
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]
        return found

    def login(self, server: Server, peer: Peer) -> str:
        return load.token(server, SCOPES) if peer.authenticates else ""

    def put_images(self, server: Server, authorization: str) -> None:
        load.put_image(server, authorization, "large", self.data.large)
        self.image_digest = load.put_image(server, authorization, "image", self.data.layers)

    def push(
        self, server: Server, authorization: str, kind: str, blobs: list[load.Blob], clients: int
    ) -> Result:
        data = str(self.data.path)
        return load.run(server, kind, authorization, data=data, blobs=blobs, clients=clients)

    def pull(
        self,
        server: Server,
        authorization: str,
        blobs: list[load.Blob],
        *,
        clients: int = 1,
        parallel: int = 1,
        repeat: int = 1,
        first: str = "",
        verify: bool = False,
    ) -> Result:
        return load.run(
            server,
            "pull",
            authorization,
            blobs=blobs,
            clients=clients,
            parallel=parallel,
            repeat=repeat,
            first=first,
            verify=verify,
        )


def sync_tree(root: Path) -> float:
    """Make a directory durable, file by file; the seconds it took."""
    began = time.monotonic()
    for directory, _, names in os.walk(root):
        for path in (directory, *(os.path.join(directory, name) for name in names)):  # noqa: PTH118
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    return time.monotonic() - began


def _certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed ECDSA P-256 certificate of 127.0.0.1, and its key."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key)]
    subprocess.run([*command, "-out", str(certificate)], check=True, capture_output=True)
    key.chmod(0o600)
    return certificate, key


def _users(directory: Path) -> Path:
    auth = directory / "auth"
    auth.mkdir()
    for user in (load.USER, load.LOOKER):
        command = [MAYFLY, "user", "add", user, "--password-stdin", "--auth", str(auth)]
        subprocess.run(command, input=load.PASSWORD.encode(), check=True, capture_output=True)
    (auth / "grants.toml").write_text(_GRANTS)
    (auth / "grants.toml").chmod(0o600)
    return auth
