"""A server with nothing but a lifetime: two images in memory, served by a few lines of HTTP.

Run as ``python -m tests.support.stub OPTIONS [COMMAND...]``, OPTIONS a JSON object: ``state_dir``,
the fields of `RunPlan`, and ``rate`` in blob bytes a second. A node says its name in ``X-Node``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mayfly.registry.api.parse import parse
from mayfly.registry.clock import SystemClock
from mayfly.registry.coverage.manifest_graph import ManifestRefs
from mayfly.registry.coverage.upgrade_lists import read_nodes
from mayfly.registry.errors import Draining, LifetimeError
from mayfly.registry.http.listeners import Listeners
from mayfly.registry.lifecycle.plan import RunPlan
from mayfly.registry.process.child import exit_like
from mayfly.registry.process.systemd import Notifier, take_sockets
from mayfly.registry.serving import Lifecycle, RunningServer
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.state.directory import StateDir
from mayfly.registry.state.private import Login
from tests.support.fakes import FakeStore, digest

REPOSITORIES = ("team/app", "team/web")
MANIFEST, BLOB = digest("manifest"), digest("blob")
BLOB_SIZE = 100_000
CHUNK = 10_000


def content() -> FakeStore:
    """Each repository holds one image of one blob, tagged 1."""
    made = FakeStore()
    for repository in REPOSITORIES:
        made.tags[repository, "1"] = MANIFEST
        made.manifests[repository, MANIFEST] = ManifestRefs(blobs=(BLOB,))
    return made


class Stub:
    """The HTTP side."""

    def __init__(self, lifecycle: Lifecycle, bound: list[socket.socket], rate: float) -> None:
        self._lifecycle = lifecycle
        self._rate = rate
        self._held: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        serve = partial(loop.connect_accepted_socket, self._protocol)
        self.listeners = Listeners(bound, serve)

    async def close(self, seconds: float) -> None:
        for task in self._held:
            task.cancel()
        await asyncio.gather(*self._held, return_exceptions=True)

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._connected)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._held.append(asyncio.ensure_future(self._converse(reader, writer)))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head.decode(), writer)

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> None:
        method, path, _ = head.partition("\r\n")[0].split(" ")
        headers = dict(line.split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
        lifecycle = self._lifecycle
        agent = headers.get("User-Agent", "containerd/1.6")
        caller = lifecycle.observer.peer("", headers.get("X-Node"), "127.0.0.1", agent)
        request = parse(method, path, "")
        step, digest = request.route.step, request.digest
        try:
            lifecycle.drain.admit(caller.node, step, request.repository, digest)
        except Draining:
            writer.write(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n")
            return
        lifecycle.activity.begin()
        try:
            if request.route.endpoint == "manifest":
                lifecycle.observer.manifest_served(
                    caller,
                    request.repository,
                    MANIFEST,
                    lifecycle.observer.graph.of(request.repository, MANIFEST),
                    head=method == "HEAD",
                    tag=request.tag,
                )
                writer.write(b"HTTP/1.1 200 x\r\nContent-Length: 0\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 x\r\nContent-Length: %d\r\n\r\n" % BLOB_SIZE)
                with lifecycle.observer.sending(caller, request.repository, BLOB) as sending:
                    await self._send(writer, sending)
            await writer.drain()
        finally:
            lifecycle.activity.end()

    async def _send(self, writer: asyncio.StreamWriter, sending: Any) -> None:
        with sending.part(0, BLOB_SIZE, BLOB_SIZE):
            for _ in range(BLOB_SIZE // CHUNK):
                writer.write(b"x" * CHUNK)
                await writer.drain()
                sending.count(CHUNK)
                if self._rate:
                    await asyncio.sleep(CHUNK / self._rate)


@contextlib.contextmanager
def announced(state_dir: Path, url: str) -> Iterator[None]:
    """As the server's, in short."""
    ready = state_dir / "ready.json"
    draft = state_dir / ".ready.json"
    draft.write_text(json.dumps({"url": url, "pid": os.getpid()}))
    draft.rename(ready)
    yield
    ready.unlink()


async def serve(plan: RunPlan, state: StateDir, rate: float) -> int:
    """The composition that `serving.Lifecycle` expects of a server."""
    notifier = Notifier.take(os.environ)
    bound = [taken.socket for taken in take_sockets(os.environ)]
    bound = bound or [socket.create_server(("127.0.0.1", 0))]
    host = f"127.0.0.1:{bound[0].getsockname()[1]}"
    lifecycle = Lifecycle(
        plan, state, content(), SystemClock(), own_hosts=(host,), notifier=notifier
    )
    login = Login(f"http://{host}", host, "user", "secret")
    running = RunningServer(
        Stub(lifecycle, bound, rate),
        login,
        announced(state.path, login.url),
        measure_storage=lambda: 12345,
    )
    return await lifecycle.run(running)


def main(arguments: list[str]) -> int:
    options = json.loads(arguments[0])
    state_dir = Path(options.pop("state_dir"))
    rate = options.pop("rate", 0.0)
    for name in ("until_pulled", "stop_file", "report"):
        if name in options:
            options[name] = Path(options[name])
    try:
        if "nodes" in options:
            options["nodes"] = read_nodes(options["nodes"])
        plan = RunPlan(**options, command=tuple(arguments[1:]))
        with StateDir.claim(state_dir) as state:
            code = asyncio.run(serve(plan, state, rate))
        return exit_like(code)
    except ConfigError as error:
        print(f"stub: {error}", file=sys.stderr)
        return 2
    except LifetimeError as error:
        print(f"stub: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
