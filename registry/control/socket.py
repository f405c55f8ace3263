"""The control socket, by which other processes of the same user query and stop a running server.

A stream socket, mode 0600: opening it is enough to stop the server. The state directory lies on a
disk and survives reboots, so the socket lies in the user's runtime directory, under a name of its
own for each state directory, and the state directory has a link to it. Clients follow that link,
whatever their own runtime directory is. If no runtime directory can be used, the socket lies in the
state directory itself.

One JSON object a line goes in, one comes back:

    {"command": "status"}                        {"ok": true, "state": "serving", …}
    {"command": "stop"}                          {"ok": true, "exit_code": 0, …} once it has drained
    {"command": "wait", "for": "ready"|"covered"}  {"ok": true} once that is so
    {"command": "serves", "images": […]}         {"ok": true, "images": […]}: those that it serves
    {"command": "judged", "safe": …}             {"ok": true}; the report will have the judgement
    anything else                                {"ok": false, "error": "…"}

A connection that closes without an answer means that the server ended first: a command that fails
is answered, and so is a request that is too long. Silent connections are closed after a while, and
their number is bounded: each takes one of the descriptors that nodes need for pulls.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import logging
import os
import select
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mayfly.registry.state.directory import CONTROL_SOCKET
from mayfly.registry.threads import in_thread
from mayfly.storage.files import WRITABLE_BY_OTHERS, exposed_mode

logger = logging.getLogger("mayfly")

MAX_LINE = 64 * 1024
"""Largest request in bytes."""

MAX_CLIENTS = 100
"""Connections at a time; further ones are refused."""

_LAST_ANSWERS_SECONDS = 1.0
"""For answers that are due when the server closes."""

_IDLE_SECONDS = 30.0
"""Time for a client to send a request, and to take an answer."""

_LOOK_SECONDS = 1.0
"""Between two checks whether a client that waits for an answer is still connected."""

_DEPTH = 3
"""Levels of an answer that are taken apart: as far as the rows of coverage's matrix."""

_PIECE = 1000
"""Entries of a list that are encoded at once."""

Message = dict[str, Any]
Command = Callable[[Message], Awaitable[Message]]
"""Answers one request. Raises ValueError for an invalid one."""


class ControlServer:
    """Serves the control socket of a state directory that this process has locked.

    Args:
        directory: the state directory; a stale socket in it was removed (`state.StateDir.claim`).
        commands: by name.
        runtime: directory for the socket, made if it is missing; None for the state directory.
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
        """Start to answer.

        Raises:
            OSError: the socket cannot be made.
        """
        self._server = await asyncio.start_unix_server(
            self._on_client, sock=self._bind(), limit=MAX_LINE
        )

    async def close(self) -> None:
        """Send the answers that are due, then close all connections and remove the socket."""
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
        """Bind a socket in the runtime directory, and make the link to it."""
        runtime.mkdir(mode=0o700, exist_ok=True)
        status = runtime.stat()
        if status.st_uid != os.geteuid() or exposed_mode(status, WRITABLE_BY_OTHERS):
            raise PermissionError(errno.EPERM, "others may write there", str(runtime))
        self._socket = runtime / socket_name(self._directory)
        # Left by a server that was killed; only the holder of the state directory uses this name.
        self._socket.unlink(missing_ok=True)
        bound = self._bind_at(runtime, self._socket.name)
        try:
            (self._directory / CONTROL_SOCKET).symlink_to(self._socket)
        except BaseException:
            bound.close()
            self._socket.unlink()
            raise
        return bound

    def _bind_at(self, directory: Path, name: str) -> socket.socket:
        # The event loop may look this path up until it closes the socket.
        return _bind(self._open.enter_context(short_path(directory, name)))

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= MAX_CLIENTS:
            writer.write(encode(_error(f"{MAX_CLIENTS} others are connected: try again")))
            writer.close()
            return
        self._clients.add(task)
        try:
            while line := await asyncio.wait_for(reader.readline(), _IDLE_SECONDS):
                self._answering.add(task)
                answer = await self._answer_while_connected(line, writer)
                writer.write(await in_thread(encode, answer))
                await asyncio.wait_for(writer.drain(), _IDLE_SECONDS)
                self._answering.discard(task)
        except ValueError:  # of readline
            writer.write(encode(_error(f"a request is a line of at most {MAX_LINE} bytes")))
        except (OSError, asyncio.CancelledError):
            pass  # the client left or is silent, or the server closes
        finally:
            self._answering.discard(task)
            self._clients.discard(task)
            writer.close()

    async def _answer_while_connected(self, line: bytes, writer: asyncio.StreamWriter) -> Message:
        """Answer a request, which may take hours, unless the client leaves meanwhile.

        Raises:
            ConnectionError: the client has left.
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
            return _error(f"not a request; the commands are {known}")
        try:
            return {"ok": True, **await command(request)}
        except ValueError as error:
            return _error(str(error))
        except Exception:
            logger.exception("%s of the control socket failed", name)
            return _error(f"the server failed to answer {name}; its log has the details")


def _error(message: str) -> Message:
    return {"ok": False, "error": message}


def encode(answer: Message) -> bytes:
    """Slow where an answer is large: a line of JSON.

    Made of pieces, since the C encoder keeps the interpreter to itself until it is done.
    """
    return "".join([*_pieces(answer, _DEPTH), "\n"]).encode()


def _pieces(document: Any, depth: int) -> Iterator[str]:
    if depth and isinstance(document, dict):
        yield "{"
        for number, (key, value) in enumerate(document.items()):
            yield f"{', ' if number else ''}{json.dumps(key)}: "
            yield from _pieces(value, depth - 1)
        yield "}"
    elif isinstance(document, list) and len(document) > _PIECE:
        yield "["
        for start in range(0, len(document), _PIECE):
            yield (", " if start else "") + json.dumps(document[start : start + _PIECE])[1:-1]
        yield "]"
    else:
        yield json.dumps(document)


def runtime_directory(environment: Mapping[str, str]) -> Path:
    """Return the directory of sockets: ``$XDG_RUNTIME_DIR/mayfly``, otherwise ``/run/mayfly``."""
    given = environment.get("XDG_RUNTIME_DIR", "")
    return Path(given if given.startswith("/") else "/run") / "mayfly"


def socket_name(state_dir: Path) -> str:
    """Return the name, unique to a state directory, of its socket in the runtime directory."""
    return hashlib.sha256(os.fsencode(os.path.realpath(state_dir))).hexdigest()[:16] + ".sock"


def _bind(path: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Set before it has a name, so that it is never open to others, whatever the umask.
        os.fchmod(listening.fileno(), 0o600)
        listening.bind(path)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _is_gone(writer: asyncio.StreamWriter) -> bool:
    """Whether a client has closed its socket, not only its sending half (poll(2), POLLHUP)."""
    descriptor = writer.get_extra_info("socket").fileno()
    if descriptor < 0:  # asyncio has closed ours
        return True
    poller = select.poll()
    poller.register(descriptor, 0)
    return bool(poller.poll(0))


@contextlib.contextmanager
def short_path(directory: Path, name: str = CONTROL_SOCKET) -> Iterator[str]:
    """Yield a path to a socket that fits into 108 bytes, however long the directory's path is.

    Raises:
        OSError: the directory does not exist.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)
