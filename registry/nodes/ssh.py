"""Run a script on a node over the system's OpenSSH, with the operator's configuration and agent.

The script goes by standard input: arguments are seen by all users of both machines. Nothing is
asked on the terminal, no agent and no port is forwarded to the node, and host keys are checked as
the operator's configuration says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mayfly.registry.process.child import launch_words
from mayfly.registry.settings.errors import ConfigError

_DESTINATION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
"""Names and addresses. Nothing that ssh, its configuration's tokens or a shell read as more."""

_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "20",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    # A master that stayed in the background would hold our pipes open.
    "ControlMaster": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}
"""They win over the operator's configuration, which has all the rest."""

_READ = 64 * 1024
_END_SECONDS = 5.0
"""For ssh to end after SIGTERM, and for the last of its output after it ended."""

TIMED_OUT = -1
"""In place of an exit code: the node took longer than it may."""


class SSH(NamedTuple):
    """How nodes are reached.

    Attributes:
        config: ssh's configuration file; None for the operator's own.
        user: to log in as; None for the one of the configuration.
        sudo: whether that user becomes root by sudo, without a password.
    """

    config: Path | None = None
    user: str | None = None
    sudo: bool = False

    def words(self, node: str, *arguments: str) -> list[str]:
        """Return the command that has a node read a script; its words.

        Raises:
            ConfigError: the node's name cannot be given to ssh.
        """
        check_destination(node)
        words = ["ssh", "-T"]
        if self.config is not None:
            words += ["-F", str(self.config)]
        if self.user is not None:
            words += ["-l", self.user]
        for name, value in _OPTIONS.items():
            words += ["-o", f"{name}={value}"]
        shell = "sudo -n sh" if self.sudo else "sh"
        return [*words, "--", node, " ".join([shell, "-s", "--", *arguments])]


def check_destination(node: str) -> None:
    """See that a node can be given to ssh by its name.

    Raises:
        ConfigError: it cannot.
    """
    if not _DESTINATION.fullmatch(node):
        raise ConfigError(
            f"--nodes: {node[:100]!r} is not a host name or address for ssh; give a plain name, "
            "and the user and port in ssh's configuration"
        )


def find_ssh() -> str:
    """Return the path of the ssh program.

    Raises:
        ConfigError: there is none.
    """
    found = shutil.which("ssh")
    if found is None:
        raise ConfigError("ssh: command not found; install OpenSSH's client")
    return found


async def run_script(
    words: Sequence[str],
    script: bytes,
    *,
    on_stdout: Callable[[bytes], None],
    on_stderr: Callable[[bytes], None],
    most: int,
    seconds: float,
) -> int:
    """Run a command of `SSH.words` to its end; if this is cancelled, ssh is ended.

    Args:
        words: the command.
        script: for its standard input.
        on_stdout, on_stderr: called with each line, without its end.
        most: bytes of a line; the rest of a longer one is discarded.
        seconds: it may take.

    Returns:
        ssh's exit code, which is the script's, or 255 for an error of ssh or a script that a signal
        killed; `TIMED_OUT` if it took too long.

    Raises:
        ConfigError: there is no ssh.
        Exception: of `on_stdout` or `on_stderr`; ssh is ended.
    """
    process = await asyncio.create_subprocess_exec(
        *launch_words(find_ssh(), words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(os.environ) | {"LC_ALL": "C"},  # messages are read by `causes`
        # A group of its own, to which a ProxyCommand belongs too. Ctrl-C reaches it through us.
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    tasks = [
        asyncio.create_task(_send(process.stdin, script)),
        asyncio.create_task(_receive(process.stdout, on_stdout, most)),
        asyncio.create_task(_receive(process.stderr, on_stderr, most)),
    ]
    try:
        return await _ended(process, tasks, seconds)
    finally:
        for task in tasks:
            task.cancel()
        await _end(process)
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ended(
    process: asyncio.subprocess.Process, tasks: Sequence[asyncio.Task[None]], seconds: float
) -> int:
    """Return ssh's exit code, or `TIMED_OUT`.

    Raises:
        Exception: of a task; without it ssh would wait for someone to read.
    """
    ending = asyncio.create_task(process.wait())
    waiting: set[asyncio.Task[Any]] = {ending, *tasks}
    end = time.monotonic() + seconds
    try:
        while ending in waiting:
            left = max(end - time.monotonic(), 0)
            done, waiting = await asyncio.wait(
                waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            if not done:
                return TIMED_OUT
        if waiting:
            # Programs that ssh started may hold the pipes open.
            done, _ = await asyncio.wait(waiting, timeout=_END_SECONDS)
            for task in done:
                task.result()
        return ending.result()
    finally:
        ending.cancel()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End ssh and what it started, if it still runs."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await process.wait()


async def _send(stream: asyncio.StreamWriter, content: bytes) -> None:
    # A node that is not reached, or a shell that has ended, reads no more.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.write(content)
        await stream.drain()
        stream.close()
        await stream.wait_closed()


async def _receive(stream: asyncio.StreamReader, take: Callable[[bytes], None], most: int) -> None:
    async for line in _lines(stream, most):
        take(line)


async def _lines(stream: asyncio.StreamReader, most: int) -> AsyncIterator[bytes]:
    """Yield each line, cut to so many bytes: what a node sends is never in memory as a whole."""
    line = bytearray()
    while chunk := await stream.read(_READ):
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield bytes(line + piece[: most - len(line)])
            line.clear()
        line += rest[: most - len(line)]
    if line:
        yield bytes(line)
