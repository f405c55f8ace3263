"""Proofs without authentication, and the one-time URL of a script on a connection that ends."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from pathlib import Path

import pytest

from mayfly.registry.state.scripts import SCRIPTS, Scripts
from mayfly.storage.directory.store import DistributionStore
from tests.support.on_socket import serving
from tests.support.process import until
from tests.support.pushing import refused
from tests.support.registry import Client, open_to_everyone
from tests.support.wire import TIMEOUT, Wire, message

SCRIPT = b"#" * 300_000
"""More than the client of a test takes unread, and less than the server's kernel takes."""


async def test_without_authentication_nobody_speaks_for_a_node(client: Client) -> None:
    """Not 401: there is nothing to log in with."""
    for method, word in (("GET", "nonce"), ("POST", "proof")):
        answer = await client.request(method, f"/mayfly/v1/nodes/worker-1/{word}")
        await refused(answer, 403, "DENIED")


class SlowScripts(Scripts):
    """Scripts whose claim waits in its thread until a test lets it continue."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self.claiming, self.go_on = threading.Event(), threading.Event()

    def claim(self, token: str) -> bytes | None:
        claimed = super().claim(token)
        self.claiming.set()
        assert self.go_on.wait(TIMEOUT)
        return claimed


def request_of(token: str) -> bytes:
    """The request for a script."""
    return message("GET", f"/mayfly/v1/scripts/{token}", close=False)


async def reader_of_little(port: int, token: str) -> socket.socket:
    """A client whose host takes little of the script that it asked for: it reads the head only."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await loop.sock_connect(client, ("127.0.0.1", port))
    await loop.sock_sendall(client, request_of(token))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await loop.sock_recv(client, 1)
    assert head.startswith(b"HTTP/1.1 200")
    return client


def names(state_dir: Path) -> list[str]:
    """The kinds of files that the scripts in a state directory have."""
    return sorted(path.suffix for path in (state_dir / SCRIPTS).iterdir())


async def test_script_is_spent_once_it_is_received(
    store: DistributionStore, tmp_path: Path
) -> None:
    """Not when the kernel has taken it: until a late client has read it, nobody else gets it."""
    scripts = Scripts(tmp_path)
    token = scripts.add(SCRIPT)
    async with serving(open_to_everyone(store, scripts=scripts)) as port:
        loop = asyncio.get_running_loop()
        with await reader_of_little(port, token) as client:
            wire = Wire(port)
            assert (await wire.send(request_of(token))).status == 404
            await asyncio.sleep(0.2)
            assert names(tmp_path) == [".sending"]
            found = b""
            async with asyncio.timeout(TIMEOUT):
                while len(found) < len(SCRIPT):
                    found += await loop.sock_recv(client, 65536)
            assert names(tmp_path) == []
            assert (await wire.send(request_of(token))).status == 404


@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_script_that_was_not_received_is_not_spent(
    store: DistributionStore, tmp_path: Path, how: str
) -> None:
    """The server has given all of it to the kernel when the client leaves without reading it."""
    scripts = Scripts(tmp_path)
    token = scripts.add(SCRIPT)
    async with serving(open_to_everyone(store, scripts=scripts)) as port:
        with await reader_of_little(port, token) as client:
            await asyncio.sleep(0.2)
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until(lambda: names(tmp_path) == [""])
        wire = Wire(port)
        answer = await wire.send(request_of(token))
        assert (answer.status, answer.body) == (200, SCRIPT)
        assert names(tmp_path) == []
        assert (await wire.send(request_of(token))).status == 404


async def test_client_that_leaves_while_its_script_is_claimed(
    store: DistributionStore, tmp_path: Path
) -> None:
    """The claim continues in its thread, and is given back."""
    scripts = SlowScripts(tmp_path)
    token = scripts.add(SCRIPT)
    async with serving(open_to_everyone(store, scripts=scripts)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_of(token))
        await until(scripts.claiming.is_set)
        writer.transport.abort()
        await asyncio.sleep(0.1)
        assert names(tmp_path) == [".sending"]
        scripts.go_on.set()
        await until(lambda: names(tmp_path) == [""])
        assert (await Wire(port).send(request_of(token))).body == SCRIPT


async def test_claim_that_fails_gives_nothing_back(
    store: DistributionStore, tmp_path: Path
) -> None:
    """One that is cancelled and got nothing leaves the download that is under way alone."""
    scripts = SlowScripts(tmp_path)
    token = scripts.add(SCRIPT)
    assert Scripts(tmp_path).claim(token) == SCRIPT
    async with serving(open_to_everyone(store, scripts=scripts)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_of(token))
        await until(scripts.claiming.is_set)
        writer.transport.abort()
        await asyncio.sleep(0.1)
        scripts.go_on.set()
        assert (await Wire(port).send(request_of(token))).status == 404
        assert names(tmp_path) == [".sending"]
