"""Asking a running server over its control socket; blocking, for the command line."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from mayfly.registry.control.socket import Message, short_path
from mayfly.registry.durations import exact
from mayfly.registry.exit_codes import Exit
from mayfly.registry.lifecycle.errors import LifetimeError, NotRunning
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.state.directory import CONTROL_SOCKET, LOCK, READY, read_small

_ANSWER_SECONDS = 10.0
_LOOK_EVERY = 0.05
_MAX_ANSWER = 256 * 1024 * 1024
"""Bytes: of 500 nodes with 1,000 images each some 100 MiB."""


class TimedOut(LifetimeError):
    """The answer did not come in time."""

    def __init__(self, seconds: float, what: str) -> None:
        super().__init__(f"timed out after {exact(seconds)}: {what}", Exit.INCOMPLETE)


class ServerGone(NotRunning):
    """The server ended without an answer."""

    def __init__(self) -> None:
        super().__init__("the server ended before it answered")


def ask(
    directory: Path, command: str, *, timeout: float | None = _ANSWER_SECONDS, **details: object
) -> Message:
    """Send one request to the server of a state directory, and give back its answer.

    Args:
        directory: the state directory.
        command: see `control`.
        timeout: seconds to wait for the answer, None for as long as it takes.
        details: of the request.

    Raises:
        NotRunning: no server runs there.
        ConfigError: it may not be asked.
        TimedOut: the answer did not come in time.
        ServerGone: the server ended first.
        LifetimeError: the server refuses the request.
    """
    with contextlib.closing(connect(directory)) as connection:
        connection.settimeout(timeout)
        try:
            connection.sendall(json.dumps({"command": command, **details}).encode() + b"\n")
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
        raise ConfigError(f"what answers in the state directory {directory} is no Mayfly") from None
    return answer


def wait_for_server(directory: Path, timeout: float | None) -> None:
    """Come back when a server answers in a state directory, which may not even exist yet.

    Raises:
        TimedOut: none does in time.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        with contextlib.suppress(NotRunning):
            connect(directory).close()
            return
        if end is not None and time.monotonic() >= end:
            raise TimedOut(timeout or 0.0, f"no Mayfly runs with the state directory {directory}")
        # The directory may come and go, so there is nothing to be told by.
        time.sleep(_LOOK_EVERY)


def connect(directory: Path) -> socket.socket:
    """A connection to the server of a state directory.

    Raises:
        NotRunning: no server runs there.
        ConfigError: it may not be asked, or its socket was removed.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(directory) as path:
            connection.connect(path)
    except OSError as error:
        connection.close()
        raise _unanswered(directory, error) from None
    return connection


def _unanswered(directory: Path, error: OSError) -> Exception:
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
        # A server removes it when it ends.
        return NotRunning(
            f"no Mayfly runs with the state directory {directory}; the last one was killed or "
            "crashed: start it again with the same options, and it goes on with its run"
        )
    return NotRunning(
        f"no Mayfly runs with the state directory {directory}; start one, or name its --state-dir"
    )


def _holder(directory: Path) -> int | None:
    """The process that holds the state directory's lock, where the kernel lets us see it.

    Its lock is looked for among its open files; trying the lock itself could keep a server from
    starting at that moment.
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
