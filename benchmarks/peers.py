"""The registries and tools that are measured: where their program is, and how each is started.

Each runs with its defaults but for the address, the directory, TLS, and a log of every request
where it writes one. Mayfly alone runs with users and access checks; that favours its peers.
"""

from __future__ import annotations

import compileall
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mayfly.registry.version import VERSION

TOP = Path(__file__).parent.parent
BIN = TOP / ".cache" / "bin"
MAYFLY = str(Path(sys.executable).with_name("mayfly"))
ONE_FILE = str(TOP / "dist" / f"mayfly-{VERSION}-linux-{platform.machine()}")


@dataclass(frozen=True)
class Launch:
    """The arguments of one start.

    Attributes:
        root: the directory of the store.
        scratch: for configuration and state, empty at each start.
        tls: certificate and key, None for plain HTTP.
        auth: Mayfly's directory of users and grants, None for no users.
        data, blobs: of the bare server: the content that it sends.
        bundle: Mayfly serves it in place.
    """

    port: int
    root: Path
    scratch: Path
    tls: tuple[Path, Path] | None
    auth: Path | None
    data: Path
    blobs: Path
    bundle: Path | None = None


@dataclass(frozen=True)
class Order:
    """A bundle to make: these images, from one registry, as one OCI layout in a tar.

    Attributes:
        host: ``address:port`` of the registry.
        names: the images' repositories; the tag of each is `TAG`.
        together: a repository that has all of the images, for a tool that takes only one.
        tags: of the images in it.
        listed: the images as a list.
        ca: to trust, None for plain HTTP.
        certificates: a directory with nothing but that file, as ``ca.crt``.
        layout: for the layout as a directory, by a tool that makes no tar.
        output: the tar.
    """

    host: str
    names: tuple[str, ...]
    together: str
    tags: tuple[str, ...]
    listed: Path
    ca: Path | None
    certificates: Path
    layout: Path
    output: Path


@dataclass(frozen=True)
class CopyOrder:
    """Images to copy from one registry to another, under the same names; plain HTTP.

    Attributes:
        source, target: ``address:port`` of each registry.
        names: the images' repositories; the tag of each is `TAG`.
        listed: the images as a list.
        synced: the same as a file of ``skopeo sync``.
    """

    source: str
    target: str
    names: tuple[str, ...]
    listed: Path
    synced: Path


@dataclass(frozen=True)
class Peer:
    """One registry or tool.

    Attributes:
        about: a note for the reader of the table.
        command: the registry.
        make: the commands that make a bundle, or the layout in place of it.
        copy: the commands that copy images to another registry.
        version: the command that prints it.
        authenticates: whether it asks for a token.
        keeps: the data that survives its end: ``"all"``, ``"blobs"`` or ``"nothing"``.
        preload: a library that makes fsync free is put there.
    """

    name: str
    about: str
    program: str
    command: Callable[[Launch], list[str]] | None = None
    version: tuple[str, ...] = ()
    tls: bool = True
    authenticates: bool = False
    keeps: str = "all"
    preload: bool = False
    make: Callable[[Order], list[list[str]]] | None = None
    copy: Callable[[CopyOrder], list[list[str]]] | None = None

    @property
    def path(self) -> str | None:
        """The path of its program; None if it is not installed."""
        here = BIN / self.program
        return str(here) if here.is_file() else shutil.which(self.program)

    @property
    def bytes(self) -> int | None:
        """Size of its program; None for a script, whose program is elsewhere."""
        if not self.path:
            return None
        path = Path(self.path)
        with path.open("rb") as file:
            return path.stat().st_size if file.read(4) == b"\x7fELF" else None

    def version_text(self) -> str:
        if not self.path or not self.version:
            return ""
        command = [self.path, *self.version]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        found = re.search(r"v?\d+\.\d+\.\d+\S*", done.stdout + done.stderr)
        return found[0] if found else ""


def _mayfly(program: str, launch: Launch) -> list[str]:
    command = [program, "serve", *([str(launch.bundle)] if launch.bundle else [])]
    command += ["--listen", f"127.0.0.1:{launch.port}", "--root", str(launch.root)]
    command += ["--state-dir", str(launch.scratch / "state")]
    # The end is not measured: no waiting for nodes that might ask for more.
    command += ["--drain-timeout", "0s"]
    if launch.auth:
        command += ["--auth", str(launch.auth)]
    if launch.tls:
        command += ["--tls", ",".join(map(str, launch.tls))]
    return command


def _distribution(program: str) -> Callable[[Launch], list[str]]:
    def command(launch: Launch) -> list[str]:
        config = launch.scratch / "config.yml"
        tls = ""
        if launch.tls:
            tls = f", tls: {{certificate: '{launch.tls[0]}', key: '{launch.tls[1]}'}}"
        config.write_text(
            "version: 0.1\n"
            "log: {level: error, accesslog: {disabled: true}}\n"
            "storage:\n"
            f"  filesystem: {{rootdirectory: '{launch.root}'}}\n"
            "  cache: {blobdescriptor: inmemory}\n"
            f"http: {{addr: '127.0.0.1:{launch.port}'{tls}}}\n"
        )
        return [program, "serve", str(config)]

    return command


def _olareg(launch: Launch) -> list[str]:
    where = ["--addr", "127.0.0.1", "--port", str(launch.port), "--dir", str(launch.root)]
    if launch.tls:
        where += ["--tls-cert", str(launch.tls[0]), "--tls-key", str(launch.tls[1])]
    return [str(BIN / "olareg"), "serve", *where]


def _crane(launch: Launch) -> list[str]:
    address = f"127.0.0.1:{launch.port}"
    disk = ["--disk", str(launch.root)]
    return [str(BIN / "crane"), "registry", "serve", "--address", address, *disk]


def _bare(launch: Launch) -> list[str]:
    command = [str(BIN / "benchmark-load"), "serve", "--address", f"127.0.0.1:{launch.port}"]
    command += ["--data", str(launch.data), "--blobs", str(launch.blobs)]
    if launch.tls:
        command += ["--cert", str(launch.tls[0]), "--key", str(launch.tls[1])]
    return command


def _mayfly_make(order: Order) -> list[list[str]]:
    command = [MAYFLY, "bundle", "create", str(order.listed), "-o", str(order.output)]
    if order.ca:
        command += ["--upstream", f"{order.host}=https://{order.host}", "--ca", str(order.ca)]
    return [command]


def _skopeo_make(order: Order) -> list[list[str]]:
    trust = "--src-tls-verify=false"
    if order.ca:
        trust = f"--src-cert-dir={order.certificates}"
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", trust]
    return [
        [*copy, f"docker://{order.host}/{name}:{TAG}", f"oci:{order.layout}:{name}"]
        for name in order.names
    ]


def _crane_make(order: Order) -> list[list[str]]:
    images = [f"{order.host}/{name}:{TAG}" for name in order.names]
    command = [str(BIN / "crane"), "pull", "--format=oci", "--annotate-ref"]
    return [[*command, *images, str(order.layout)]]


def _oras_make(order: Order) -> list[list[str]]:
    trust = ["--ca-file", str(order.ca)] if order.ca else ["--plain-http"]
    command = [str(BIN / "oras"), "backup", "--no-tty", *trust, "--output", str(order.output)]
    return [[*command, f"{order.host}/{order.together}:{','.join(order.tags)}"]]


def _mayfly_copy(order: CopyOrder) -> list[list[str]]:
    return [[MAYFLY, "copy", str(order.listed), f"http://{order.target}"]]


def _skopeo_sync(order: CopyOrder) -> list[list[str]]:
    # It keeps the last part of a name alone.
    (parent,) = {name.rpartition("/")[0] for name in order.names}
    command = ["skopeo", "--insecure-policy", "sync", "--preserve-digests"]
    command += ["--src", "yaml", "--dest", "docker", "--dest-tls-verify=false"]
    return [[*command, str(order.synced), f"{order.target}/{parent}"]]


def _crane_copy(order: CopyOrder) -> list[list[str]]:
    command = [str(BIN / "crane"), "copy"]
    return [
        [*command, f"{order.source}/{name}:{TAG}", f"{order.target}/{name}:{TAG}"]
        for name in order.names
    ]


_ALL = (
    Peer(
        "mayfly",
        "users and access checks on, durable",
        MAYFLY,
        partial(_mayfly, MAYFLY),
        ("--version",),
        authenticates=True,
        make=_mayfly_make,
        copy=_mayfly_copy,
    ),
    Peer(
        "mayfly-nosync",
        "the same with fsync made free, for the measurement only",
        MAYFLY,
        partial(_mayfly, MAYFLY),
        authenticates=True,
        preload=True,
        make=_mayfly_make,
    ),
    Peer(
        "mayfly-file",
        "the one file of `make dist`: interpreter, libraries and Mayfly",
        ONE_FILE,
        partial(_mayfly, ONE_FILE),
        ("--version",),
        authenticates=True,
    ),
    Peer(
        "docker-registry",
        "CNCF distribution 2.8 of Debian, no users, syncs each blob",
        "docker-registry",
        _distribution("docker-registry"),
        ("--version",),
    ),
    Peer(
        "distribution",
        "CNCF distribution 3, no users, syncs each blob",
        "registry",
        _distribution(str(BIN / "registry")),
        ("--version",),
    ),
    Peer("olareg", "no users, never syncs", "olareg", _olareg, ("version",)),
    Peer(
        "crane",
        "`crane registry serve --disk`, no users, no TLS, manifests in memory, never syncs",
        "crane",
        _crane,
        ("version",),
        tls=False,
        keeps="blobs",
    ),
    Peer(
        "bare",
        "no registry: keeps and checks nothing, the most that this load can carry",
        "benchmark-load",
        _bare,
        keeps="nothing",
    ),
    Peer(
        "skopeo",
        "Debian's, `skopeo copy` once for each image, syncs each blob, then tar",
        "skopeo",
        version=("--version",),
        make=_skopeo_make,
    ),
    Peer(
        "crane-pull",
        "`crane pull --format=oci` of all images, never syncs, then tar",
        "crane",
        version=("version",),
        make=_crane_make,
    ),
    Peer(
        "oras",
        "`oras backup` of one repository that has all images, never syncs",
        "oras",
        version=("version",),
        make=_oras_make,
    ),
    Peer(
        "skopeo-sync",
        "Debian's, `skopeo sync` of all images in one call",
        "skopeo",
        version=("--version",),
        copy=_skopeo_sync,
    ),
    Peer(
        "crane-copy",
        "`crane copy` once for each image",
        "crane",
        version=("version",),
        copy=_crane_copy,
    ),
)

PEERS = {peer.name: peer for peer in _ALL}

REGISTRIES = ("docker-registry", "distribution", "olareg", "crane")
MAKERS = ("skopeo", "crane-pull", "oras")
COPIERS = ("skopeo-sync", "crane-copy")
RIVALS = (*REGISTRIES, *MAKERS, *COPIERS)
"""Peers that Mayfly is compared with."""

TAG = "1"
"""The tag of every image in a bundle that is made."""

_NO_MODULE = "its Go module is not served by the proxy that this was built with"

MISSING_BY_NATURE = {"zot": _NO_MODULE, "hauler": _NO_MODULE}
"""Peers worth measuring that cannot be installed by ``benchmarks/install``, and why."""


def compile_mayfly() -> None:
    """As pip does where it installs: code of a checkout may have no bytecode."""
    top = TOP / "mayfly"
    for directory in (top, *(top / link for link in ("registry", "storage", "auth"))):
        compileall.compile_dir(directory, quiet=1)


def free_fsync(directory: Path) -> Path | None:
    """Build a library to preload that makes fsync free; None without a C compiler."""
    if not shutil.which("cc"):
        return None
    source, library = directory / "nosync.c", directory / "nosync.so"
    source.write_text(
        "int fsync(int fd) { return 0; }\n"
        "int fdatasync(int fd) { return 0; }\n"
        "int syncfs(int fd) { return 0; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def environment(peer: Peer, library: Path | None) -> dict[str, str]:
    found = {"OTEL_TRACES_EXPORTER": "none"}  # distribution 3 looks for a collector otherwise
    if peer.preload:
        found["LD_PRELOAD"] = os.fspath(library or "")
    return found
