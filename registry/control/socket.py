"""The control socket: how other processes of the same user ask a running server.

A stream socket, mode 0600: who may open it may stop the server. The state directory lies on a disk
and survives reboots, so the socket lies in the user's runtime directory, by a name of its own for
each state directory, and the state directory has a link to it. Whoever knows the state directory
follows that link, whatever their own runtime directory is. Where no runtime directory can be used,
the socket lies in the state directory itself.

One JSON object a line goes in, one comes back:

    {"command": "status"}                        {"ok": true, "state": "serving", …}
    {"command": "stop"}                          {"ok": true, "exit_code": 0, …} once it has drained
    {"command": "wait", "for": "ready"|"covered"}  {"ok": true} once it is
    anything else                                {"ok": false, "error": "…"}

A connection that ends without an answer means that the server ended first. One that asks nothing
for a while is closed, and there is a bound on how many are open: each takes a descriptor of those
that nodes pull by.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import select
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mayfly.registry.state.directory import CONTROL_SOCKET

MAX_LINE = 64 * 1024
"""Bytes of a request, at most."""

MAX_CLIENTS = 100
"""Connections at a time; the next ones are refused."""

_LAST_ANSWERS_SECONDS = 1.0

_IDLE_SECONDS = 30.0
"""Before a request, and for an answer to be taken."""

_LOOK_SECONDS = 1.0
"""Between two looks whether a client that waits for an answer is still there."""

Message = dict[str, Any]
Command = Callable[[Message], Awaitable[Message]]
"""Answers one request; raises ValueError for one it cannot read."""


class ControlServer:
    """Answers on the control socket of a state directory that this process holds.

    Args:
        directory: the state directory; a stale socket in it was removed (`state.StateDir.claim`).
        commands: by name.
        runtime: directory for the socket, made if need be; None for the state directory.
    """

    def __init__(
        self, directory: Path, commands: Mapping[str, Command], runtime: Path | None = None
    ) -> None:
        self._directory = directory
        self._runtime = runtime
        self._socket = directory / CONTROL_SOCKET
        self._commands = commands
        self._open = contextlib.ExitStack()
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Answer from now on.

        Raises:
            OSError: the socket cannot be made.
        """
        self._server = await asyncio.start_unix_server(
            self._on_client, sock=self._bind(), limit=MAX_LINE
        )

    async def close(self) -> None:
        """End, once the answers that are due have gone out."""
        if self._server is None:
            return
        self._server.close()
        for path in (self._directory / CONTROL_SOCKET, self._socket):
            with contextlib.suppress(OSError):
                path.unlink()
        if self._answering:
            await asyncio.wait(self._answering, timeout=_LAST_ANSWERS_SECONDS)
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._server = None
        self._open.close()

    def _bind(self) -> socket.socket:
        if self._runtime is not None:
            with contextlib.suppress(OSError):
                return self._bind_in(self._runtime)
        return self._bind_at(self._directory, CONTROL_SOCKET)

    def _bind_in(self, runtime: Path) -> socket.socket:
        """A socket in the runtime directory, and the link to it."""
        runtime.mkdir(mode=0o700, exist_ok=True)
        found = runtime.stat()
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise PermissionError(errno.EPERM, "others may write there", str(runtime))
        self._socket = runtime / socket_name(self._directory)
        # Left by a server that was killed: the state directory is ours, so this name is, too.
        self._socket.unlink(missing_ok=True)
        made = self._bind_at(runtime, self._socket.name)
        try:
            (self._directory / CONTROL_SOCKET).symlink_to(self._socket)
        except BaseException:
            made.close()
            self._socket.unlink()
            raise
        return made

    def _bind_at(self, directory: Path, name: str) -> socket.socket:
        # The name it is bound by must lead to it for as long as the event loop knows it.
        return _bind(self._open.enter_context(short_path(directory, name)))

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= MAX_CLIENTS:
            refusal = {"ok": False, "error": f"{MAX_CLIENTS} others are connected: try again"}
            writer.write(json.dumps(refusal).encode() + b"\n")
            writer.close()
            return
        self._clients.add(task)
        try:
            while line := await asyncio.wait_for(reader.readline(), _IDLE_SECONDS):
                self._answering.add(task)
                answer = await self._answer_while_there(line, writer)
                writer.write(json.dumps(answer).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), _IDLE_SECONDS)
                self._answering.discard(task)
        except (OSError, ValueError, asyncio.CancelledError):
            pass  # gone, silent, or a line without end, or we are closing
        finally:
            self._answering.discard(task)
            self._clients.discard(task)
            writer.close()

    async def _answer_while_there(self, line: bytes, writer: asyncio.StreamWriter) -> Message:
        """Answer a request, which may take hours, unless the client goes away meanwhile.

        Raises:
            ConnectionError: it is gone.
        """
        answer = asyncio.create_task(self._answer(line))
        try:
            while not (await asyncio.wait({answer}, timeout=_LOOK_SECONDS))[0]:
                if _is_gone(writer):
                    raise ConnectionResetError
            return answer.result()
        finally:
            answer.cancel()

    async def _answer(self, line: bytes) -> Message:
        try:
            request = json.loads(line)
            name = request["command"]
            command = self._commands[name]
        except (ValueError, TypeError, KeyError, RecursionError):
            known = ", ".join(self._commands)
            return {"ok": False, "error": f"not a request; the commands are {known}"}
        try:
            return {"ok": True, **await command(request)}
        except ValueError as error:
            return {"ok": False, "error": str(error)}


def runtime_directory(environment: Mapping[str, str]) -> Path:
    """Where sockets lie: ``$XDG_RUNTIME_DIR/mayfly``, or ``/run/mayfly`` without."""
    given = environment.get("XDG_RUNTIME_DIR", "")
    return Path(given if given.startswith("/") else "/run") / "mayfly"


def socket_name(state_dir: Path) -> str:
    """The name of a state directory's socket in the runtime directory, unlike any other's."""
    return hashlib.sha256(os.fsencode(os.path.realpath(state_dir))).hexdigest()[:16] + ".sock"


def _bind(path: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Before it has a name, so that it never is open to others, whatever the umask.
        os.fchmod(listening.fileno(), 0o600)
        listening.bind(path)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _is_gone(writer: asyncio.StreamWriter) -> bool:
    """Whether a client has closed its end, and not only ended its requests (poll(2), POLLHUP)."""
    looking = select.poll()
    looking.register(writer.get_extra_info("socket").fileno(), 0)
    return bool(looking.poll(0))


@contextlib.contextmanager
def short_path(directory: Path, name: str = CONTROL_SOCKET) -> Iterator[str]:
    """A socket's path, by a name that fits into 108 bytes whatever the directory's.

    Raises:
        OSError: there is no such directory.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)
