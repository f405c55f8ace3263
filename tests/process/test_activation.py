"""Socket activation: the first request starts the server, and no exit ever refuses one.

systemd itself is not needed: like it, these tests hold the listening socket, check whether a client
waits in its queue, and pass it to a new process.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.registry.clock import SystemClock
from mayfly.registry.http.listeners import Listeners
from mayfly.registry.lifecycle.plan import RunPlan
from mayfly.registry.serving import Lifecycle, RunningServer
from mayfly.registry.state.directory import StateDir
from mayfly.registry.state.private import Login
from tests.support import stub
from tests.support.process import PATIENCE, need, poll
from tests.support.stub import content
from tests.support.stubs import status_of

ROUNDS = 20
IDLE = 0.02
PATH = "/v2/team/app/manifests/1"


@pytest.fixture
def held() -> Iterator[socket.socket]:
    """The listening socket, as systemd holds it."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as made:
        yield made


async def serve_once(held: socket.socket, state_dir: Path, clock: SystemClock) -> str:
    """Run a server in this process on a copy of the socket; return why it ended."""
    with StateDir.claim(state_dir) as state:
        plan = RunPlan(idle_timeout=IDLE, unused_timeout=PATIENCE)
        lifecycle = Lifecycle(plan, state, content(), clock)
        server = stub.Stub(lifecycle, [held.dup()], 0.0)
        login = Login("http://h:1", "h:1")
        await lifecycle.run(RunningServer(server, login, contextlib.nullcontext()))
    return (state_dir / "report.json").read_text()


async def test_no_request_is_refused(held: socket.socket, tmp_path: Path) -> None:
    """Over many rounds, requests that come at every moment around the exit are all answered."""
    loop = asyncio.get_running_loop()
    port = held.getsockname()[1]
    rounds = 0
    asking = True
    answers: list[int] = []

    async def clients() -> None:
        nonlocal asking
        gap = 0.0
        while rounds < ROUNDS:
            answers.append(await asyncio.to_thread(status_of, port, "a", "GET", PATH))
            # From well before the idle timeout to well after it, in steps of a hundredth.
            gap = (gap + 0.01) % 2
            await asyncio.sleep(IDLE * gap)
        asking = False

    task = asyncio.create_task(clients())
    while asking:
        queued = asyncio.Event()
        loop.add_reader(held.fileno(), queued.set)
        waiting = asyncio.create_task(queued.wait())
        await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
        loop.remove_reader(held.fileno())
        waiting.cancel()
        if queued.is_set():
            assert '"idle"' in await serve_once(held, tmp_path / "state", SystemClock())
            rounds += 1
    await task
    assert rounds >= ROUNDS
    assert set(answers) == {200}


async def test_client_in_the_last_moment(
    held: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that connects between the idle condition and the end revokes it."""
    port = held.getsockname()[1]
    late: list[asyncio.Task[int]] = []
    pauses: list[bool] = []
    pause = Listeners.pause

    def come_late(listeners: Listeners) -> None:
        pauses.append(True)
        if len(pauses) == 1:
            # In the queue of a socket that still accepts: one turn earlier than the pause.
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(f"GET {PATH} HTTP/1.1\r\n\r\n".encode())
            listeners._accept(listeners.sockets[0])

            async def answer() -> int:
                with client:
                    return int((await asyncio.to_thread(client.recv, 100)).split()[1])

            late.append(asyncio.ensure_future(answer()))
        pause(listeners)

    monkeypatch.setattr(Listeners, "pause", come_late)
    first = asyncio.create_task(asyncio.to_thread(status_of, port, "a", "GET", PATH))
    await serve_once(held, tmp_path / "state", SystemClock())
    assert await first == 200
    assert await late[0] == 200
    assert len(pauses) >= 2


def activate(held: socket.socket, state_dir: Path) -> subprocess.Popen[bytes]:
    """Start the stub with the socket as descriptor 3."""
    descriptor = fcntl.fcntl(held.fileno(), fcntl.F_DUPFD, 20)
    options = f'{{"state_dir": "{state_dir}", "idle_timeout": 0.05}}'
    script = f'exec 3<&{descriptor} {descriptor}<&-; LISTEN_PID=$$ exec "$@"'
    try:
        return subprocess.Popen(
            ["bash", "-c", script, "sh", sys.executable, "-m", "tests.support.stub", options],
            env=os.environ | {"LISTEN_FDS": "1"},
            pass_fds=[descriptor],
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.close(descriptor)


async def test_real_processes(held: socket.socket, tmp_path: Path) -> None:
    """With real processes: asleep, started by a request, idle, and started by the next."""
    port = held.getsockname()[1]
    for _ in range(3):
        answer = asyncio.create_task(asyncio.to_thread(status_of, port, "a", "GET", PATH))
        await asyncio.to_thread(select.select, [held], [], [], 10)
        process = activate(held, tmp_path / "state")
        assert await answer == 200
        assert await asyncio.to_thread(process.wait, 10) == 0


def test_systemd_socket_activate(tmp_path: Path) -> None:
    """With systemd-socket-activate, the request that started the server is answered."""
    need("systemd-socket-activate")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = f'{{"state_dir": "{tmp_path / "state"}", "idle_timeout": 0.05}}'
    tool = ["systemd-socket-activate", "--listen", f"127.0.0.1:{port}", "--fdname=http"]
    process = subprocess.Popen(
        [*tool, sys.executable, "-m", "tests.support.stub", options], stderr=subprocess.PIPE
    )

    def answers() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            return status_of(port, "a", "GET", PATH) == 200
        return False

    try:
        poll(answers)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert b"ended because no request came for" in errors
    finally:
        process.kill()
        process.wait()
