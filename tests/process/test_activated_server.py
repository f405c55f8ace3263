"""The real server behind a socket that outlives it, as systemd holds one."""

from __future__ import annotations

import fcntl
import http.client
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from mayfly.storage.directory.store import DistributionStore
from tests.support.images import put_image
from tests.support.process import PATIENCE, REPO

ROUNDS = 20
IDLE_SECONDS = 1
_SCRIPT = 'exec 3<&{0} {0}<&-; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'


def _start(held: socket.socket, directory: Path) -> subprocess.Popen[bytes]:
    """The server with the socket as descriptor 3, as systemd starts it."""
    descriptor = fcntl.fcntl(held.fileno(), fcntl.F_DUPFD, 20)
    serve = [sys.executable, "-m", "mayfly", "serve", "--idle-timeout", f"{IDLE_SECONDS}s"]
    where = ["--root", str(directory / "root"), "--state-dir", str(directory / "state")]
    try:
        return subprocess.Popen(
            ["bash", "-c", _SCRIPT.format(descriptor), "sh", *serve, *where],
            pass_fds=[descriptor],
            stderr=subprocess.DEVNULL,
            cwd=REPO,
        )
    finally:
        os.close(descriptor)


def _supervise(held: socket.socket, directory: Path, over: threading.Event) -> list[int]:
    """Start the server whenever a client waits at the socket; return the exit codes."""
    codes: list[int] = []
    while not over.is_set():
        if select.select([held], [], [], 0.05)[0]:
            codes.append(_start(held, directory).wait(PATIENCE))
    return codes


def test_no_request_is_refused(tmp_path: Path) -> None:
    """Twenty times a request wakes the server or meets it as it leaves: each one is answered.

    Requests come at random moments around the end of the idle time, the likeliest to go wrong.
    """
    store = DistributionStore(tmp_path / "root")
    put_image(store, "team/app", "1")
    store.close()
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    over = threading.Event()
    codes: list[int] = []
    with socket.create_server(("127.0.0.1", 0), backlog=16) as held:
        port = held.getsockname()[1]
        supervisor = threading.Thread(target=lambda: codes.extend(_supervise(held, tmp_path, over)))
        supervisor.start()
        try:
            for number in range(ROUNDS):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("GET", "/v2/team/app/manifests/1")
                status = connection.getresponse().status
                connection.close()
                assert status == 200, f"round {number}, seed {seed}"
                time.sleep(IDLE_SECONDS * chance.uniform(0.9, 1.2))
        finally:
            over.set()
            supervisor.join(90)
    assert len(codes) > 1, "it never left, so nothing was shown"
    assert set(codes) == {0}, f"seed {seed}"
