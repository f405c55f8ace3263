"""Asking a running server over its control socket; blocking, for the command line."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from registry.config import ConfigError
from registry.lifetime.control import Message, short_path
from registry.lifetime.errors import LifetimeError

_ANSWER_SECONDS = 10.0
_LOOK_EVERY = 0.05


class TimedOut(LifetimeError):
    """What was waited for did not come in time."""

    def __init__(self) -> None:
        super().__init__("it did not happen in time", 3)


class ServerGone(LifetimeError):
    """The server ended without an answer."""

    def __init__(self) -> None:
        super().__init__("the server ended before it answered", 1)


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
        ConfigError: no server runs there, or it may not be asked.
        TimedOut: the answer did not come in time.
        ServerGone: the server ended first.
        LifetimeError: the server refuses the request.
    """
    with contextlib.closing(_connect(directory)) as connection:
        connection.settimeout(timeout)
        try:
            connection.sendall(json.dumps({"command": command, **details}).encode() + b"\n")
            line = connection.makefile("rb").readline()
        except TimeoutError:
            raise TimedOut from None
        except OSError:
            raise ServerGone from None
    if not line.endswith(b"\n"):
        raise ServerGone
    answer: Message = json.loads(line)
    if not answer.pop("ok"):
        raise LifetimeError(f"the server refuses: {answer['error']}")
    return answer


def wait_for_server(directory: Path, timeout: float | None) -> None:
    """Come back when a server answers in a state directory, which may not even exist yet.

    Raises:
        TimedOut: none does in time.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        with contextlib.suppress(ConfigError):
            _connect(directory).close()
            return
        if end is not None and time.monotonic() >= end:
            raise TimedOut
        # The directory may come and go, so there is nothing to be told by.
        time.sleep(_LOOK_EVERY)


def _connect(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(directory) as path:
            connection.connect(path)
    except OSError as error:
        connection.close()
        if isinstance(error, PermissionError):
            why = f"its control socket is not yours (you are uid {os.geteuid()}); ask as its user"
        else:
            why = "none answers; start one, or name its --state-dir"
        raise ConfigError(f"no Mayfly with the state directory {directory}: {why}") from None
    return connection
