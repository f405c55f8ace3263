"""Conditions met by something outside the process: a file, a parent, the standard input."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path

from mayfly.registry.clock import Clock
from mayfly.registry.lifecycle.conditions import Kind, Reason
from mayfly.registry.settings.errors import ConfigError

_POLL_SECONDS = 1.0
"""Between two looks where the kernel cannot tell."""

_CHUNK = 65536


class StopFile:
    """A file that exists. One that was there before counts: whoever made it asked first.

    Raises:
        ConfigError: the directory it would appear in does not exist.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        if not path.parent.is_dir():
            raise ConfigError(f"--stop-file {path}: there is no directory {path.parent}; make it")
        self._path = path
        self._clock = clock

    async def wait(self) -> Reason:
        # Imported here: a server without a stop file need not load ctypes.
        from mayfly.registry.lifecycle.inotify import Inotify

        try:
            watch = Inotify(self._path.parent)
        except OSError:
            # Too many watches, or a kernel without: rare enough for a look each second.
            while not self.holds():
                await self._clock.sleep(_POLL_SECONDS)
        else:
            with contextlib.closing(watch):
                while not self.holds():
                    await _readable(watch.fileno())
                    watch.discard()
        text = f"the stop file {self._path} is there"
        return Reason(Kind.STOP_FILE, text, detail={"file": str(self._path)})

    def holds(self) -> bool:
        return os.path.lexists(self._path)


class ParentDeath:
    """The process that started this one is gone.

    A descriptor of the parent is waited on (pidfd_open(2)): ``PR_SET_PDEATHSIG`` would fire when
    the parent's *thread* ends, and cannot be told from another SIGTERM.
    """

    def __init__(self, clock: Clock) -> None:
        self._parent = os.getppid()
        self._clock = clock

    async def wait(self) -> Reason:
        try:
            descriptor = os.pidfd_open(self._parent)
        except OSError:
            # Gone already, or a sandbox that forbids the call.
            while not self.holds():
                await self._clock.sleep(_POLL_SECONDS)
        else:
            try:
                # Between our birth and the open, the number may have gone to somebody else.
                if not self.holds():
                    await _readable(descriptor)
            finally:
                os.close(descriptor)
        text = f"the parent process {self._parent} is gone"
        return Reason(Kind.PARENT, text, detail={"pid": self._parent})

    def holds(self) -> bool:
        return os.getppid() != self._parent


class StandardInput:
    """The standard input is at its end; what comes before is read and dropped.

    Raises:
        ConfigError: it is not something whose end can be waited for.
    """

    def __init__(self, descriptor: int = 0) -> None:
        try:
            mode = os.fstat(descriptor).st_mode
        except OSError:
            raise ConfigError("--exit-on-stdin-eof: the standard input is closed") from None
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)):
            raise ConfigError(
                "--exit-on-stdin-eof: the standard input is not a pipe, a socket or a terminal"
            )
        self._descriptor = descriptor
        self._ended = False

    async def wait(self) -> Reason:
        while not self._ended:
            await _readable(self._descriptor)
            # Readable, so this does not block; the descriptor itself may be shared with a shell
            # and is not made non-blocking for that reason.
            try:
                self._ended = not os.read(self._descriptor, _CHUNK)
            except OSError:  # a terminal that is gone
                self._ended = True
        return Reason(Kind.STANDARD_INPUT, "the standard input was closed")

    def holds(self) -> bool:
        return self._ended


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def on_readable() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, on_readable)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
