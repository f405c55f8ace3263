"""A machine of its own for a test: network, mounts and ``/etc`` are not the host's.

Network and mount namespaces are held by one process, and end with it. The network has loopback and
`ADDRESS` on it: to docker an address like any other, where 127/8 would need no TLS. ``/etc`` is a
directory of the test's, so that ``mayfly node-config --root-dir`` and the daemons see the same
files, and the host's are not touched.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from tests.clients.programs import OLD_CLIENTS, Client, cri_config, dockerd_options, with_sbin
from tests.support.commands import run_mayfly
from tests.support.process import REPO, Mayfly, Process, find_program, need, need_root
from tests.support.programs import versioned, versions

ADDRESS = "198.51.100.7"
"""From a block for documentation (RFC 5737): no other host's."""

NEWEST_CONTAINERD = versioned("containerd", versions("containerd")[-1])
"""Which Docker's newer engines keep their images in."""

_KEPT = ("passwd", "group", "hosts", "nsswitch.conf", "ssl", "ld.so.cache", "containers")
_BOUNDED = "1800"  # seconds until a node ends by itself, should nobody end it
_SCRIPT = """
set -e
ip link set lo up
ip address add "$1"/32 dev lo
mount --bind "$2"/etc /etc
: > "$2"/made
exec sleep "$3"
"""


class Node(Process):
    """The namespaces, and the node's own part of the file system at ``root``."""

    def __init__(self, directory: Path) -> None:
        need_root()
        need("unshare", "nsenter", "ip")
        self.directory = directory
        self.root = directory / "root"
        for name in ("etc", "var/lib"):
            (self.root / name).mkdir(parents=True)
        for name in _KEPT:
            source = Path("/etc") / name
            if source.is_dir():
                shutil.copytree(source, self.root / "etc" / name, symlinks=True)
            elif source.exists():
                shutil.copy2(source, self.root / "etc" / name)
        namespaces = ("--net", "--mount", "--propagation", "private")
        script = ("sh", "-c", _SCRIPT, "sh", ADDRESS, self.root, _BOUNDED)
        super().__init__(
            ["unshare", *namespaces, *script], directory / "output.log", env=with_sbin()
        )
        try:
            self.wait_for(lambda: (self.root / "made").exists())
        except BaseException:
            self.kill()
            raise

    def inside(self, program: str, *args: str | Path) -> list[str | Path]:
        """The arguments that run a program on the node; its pid is the one that is started."""
        found = find_program(program)
        assert found is not None, program
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", f"--wd={REPO}", "--"]
        return [*enter, found, *args]

    def client(self, program: str, home: Path, *options: str) -> Client:
        """A command-line client that runs on the node."""
        need(program)
        first, *rest = map(str, self.inside(program, *options))
        return Client(first, home, *rest)

    def configure(self, verb: str, runtime: str, *options: str | Path) -> str:
        """Run ``mayfly node-config`` for this node."""
        return run_mayfly(
            "node-config", verb, "--runtime", runtime, "--root-dir", self.root, *options
        )

    def files(self) -> dict[str, tuple[int, int, int, str]]:
        """Everything the node has: path → mode, uid, gid and content."""
        return {
            str(path.relative_to(self.root)): _described(path)
            for path in sorted(self.root.rglob("*"))
        }


def _described(path: Path) -> tuple[int, int, int, str]:
    found = path.lstat()
    if path.is_symlink():
        content = f"link to {os.readlink(path)}"  # noqa: PTH115 - exactly as written
    elif path.is_file():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        content = ""
    return found.st_mode, found.st_uid, found.st_gid, content


class NodeMayfly(Mayfly):
    """``mayfly serve`` on a node's own address: nothing has to be said for it to be secure.

    With a port of its own it can be started again where it was.
    """

    def __init__(self, node: Node, directory: Path, *options: str, port: int = 0) -> None:
        self.root = directory / "root"
        self.state_dir = directory / "state"
        for made in (self.root, self.state_dir):
            made.mkdir(parents=True, exist_ok=True)
        serve = ("-m", "mayfly", "serve", "--root", self.root, "--state-dir", self.state_dir)
        argv = node.inside(sys.executable, *serve, "--listen", f"{ADDRESS}:{port}", *options)
        Process.__init__(self, argv, self.state_dir / "output.log")
        try:
            ready = self.wait_for(self._read_ready)
        except BaseException:
            self.kill()
            raise
        self.url = ready["url"].rstrip("/")
        self.host = self.url.partition("://")[2]


class NodeDockerd(Process):
    """A Docker daemon on a node; its client runs anywhere, by the socket.

    Args:
        version: of the engine, as `tests.support.programs` has it; "" is the machine's own.
    """

    def __init__(self, node: Node, home: Path, version: str = "") -> None:
        need("docker", "runc")
        own = [versioned("docker", version), NEWEST_CONTAINERD] if version else []
        for program, where in zip(("dockerd", "containerd"), own or (None, None), strict=True):
            need(program, directory=where)
        directory = node.directory / f"dockerd-{version}".rstrip("-")
        directory.mkdir()
        program = str(own[0] / "dockerd") if own else "dockerd"
        super().__init__(
            node.inside(program, *dockerd_options(directory)),
            directory / "output.log",
            env={**with_sbin(*own), **OLD_CLIENTS},
        )
        self.docker = Client("docker", home, f"--host=unix://{directory}/docker.sock")


class NodeContainerd(Process):
    """A containerd with Kubernetes' interface, as a node's kubelet uses it."""

    def __init__(self, node: Node) -> None:
        need("containerd", "runc")
        directory = node.directory / "containerd"
        directory.mkdir()
        self.socket = f"{directory}/containerd.sock"
        etc = node.root / "etc/containerd"
        etc.mkdir(exist_ok=True)
        hosts = Path("/etc/containerd/certs.d")
        (etc / "config.toml").write_text(cri_config(directory, self.socket, hosts))
        config = "/etc/containerd/config.toml"
        super().__init__(
            node.inside("containerd", "--config", config),
            directory / "output.log",
            env=with_sbin(),
        )
