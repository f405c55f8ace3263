"""Client of the control socket of a running server; blocking, for the command line."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from mayfly.registry.control.socket import Message, short_path
from mayfly.registry.durations import exact
from mayfly.registry.errors import LifetimeError, NotRunning
from mayfly.registry.exit_codes import Exit
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.state.directory import CONTROL_SOCKET, LOCK, READY, read_small

_ANSWER_SECONDS = 10.0
_POLL_SECONDS = 0.05
_MAX_ANSWER = 256 * 1024 * 1024
"""Bytes; the status of 500 nodes with 1,000 images each takes some 100 MiB."""


class TimedOut(LifetimeError):
    """The answer did not come within the timeout."""

    def __init__(self, seconds: float, what: str) -> None:
        super().__init__(f"timed out after {exact(seconds)}: {what}", Exit.INCOMPLETE)


class ServerGone(NotRunning):
    """The server ended before it answered."""

    def __init__(self) -> None:
        super().__init__("the server ended before it answered")


def ask(
    directory: Path, command: str, *, timeout: float | None = _ANSWER_SECONDS, **details: object
) -> Message:
    """Send one request to the server of a state directory and return its answer.

    Args:
        directory: the state directory.
        command: see `socket`.
        timeout: seconds to wait for the answer; None for no limit.
        details: further fields of the request.

    Raises:
        NotRunning: no server runs there.
        ConfigError: the server belongs to another user, or its socket was removed.
        TimedOut: the answer did not come in time.
        ServerGone: the server ended first.
        LifetimeError: the server refuses the request.
    """
    with contextlib.closing(connect(directory)) as connection:
        connection.settimeout(timeout)
        try:
            request = json.dumps({"command": command, **details}).encode() + b"\n"
            # A server that refuses the connection may have answered and closed it already.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(request)
            line = connection.makefile("rb").readline(_MAX_ANSWER)
        except TimeoutError:
            raise TimedOut(timeout or 0.0, f"no answer to {command}") from None
        except OSError:
            raise ServerGone from None
    if not line.endswith(b"\n"):
        raise ServerGone
    try:
        answer: Message = json.loads(line)
        if not answer.pop("ok"):
            raise LifetimeError(answer["error"], Exit.USAGE)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"the server of the state directory {directory} is no Mayfly") from None
    return answer


def wait_for_server(directory: Path, timeout: float | None) -> None:
    """Wait until a server answers in a state directory, which need not exist yet.

    Raises:
        TimedOut: no server answers in time.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        with contextlib.suppress(NotRunning):
            connect(directory).close()
            return
        if end is not None and time.monotonic() >= end:
            raise TimedOut(timeout or 0.0, f"no Mayfly runs with the state directory {directory}")
        # The directory may come and go, so there is nothing to watch.
        time.sleep(_POLL_SECONDS)


def connect(directory: Path) -> socket.socket:
    """Connect to the server of a state directory.

    Raises:
        NotRunning: no server runs there.
        ConfigError: the server belongs to another user, or its socket was removed.
    """
    try:
        return _connected(directory)
    except OSError as error:
        if not (directory / CONTROL_SOCKET).is_symlink():
            raise _connection_error(directory, error) from None
    # A server that starts may have made its socket since.
    try:
        return _connected(directory)
    except OSError as error:
        raise _connection_error(directory, error) from None


def _connected(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(directory) as path:
            connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _connection_error(directory: Path, error: OSError) -> Exception:
    if isinstance(error, PermissionError):
        return ConfigError(
            f"the Mayfly with the state directory {directory} belongs to another user "
            f"(you are uid {os.geteuid()}); run this as that user"
        )
    holder = _holder(directory)
    if holder is not None and not (directory / CONTROL_SOCKET).is_symlink():
        return NotRunning(
            f"the Mayfly with the state directory {directory} (pid {holder}) is still starting"
        )
    if holder is not None:
        return ConfigError(
            f"the Mayfly with the state directory {directory} (pid {holder}) cannot be asked, "
            f"since its control socket was removed; end it with: kill {holder}"
        )
    if (directory / READY).exists():
        # An orderly end removes it.
        return NotRunning(
            f"no Mayfly runs with the state directory {directory}; the last one was killed or "
            "crashed: start it again with the same options, and it continues its run"
        )
    return NotRunning(
        f"no Mayfly runs with the state directory {directory}; start one, or name its --state-dir"
    )


def _holder(directory: Path) -> int | None:
    """Return the process that holds the state directory's lock; None if the kernel hides it.

    The lock is looked for among the open files of the process: trying the lock itself could keep a
    server from starting at that moment.
    """
    try:
        lock = (directory / LOCK).stat()
        holder = int(read_small(directory / LOCK))
        files = os.scandir(f"/proc/{holder}/fd")
    except (OSError, ValueError):
        return None
    with files:
        for file in files:
            with contextlib.suppress(OSError):
                if os.path.samestat(file.stat(), lock):
                    return holder
    return None
