"""Conditions outside the process: a file appears, the parent ends, the standard input closes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path

from mayfly.registry.clock import Clock
from mayfly.registry.ending import EndKind, EndReason
from mayfly.registry.settings.errors import ConfigError

_POLL_SECONDS = 1.0
"""Between two checks where the kernel sends no event."""

_CHUNK = 65536


class StopFile:
    """A file exists. One from before the start also counts.

    Raises:
        ConfigError: the directory it would appear in does not exist.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        if not path.parent.is_dir():
            raise ConfigError(f"--stop-file {path}: there is no directory {path.parent}; make it")
        self._path = path
        self._clock = clock

    async def wait(self) -> EndReason:
        # Imported here: a server without a stop file need not load ctypes.
        from mayfly.registry.lifecycle.inotify import Inotify

        try:
            watch = Inotify(self._path.parent)
        except OSError:
            # Too many watches, or a kernel without inotify: rare enough to poll each second.
            while not self.holds():
                await self._clock.sleep(_POLL_SECONDS)
        else:
            with contextlib.closing(watch):
                while not self.holds():
                    await _readable(watch.fileno())
                    watch.discard()
        text = f"the stop file {self._path} is there"
        return EndReason(EndKind.STOP_FILE, text, detail={"file": str(self._path)})

    def holds(self) -> bool:
        return os.path.lexists(self._path)


class ParentDeath:
    """The parent process has ended.

    A descriptor of the parent is waited on (pidfd_open(2)): ``PR_SET_PDEATHSIG`` would fire when
    the parent's *thread* ends, and its signal looks like any other SIGTERM.
    """

    def __init__(self, clock: Clock) -> None:
        self._parent = os.getppid()
        self._clock = clock

    async def wait(self) -> EndReason:
        try:
            descriptor = os.pidfd_open(self._parent)
        except OSError:
            # The parent has ended, or a sandbox forbids the call.
            while not self.holds():
                await self._clock.sleep(_POLL_SECONDS)
        else:
            try:
                # Before the open, the parent may have ended and another process got its number.
                if not self.holds():
                    await _readable(descriptor)
            finally:
                os.close(descriptor)
        text = f"the parent process {self._parent} is gone"
        return EndReason(EndKind.PARENT, text, detail={"pid": self._parent})

    def holds(self) -> bool:
        return os.getppid() != self._parent


class StandardInput:
    """The standard input has ended; input before that is read and discarded.

    Raises:
        ConfigError: the standard input is not a pipe, a socket or a terminal.
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

    async def wait(self) -> EndReason:
        while not self._ended:
            await _readable(self._descriptor)
            # Readable, so this does not block. The descriptor may be shared with a shell, so it is
            # not made non-blocking.
            try:
                self._ended = not os.read(self._descriptor, _CHUNK)
            except OSError:  # the terminal has closed
                self._ended = True
        return EndReason(EndKind.STANDARD_INPUT, "the standard input was closed")

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
