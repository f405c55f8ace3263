"""Run a program of the system's, such as ssh or kubectl, and read its output line by line.

Nothing is asked on the terminal. No process stays, however this one ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from mayfly.registry.process.child import launch_words
from mayfly.registry.settings.errors import ConfigError

_READ = 16 * 1024
"""Bytes whose lines are taken at once: a server's event loop does nothing else meanwhile."""

_DISCARD_SECONDS = 0.5
"""For the rest of a pipe that a program's own children may hold open: asyncio closes it at its
end only."""

_END_SECONDS = 5.0
"""For a program to end after SIGTERM, and for the last of its output after it ended."""

_LOOK_SECONDS = 0.05
"""Between looks whether a program has ended."""

TIMED_OUT = -1
"""In place of an exit code: the program took longer than it may."""

TOO_MUCH = -2
"""In place of an exit code: the program printed more than it may."""

_ENVIRONMENT = {
    "LC_ALL": "C",  # messages are read by `causes`
    # Without the user's preferences for kubectl: by these `get` may leave objects out, and `delete`
    # ask first, which without an answer deletes nothing and succeeds.
    "KUBERC": "off",
}

_PACKAGES = {"ssh": "OpenSSH's client", "kubectl": "kubectl"}


def find_program(name: str) -> str:
    """Return the path of a program.

    Raises:
        ConfigError: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise ConfigError(f"{name}: command not found; install {_PACKAGES[name]}")
    return found


async def run_program(
    words: Sequence[str],
    content: bytes,
    *,
    on_stdout: Callable[[bytes], None],
    on_stderr: Callable[[bytes], None],
    most: int,
    total: int,
    seconds: float,
    keep_open: bool = False,
) -> int:
    """Run a program to its end; if this is cancelled, it is ended.

    Args:
        words: its name and arguments, which all users of this machine see.
        content: for its standard input.
        on_stdout, on_stderr: called with each line, without its end.
        most: bytes of a line; the rest of a longer one is discarded.
        total: bytes of standard output, and of standard error; with more it is ended.
        seconds: it may take.
        keep_open: whether its standard input ends only when this does.

    Returns:
        Its exit code; `TIMED_OUT` if it took too long, `TOO_MUCH` if it printed too much.

    Raises:
        ConfigError: it is not installed.
        Exception: of `on_stdout` or `on_stderr`; the program is ended.
    """
    process = await asyncio.create_subprocess_exec(
        *launch_words(find_program(words[0]), words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(os.environ) | _ENVIRONMENT,
        # A group of its own, with the program's children. Ctrl-C reaches it through us.
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    tasks = [
        asyncio.create_task(_send(process.stdin, content, keep_open)),
        asyncio.create_task(_receive(process.stdout, on_stdout, most, total)),
        asyncio.create_task(_receive(process.stderr, on_stderr, most, total)),
    ]
    try:
        return await _ended(process, tasks, seconds)
    except _TooMuchOutput:
        return TOO_MUCH
    finally:
        # Programs that it started may hold the pipes open.
        goes_on = process.returncode is None or not all(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        process.stdin.close()
        if goes_on:
            await _end(process)
        await asyncio.gather(*tasks, return_exceptions=True)
        # A pipe is closed when its end was read.
        await asyncio.gather(_discard(process.stdout), _discard(process.stderr))


async def _ended(
    process: asyncio.subprocess.Process, tasks: Sequence[asyncio.Task[None]], seconds: float
) -> int:
    """Return the exit code, or `TIMED_OUT`.

    Raises:
        Exception: of a task; without it the program would wait for someone to read.
    """
    ending = asyncio.create_task(_exit(process))
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
            done, _ = await asyncio.wait(waiting, timeout=_END_SECONDS)
            for task in done:
                task.result()
        return ending.result()
    finally:
        ending.cancel()


async def _exit(process: asyncio.subprocess.Process) -> int:
    """Wait for the program alone: `Process.wait` may wait for all that have its pipes open."""
    while process.returncode is None:  # noqa: ASYNC110 - asyncio tells of it nowhere else
        await asyncio.sleep(_LOOK_SECONDS)
    return process.returncode


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a program, if it still runs, and the programs that it started."""
    # The group keeps the program's number for as long as anything runs in it.
    _signal_group(process.pid, signal.SIGTERM)
    end = time.monotonic() + _END_SECONDS
    while _signal_group(process.pid, 0):
        if time.monotonic() > end:
            _signal_group(process.pid, signal.SIGKILL)
            break
        await asyncio.sleep(_LOOK_SECONDS)
    await _exit(process)


def _signal_group(group: int, number: int) -> bool:
    """Send a signal, or none with 0; return whether the group has processes."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


async def _send(stream: asyncio.StreamWriter, content: bytes, keep_open: bool) -> None:
    # A program that has ended, or whose node is not reached, reads no more.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.write(content)
        await stream.drain()
        if not keep_open:
            stream.close()
            await stream.wait_closed()


class _TooMuchOutput(Exception):
    """A program printed more bytes than it may."""


async def _receive(
    stream: asyncio.StreamReader, take: Callable[[bytes], None], most: int, total: int
) -> None:
    async for line in _lines(stream, most, total):
        take(line)


async def _discard(stream: asyncio.StreamReader) -> None:
    """Read the rest of the pipe of a program that ended."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while await stream.read(_READ):
                pass


async def _lines(stream: asyncio.StreamReader, most: int, total: int) -> AsyncIterator[bytes]:
    """Yield each line, cut to a number of bytes: a node's output is never in memory as a whole.

    Raises:
        _TooMuchOutput: all lines have more than ``total`` bytes.
    """
    line = bytearray()
    while chunk := await stream.read(_READ):
        total -= len(chunk)
        if total < 0:
            raise _TooMuchOutput
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield bytes(line + piece[: most - len(line)])
            line.clear()
        line += rest[: most - len(line)]
    if line:
        yield bytes(line)
