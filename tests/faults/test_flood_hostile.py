"""Clients that take a place and give nothing: cut, or kept waiting, and nobody else suffers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.disk_mounts import run
from tests.faults.disk_pushes import Pushes, noise
from tests.faults.flood_load import (
    LONG,
    MIB,
    Costs,
    Line,
    many_files,
    tell,
)
from tests.support.commands import command_line
from tests.support.images import digest_of
from tests.support.process import PATIENCE, REPO, Mayfly, Process, need, need_root

Start = Callable[..., Mayfly]

QUICK = ("--drain-timeout", "1s")
FLOOD = 10_000 if LONG else 300
FILES = 256
"""The limit on open files of the server that is flooded."""


@pytest.fixture
def far_away() -> Iterator[tuple[str, str]]:
    """A network namespace behind a veth pair: the server's address, and the namespace's name."""
    need_root()
    need("ip")
    name = f"mf{os.getpid()}"
    try:
        run("ip", "netns", "add", name)
        run("ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b")
        run("ip", "link", "set", f"{name}b", "netns", name)
        run("ip", "addr", "add", "10.213.7.1/30", "dev", f"{name}a")
        run("ip", "link", "set", f"{name}a", "up")
        run("ip", "-n", name, "addr", "add", "10.213.7.2/30", "dev", f"{name}b")
        run("ip", "-n", name, "link", "set", f"{name}b", "up")
        yield "10.213.7.1", name
    finally:
        subprocess.run(["ip", "link", "del", f"{name}a"], check=False, timeout=30)
        subprocess.run(["ip", "netns", "del", name], check=False, timeout=30)


FAR_CLIENT = """
import socket, sys, time
host, port, requests = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
lines = []
for text in requests:
    line = socket.create_connection((host, port))
    line.sendall(text.encode().decode("unicode_escape").encode())
    lines.append(line)
    if text.startswith("GET"):
        line.recv(1000)
print("under way", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("doing", ["pull", "push"])
def test_half_open(
    start_mayfly: Start, far_away: tuple[str, str], tmp_path: Path, doing: str
) -> None:
    """A client whose host vanished in a transfer does not keep an idle server alive."""
    address, namespace = far_away
    options = [
        *QUICK,
        "--tls",
        "off",
        "--auth",
        "none",
        "--vanished-timeout",
        "3s",
        "--idle-timeout",
        "2s",
    ]
    server = start_mayfly(*options, listen=f"{address}:0")
    client = Pushes(server.host)
    layer = noise(16 * MIB, "layer")
    client.push("app", "1", layer)
    begun = client.ask("POST", "/v2/app/blobs/uploads/")[1]["Location"]
    wanted = {
        "pull": f"GET /v2/app/blobs/{digest_of(layer)} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n",
        "push": f"PATCH {begun} HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 9999\\r\\n\\r\\nhalf",
    }[doing]
    port = server.host.rpartition(":")[2]
    program = ["ip", "netns", "exec", namespace, sys.executable, "-c", FAR_CLIENT, address, port]
    far = Process([*program, wanted], tmp_path / "far.log")
    try:
        far.wait_for(lambda: "under way" in far.output())
        assert client.ask("GET", "/v2/app/manifests/1")[0] == 200  # arms the idle timeout
        control = [sys.executable, "-m", "mayfly", "status", "--json", "--state-dir"]
        control.append(str(server.state_dir))
        found = json.loads(subprocess.run(control, capture_output=True, check=True).stdout)
        tell(f"while it is there: {found.get('requests', found)}")
        run("ip", "link", "set", f"{namespace}a", "down")
        assert server.popen.wait(PATIENCE) == 0
        assert "no request and no transfer for 2s" in server.output()
    finally:
        far.kill()


@pytest.mark.alone
async def test_more_connections_than_files(workspace: Path) -> None:
    """Past the limit on open files clients wait, those served continue, and the server is idle."""
    need("prlimit")
    many_files()
    place = workspace / "flooded"
    limit = ("prlimit", f"--nofile={FILES // 4}:{FILES}")
    options = (*QUICK, "--header-timeout", "1s")
    with Mayfly(place / "root", place / "state", *options, prefix=limit) as server:
        client = Pushes(server.host)
        layer = noise(MIB, "layer")
        client.push("app", "1", layer)
        costs = Costs(server)
        name, _, port = server.host.partition(":")
        flood: list[socket.socket] = []
        async with Line(server.host) as served:
            blob = f"/v2/app/blobs/{digest_of(layer)}"
            assert (await served.ask("GET", blob)).status == 200
            try:
                for _ in range(FLOOD):
                    one = socket.socket()
                    one.setblocking(False)
                    one.connect_ex((name, int(port)))
                    flood.append(one)
                    if len(flood) % 100 == 0:
                        await asyncio.sleep(0)
                begun, used = time.monotonic(), costs.processor
                for _ in range(10):
                    answer = await served.ask("GET", blob)
                    assert (answer.status, digest_of(answer.body)) == (200, digest_of(layer))
                    await asyncio.sleep(0.2)
                share = (costs.processor - used) / (time.monotonic() - begun)
                taken = costs.descriptors
                # Those that ask for nothing make place: somebody new is served beside the flood.
                async with asyncio.timeout(240), Line(server.host) as new:
                    assert (await new.ask("GET", "/v2/")).status == 200
            finally:
                for one in flood:
                    one.close()
            async with Line(server.host) as after:
                assert (await after.ask("GET", blob)).status == 200
        tell(
            f"{FLOOD} connections, {FILES} files: {taken} taken, {share:.0%} of a core, "
            f"growth {costs.growth / MIB:.1f} MiB"
        )
        assert FILES // 4 - 16 < taken < FILES - 32
        assert share < 0.5
        assert costs.growth < 32 * MIB
        assert "Traceback" not in server.output()


def test_limit_on_open_files(tmp_path: Path) -> None:
    """The server raises its limit as far as it may; the command of `mayfly run` keeps its own."""
    need("prlimit")
    argv: list[str | Path] = ["prlimit", "--nofile=300:3000", *command_line("run")]
    argv += ["--root", tmp_path / "root", "--state-dir", tmp_path / "state"]
    argv += ["--listen", "127.0.0.1:0", "--", "sh", "-c"]
    argv += ["ulimit -Sn; ulimit -Hn; grep 'open files' /proc/$PPID/limits"]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    soft, hard, server = done.stdout.splitlines()
    assert (soft, hard) == ("300", "3000")
    assert server.split()[3:5] == ["3000", "3000"]
