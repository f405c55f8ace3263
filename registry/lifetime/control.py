"""The control socket: how other processes of the same user ask a running server.

A stream socket in the state directory, mode 0600: who may open it may stop the server. One JSON
object a line goes in, one comes back:

    {"command": "status"}                        {"ok": true, "state": "serving", …}
    {"command": "stop"}                          {"ok": true, "exit_code": 0, …} once it has drained
    {"command": "wait", "for": "ready"|"covered"}  {"ok": true} once it is
    anything else                                {"ok": false, "error": "…"}

A connection that ends without an answer means that the server ended first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from registry.lifetime.state import CONTROL_SOCKET

MAX_LINE = 64 * 1024
"""Bytes of a request, at most."""

_LAST_ANSWERS_SECONDS = 1.0

Message = dict[str, Any]
Command = Callable[[Message], Awaitable[Message]]
"""Answers one request; raises ValueError for one it cannot read."""


class ControlServer:
    """Answers on the control socket of a state directory that this process holds.

    Args:
        directory: the state directory; a stale socket in it was removed (`state.StateDir.claim`).
        commands: by name.
    """

    def __init__(self, directory: Path, commands: Mapping[str, Command]) -> None:
        self._directory = directory
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
        # The name it is bound by must lead to it for as long as the event loop knows it.
        path = self._open.enter_context(short_path(self._directory))
        self._server = await asyncio.start_unix_server(
            self._on_client, sock=_bind(path), limit=MAX_LINE
        )

    async def close(self) -> None:
        """End, once the answers that are due have gone out."""
        if self._server is None:
            return
        self._server.close()
        with contextlib.suppress(OSError):
            (self._directory / CONTROL_SOCKET).unlink()
        if self._answering:
            await asyncio.wait(self._answering, timeout=_LAST_ANSWERS_SECONDS)
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._server = None
        self._open.close()

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            while line := await reader.readline():
                self._answering.add(task)
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
                self._answering.discard(task)
        except (OSError, ValueError, asyncio.CancelledError):
            pass  # gone, or a line without end, or we are closing
        finally:
            self._answering.discard(task)
            self._clients.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> Message:
        try:
            request = json.loads(line)
            name = request["command"]
            command = self._commands[name]
        except (ValueError, TypeError, KeyError):
            known = ", ".join(self._commands)
            return {"ok": False, "error": f"not a request; the commands are {known}"}
        try:
            return {"ok": True, **await command(request)}
        except ValueError as error:
            return {"ok": False, "error": str(error)}


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


@contextlib.contextmanager
def short_path(directory: Path) -> Iterator[str]:
    """The control socket's path, by a name that fits into 108 bytes whatever the directory's.

    Raises:
        OSError: there is no such directory.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{CONTROL_SOCKET}"
    finally:
        os.close(descriptor)
