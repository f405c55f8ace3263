"""The registries that are measured: how each is started on an empty directory, and what it used.

A peer that is not installed is left out and named. Each runs with its defaults, but for the
address, the directory and, where it logs every request, a quiet log.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

START_DEADLINE = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """A running registry.

    Attributes:
        name: of the peer.
        port: on 127.0.0.1.
        ready_seconds: from exec to the first 200 of ``/v2/``.
    """

    name: str
    port: int
    process: subprocess.Popen[bytes]
    ready_seconds: float = 0.0
    _pids: list[int] = field(default_factory=list)

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def peak_mib(self) -> float:
        """Largest resident memory so far, in MiB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no VmHWM: the server has ended")


def _mayfly(port: int, directory: Path) -> list[str]:
    mayfly = Path(sys.executable).with_name("mayfly")
    where = ["--root", str(directory / "root"), "--state-dir", str(directory / "state")]
    return [str(mayfly), "serve", "--listen", f"127.0.0.1:{port}", *where]


def _docker_registry(port: int, directory: Path) -> list[str]:
    config = directory / "config.yml"
    config.write_text(
        "version: 0.1\n"
        "log: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'root'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    return ["docker-registry", "serve", str(config)]


PEERS: dict[str, tuple[str, Callable[[int, Path], list[str]]]] = {
    "mayfly": (sys.executable, _mayfly),
    "docker-registry": ("docker-registry", _docker_registry),
}
"""Name → the program it needs, and its command line for a port and a directory."""


def installed() -> list[str]:
    """The peers that can run here; the others are named on standard error."""
    found = [name for name, (program, _) in PEERS.items() if shutil.which(program)]
    for name in PEERS.keys() - set(found):
        print(f"not installed, left out: {name}", file=sys.stderr)
    return found


@contextlib.contextmanager
def serve(name: str, directory: Path) -> Iterator[Server]:
    """Run a peer on ``directory`` until the block ends."""
    port = _free_port()
    command = PEERS[name][1](port, directory)
    began = time.monotonic()
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        server = Server(name, port, process)
        _wait(server, began)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server, began: float) -> None:
    while time.monotonic() - began < START_DEADLINE:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/v2/", timeout=5):
                server.ready_seconds = time.monotonic() - began
            return
        if server.process.poll() is not None:
            break
        time.sleep(0.002)
    raise RuntimeError(f"{server.name} did not come up; its log is beside its root")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
