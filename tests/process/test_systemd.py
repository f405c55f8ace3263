"""Sockets in, notifications out, and a listening socket that loses no connection."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mayfly.registry.http import listeners as module
from mayfly.registry.http.listeners import Listeners
from mayfly.registry.process.systemd import Notifier, take_sockets
from mayfly.registry.settings.errors import ConfigError
from tests.support.beside import run_what_is_ready
from tests.support.fakes import FakeClock
from tests.support.process import PATIENCE

_TAKE = """
import os
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.process.systemd import take_sockets
try:
    for taken in take_sockets(os.environ):
        with taken.socket:
            port = taken.socket.getsockname()[1]
            print(taken.name, port, os.get_inheritable(taken.socket.fileno()))
except ConfigError as error:
    print(error)
print([name for name in os.environ if name.startswith("LISTEN_")])
"""
TAKE = [sys.executable, "-c", _TAKE]


def take(*sockets: socket.socket, names: str = "", pid: str = "$$") -> list[str]:
    """Run a process with sockets passed as systemd does, from descriptor 3 on."""
    # Far from 3, so that moving one does not close another.
    high = [fcntl.fcntl(s.fileno(), fcntl.F_DUPFD, 20) for s in sockets]
    moves = " ".join(f"{3 + i}<&{descriptor}" for i, descriptor in enumerate(high))
    try:
        done = subprocess.run(
            ["bash", "-c", f'exec {moves}; LISTEN_PID={pid} exec "$@"', "sh", *TAKE],
            env=os.environ | {"LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names},
            pass_fds=high,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        for descriptor in high:
            os.close(descriptor)
    return done.stdout.splitlines()


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_take_sockets() -> None:
    """They are taken in order with their names, closed on exec, and the variables are gone."""
    with listening() as one, listening() as other:
        ports = [s.getsockname()[1] for s in (one, other)]
        assert take(one, other, names="http:admin") == [
            f"http {ports[0]} False",
            f"admin {ports[1]} False",
            "[]",
        ]


def test_take_sockets_of_another_process() -> None:
    """Sockets meant for another process are not touched."""
    with listening() as one:
        assert take(one, pid="1") == ["[]"]


def test_take_what_does_not_listen() -> None:
    """An accepted connection (Accept=yes) is refused, with the unit's remedy."""
    with listening() as one, socket.create_connection(one.getsockname()) as connected:
        assert "Accept=no" in take(connected)[0]


def test_take_nothing() -> None:
    """Without systemd there is nothing to take."""
    assert take_sockets({}) == []
    with pytest.raises(ConfigError, match="LISTEN_FDS"):
        take_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"})


@pytest.mark.parametrize("abstract", [False, True])
async def test_notifications(tmp_path: Path, abstract: bool) -> None:
    """The manager receives ready, status and stopping, at a path or an abstract name."""
    address = f"@mayfly-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "4000000"}
        notifier = Notifier.take(environment)
        assert environment == {}
        notifier.ready("serving")
        assert manager.recv(500) == b"READY=1\nSTATUS=serving"
        notifier.status("3 of 5 nodes")
        assert manager.recv(500) == b"STATUS=3 of 5 nodes"
        notifier.stopping("draining", 90)
        assert manager.recv(500) == b"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=90000000"
        clock = FakeClock()
        watching = asyncio.create_task(notifier.watch(clock))
        await clock.tick(7)
        assert [manager.recv(500) for _ in range(4)] == [b"WATCHDOG=1"] * 4
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(500)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "x"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
async def test_no_manager(environment: dict[str, str]) -> None:
    """Without a manager, or with a broken one, nothing happens, and no watchdog runs."""
    notifier = Notifier.take(environment)
    notifier.ready("serving")
    await notifier.watch(FakeClock())


async def test_pause_loses_no_connection() -> None:
    """Clients that connect during a pause are accepted after it; earlier ones are expected."""
    served: list[bytes] = []

    async def serve(connection: socket.socket) -> None:
        with connection:
            served.append(await asyncio.get_running_loop().sock_recv(connection, 10))

    with socket.create_server(("127.0.0.1", 0)) as bound:
        listeners = Listeners([bound], serve)
        assert not listeners.expect_request()
        listeners.resume()
        with socket.create_connection(bound.getsockname()) as client:
            client.sendall(b"first")
            await run_what_is_ready()
            assert served == [b"first"]
            assert listeners.expect_request()
        listeners.pause()
        with socket.create_connection(bound.getsockname()) as client:
            client.sendall(b"second")
            await run_what_is_ready()
            assert served == [b"first"]
            listeners.resume()
            await run_what_is_ready()
            assert served == [b"first", b"second"]
        await listeners.close()
        await listeners.close()


async def test_out_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """When accept fails for lack of descriptors, clients wait and are served later."""
    monkeypatch.setattr(module, "_RECOVERY_SECONDS", 0.01)
    accepted = asyncio.Event()

    async def serve(connection: socket.socket) -> None:
        connection.close()
        accepted.set()

    class Exhausted:
        """A listening socket whose first accept fails."""

        def __init__(self, real: socket.socket) -> None:
            self._real = real
            self._failed = False

        def accept(self) -> object:
            if not self._failed:
                self._failed = True
                raise OSError(24, "Too many open files")
            return self._real.accept()

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

    with socket.create_server(("127.0.0.1", 0)) as bound:
        exhausted: socket.socket = Exhausted(bound)  # type: ignore[assignment]
        listeners = Listeners([exhausted], serve)
        listeners.resume()
        with socket.create_connection(bound.getsockname()):
            await asyncio.wait_for(accepted.wait(), PATIENCE)
        await listeners.close()
