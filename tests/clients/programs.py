"""Command-line clients and their daemons, run as a user runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.process import Process, find_program, need
from tests.support.programs import versioned

OLD_CLIENTS = {"DOCKER_MIN_API_VERSION": "1.24"}
"""Engines from 29 on refuse clients as old as Debian's, unless their environment says this."""

CRI_PLUGINS = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
]
"""Kubernetes' interface in containerd 1 and 2."""


class Client:
    """A command-line client with a home of its own, so that no user's configuration is read."""

    def __init__(
        self,
        name: str,
        home: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        need(name, directory=directory)
        self.name = name
        self.program = find_program(name, *([directory] if directory else [])) or name
        self.options = options
        self.env = {
            **os.environ,
            "HOME": str(home),
            "DOCKER_CONFIG": str(home / ".docker"),
            "REGISTRY_AUTH_FILE": str(home / "auth.json"),
            **(env or {}),
        }

    def run(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        stdin: Path = Path(os.devnull),
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it and return how it ended, whatever that was."""
        argv = [self.program, *self.options, *map(str, args)]
        with stdin.open("rb") as file:
            return subprocess.run(
                argv, cwd=cwd, env=self.env, timeout=timeout, stdin=file, capture_output=True
            )

    def bytes(self, *args: str | Path, cwd: Path | None = None, timeout: float = 300) -> bytes:
        """Run it, expect success and return its exact standard output."""
        done = self.run(*args, cwd=cwd, timeout=timeout)
        assert done.returncode == 0, (
            f"{self.name} {' '.join(map(str, args))} exited {done.returncode}\n"
            f"{done.stdout.decode(errors='replace')}{done.stderr.decode(errors='replace')}"
        )
        return done.stdout

    def __call__(self, *args: str | Path, cwd: Path | None = None, timeout: float = 300) -> str:
        """Run it, expect success and return its standard output as text."""
        return self.bytes(*args, cwd=cwd, timeout=timeout).decode()

    def fails(self, *args: str | Path, timeout: float = 300) -> str:
        """Run it, expect failure and return what it said."""
        done = self.run(*args, timeout=timeout)
        assert done.returncode != 0, f"{self.name} {args} succeeded: {done.stdout.decode()}"
        return (done.stdout + done.stderr).decode()


def dockerd_options(directory: Path) -> tuple[str, ...]:
    """Options of a Docker daemon that touches no bridge and no firewall, and has its own place."""
    return (
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        f"--data-root={directory}/data",
        f"--exec-root={directory}/exec",
        f"--pidfile={directory}/docker.pid",
        f"--host=unix://{directory}/docker.sock",
    )


class Dockerd(Process):
    """A Docker daemon that touches no bridge and no firewall, with its own containerd.

    Args:
        version: of the engine, as `tests.support.programs` has it; "" is the machine's own.
        containerd: of containerd below it; "" is the machine's own.
        options: of the daemon, besides those for its place.
        etc: a directory that the daemon sees above the machine's /etc; that takes root.
    """

    def __init__(
        self,
        directory: Path,
        home: Path,
        version: str = "",
        containerd: str = "",
        options: Sequence[str] = (),
        etc: Path | None = None,
    ) -> None:
        need("docker", "runc")
        own = [_directory(name, v) for name, v in (("docker", version), ("containerd", containerd))]
        need("dockerd", directory=own[0])
        need("containerd", directory=own[1])
        directory.mkdir()
        socket = f"unix://{directory}/docker.sock"
        super().__init__(
            [
                *([] if etc is None else _with_etc(etc)),
                find_program("dockerd", *filter(None, own)) or "",
                *dockerd_options(directory),
                *options,
            ],
            directory / "output.log",
            env={**with_sbin(*filter(None, own)), **OLD_CLIENTS},
        )
        # The classic builder needs no plugin, which not every docker client brings.
        self.docker = Client("docker", home, "--host", socket, env={"DOCKER_BUILDKIT": "0"})
        wait_for_answer(self, self.docker, "version")


def _with_etc(etc: Path) -> list[str]:
    """The command before a daemon's that gives it another /etc, in a mount namespace of its own."""
    mount = 'mount -t overlay overlay -o "lowerdir=$0:/etc" /etc && exec "$@"'
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", mount, str(etc)]


class Containerd(Process):
    """A containerd without Kubernetes' interface.

    Args:
        version: as `tests.support.programs` has it; "" is the machine's own.
        settings: more of its configuration, TOML tables.
    """

    def __init__(self, directory: Path, home: Path, version: str = "", settings: str = "") -> None:
        own = _directory("containerd", version)
        need("containerd", "ctr", directory=own)
        need("runc")
        directory.mkdir()
        socket = f"{directory}/containerd.sock"
        config = directory / "config.toml"
        config.write_text(
            "version = 2\n"
            f'root = "{directory}/root"\n'
            f'state = "{directory}/state"\n'
            f"disabled_plugins = {json.dumps(CRI_PLUGINS)}\n"
            f'[grpc]\naddress = "{socket}"\n'
            f'[ttrpc]\naddress = "{socket}.ttrpc"\n' + settings
        )
        first = [own] if own else []
        super().__init__(
            [find_program("containerd", *first) or "", "--config", config],
            directory / "output.log",
            env=with_sbin(*first),
        )
        self.ctr = Client("ctr", home, "--address", socket, directory=own)
        wait_for_answer(self, self.ctr, "version")


class Cri(Process):
    """A containerd with Kubernetes' interface, by which crictl pulls as kubelet does.

    Args:
        version: as `tests.support.programs` has it; "" is the machine's own.

    Attributes:
        hosts: the directory of its hosts.toml files.
        ctr: for what is in its store.
    """

    def __init__(self, directory: Path, home: Path, version: str = "") -> None:
        own = _directory("containerd", version)
        need("containerd", "ctr", directory=own)
        need("crictl", "runc")
        self.hosts = directory / "certs.d"
        self.hosts.mkdir(parents=True)
        socket = f"{directory}/containerd.sock"
        config = directory / "config.toml"
        config.write_text(cri_config(directory, socket, self.hosts))
        first = [own] if own else []
        super().__init__(
            [find_program("containerd", *first) or "", "--config", config],
            directory / "output.log",
            env=with_sbin(*first),
        )
        endpoints = [f"--{kind}-endpoint=unix://{socket}" for kind in ("runtime", "image")]
        self.crictl = Client("crictl", home, *endpoints, "--timeout=150s")
        self.ctr = Client("ctr", home, "--address", socket, "--namespace", "k8s.io", directory=own)
        wait_for_answer(self, self.crictl, "images")

    def trust(self, host: str) -> None:
        """Have it speak to a registry without TLS."""
        directory = self.hosts / host
        directory.mkdir(exist_ok=True)
        capabilities = 'capabilities = ["pull", "resolve"]'
        (directory / "hosts.toml").write_text(
            f'server = "http://{host}"\n[host."http://{host}"]\n{capabilities}\n'
        )


def push_by_skopeo(skopeo: Client, layout: Path, name: str, reference: str) -> None:
    """Push an image or index of an OCI layout as it is.

    Without ``--preserve-digests`` skopeo may put another compression of a layer in the layer's
    place, which its cache, one for the machine, knows of a registry at this port.
    """
    options = ("--all", "--preserve-digests", "--dest-tls-verify=false")
    skopeo("copy", *options, f"oci:{layout}:{name}", f"docker://{reference}")


def cri_config(directory: Path, socket: str, hosts: Path) -> str:
    """The configuration of a containerd with Kubernetes' interface and directories of its own.

    Args:
        hosts: as the daemon sees it, the directory of its hosts.toml files.
    """
    return (
        "version = 2\n"
        f'root = "{directory}/root"\n'
        f'state = "{directory}/state"\n'
        f'[grpc]\naddress = "{socket}"\n'
        f'[ttrpc]\naddress = "{socket}.ttrpc"\n'
        '[plugins."io.containerd.grpc.v1.cri"]\n'
        "  disable_apparmor = true\n"
        '[plugins."io.containerd.grpc.v1.cri".registry]\n'
        f'  config_path = "{hosts}"\n'
        '[plugins."io.containerd.internal.v1.opt"]\n'
        f'path = "{directory}/opt"\n'
    )


class Distribution(Process):
    """The CNCF distribution registry (registry:2) on a directory."""

    def __init__(self, root: Path, directory: Path) -> None:
        super().__init__(
            _distribution("serve", root, directory),
            directory / "output.log",
            env=_distribution_environment(),
        )
        try:
            self.host = self.wait_for(self._listening)
        except BaseException:
            self.kill()
            raise

    def _listening(self) -> str | None:
        found = re.search(r"listening on (127\.0\.0\.1:\d+)", self.output())
        return found[1] if found else None

    def __exit__(self, *_exc: object) -> None:
        self.stop()


def collect_garbage(root: Path, directory: Path) -> str:
    """Run distribution's garbage collector on a directory; what it says."""
    argv = _distribution("garbage-collect", root, directory)
    done = subprocess.run(
        argv,
        env=_distribution_environment(),
        timeout=120,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def _distribution(command: str, root: Path, directory: Path) -> list[str]:
    """A command on a directory to serve, with a configuration written for it."""
    need("docker-registry")
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "config.yml"
    config.write_text(
        "version: 0.1\n"
        "log: {level: info}\n"
        "storage:\n"
        f"  filesystem: {{rootdirectory: {root}}}\n"
        "  delete: {enabled: true}\n"
        "http: {addr: '127.0.0.1:0', secret: not-a-secret}\n"
    )
    return [find_program("docker-registry") or "", command, str(config)]


def _distribution_environment() -> dict[str, str]:
    # It takes every REGISTRY_ variable for one of its own, podman's REGISTRY_AUTH_FILE too.
    return {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}


def with_sbin(*first: Path) -> dict[str, str]:
    """The environment with the directories where daemons look for their helpers."""
    own = map(str, first)
    path = os.pathsep.join([*own, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return {**os.environ, "PATH": path}


def _directory(name: str, version: str) -> Path | None:
    return versioned(name, version) if version else None


def wait_for_answer(daemon: Process, client: Client, *args: str) -> None:
    """Wait until a daemon answers its client; end it when it does not."""
    try:
        daemon.wait_for(lambda: client.run(*args, timeout=30).returncode == 0)
    except BaseException:
        daemon.kill()
        raise
