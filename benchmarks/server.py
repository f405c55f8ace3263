"""A registry process under test: started, waited for, measured through ``/proc``, ended."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

START_DEADLINE = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """A running registry and its child processes.

    Attributes:
        port: on 127.0.0.1.
        ca: the file to trust, None for plain HTTP.
        ready_seconds: from exec to its first HTTP answer.
        ready_cpu_seconds: CPU time that it had used by then.
    """

    process: subprocess.Popen[bytes]
    port: int
    ca: Path | None
    ready_seconds: float = 0.0
    ready_cpu_seconds: float = 0.0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.ca else 'http'}://{self.address}"

    def trust(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=self.ca) if self.ca else None

    def cpu_seconds(self) -> float:
        """User and system time so far, also of ended children."""
        return sum(_cpu_ticks(pid) for pid in self._pids()) / _TICKS

    def peak_mib(self) -> float:
        """Largest resident memory so far (VmHWM), added up over the processes, in MiB."""
        return sum(_peak_kib(pid) for pid in self._pids()) / 1024

    def _pids(self) -> list[int]:
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (fields := _stat(int(entry.name))):
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
        found = [self.process.pid]
        for pid in found:
            found += parents.get(pid, [])
        return found


@contextlib.contextmanager
def running(
    command: Sequence[str],
    port: int,
    ca: Path | None,
    log: Path,
    environment: Mapping[str, str],
    probe: str = "/v2/",
) -> Iterator[Server]:
    """Run a registry until the block ends.

    Raises:
        RuntimeError: it did not answer in time, or ended early; the message has its log's end.
    """
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **environment}
        )
    server = Server(process, port, ca)
    try:
        _wait(server, began, log, probe)
        yield server
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended while it was measured: {_end_of(log)}")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _wait(server: Server, began: float, log: Path, probe: str) -> None:
    context = server.trust()
    while time.monotonic() - began < START_DEADLINE:
        with contextlib.suppress(ConnectionRefusedError):
            _answer(server.port, context, probe)
            server.ready_seconds = time.monotonic() - began
            server.ready_cpu_seconds = server.cpu_seconds()
            return
        if server.process.poll() is not None:
            break
        time.sleep(0.001)
    raise RuntimeError(f"{server.process.args!r} did not come up: {_end_of(log)}")


def _answer(port: int, context: ssl.SSLContext | None, probe: str) -> None:
    """Make one request; 401 is also an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=START_DEADLINE) as plain:
        sock = context.wrap_socket(plain, server_hostname="127.0.0.1") if context else plain
        with sock:
            head = f"GET {probe} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
            sock.sendall(head.encode())
            answered = sock.recv(4096)
    if not answered.startswith((b"HTTP/1.1 200", b"HTTP/1.1 401")):
        raise RuntimeError(f"{probe} answered {answered[:60]!r}")


def _end_of(log: Path) -> str:
    return log.read_bytes()[-1000:].decode(errors="replace")


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/<pid>/stat`` from the state on (proc(5)); empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_ticks(pid: int) -> int:
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) if fields else 0


def _peak_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0
