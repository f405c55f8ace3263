"""Conditions from the kernel: files, the parent, the standard input, signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mayfly.registry.cli.interrupts import run_cancellable
from mayfly.registry.ending import EndKind
from mayfly.registry.exit_codes import exit_by_signal
from mayfly.registry.lifecycle import inotify
from mayfly.registry.lifecycle.watches import ParentDeath, StandardInput, StopFile
from mayfly.registry.process.signals import Signals
from mayfly.registry.settings.errors import ConfigError
from tests.support.beside import run_what_is_ready
from tests.support.fakes import FakeClock
from tests.support.process import descriptors

DEADLINE = 10.0


async def test_stop_file_appears(tmp_path: Path) -> None:
    """Neither other files nor time matter; the file does, made or moved there."""
    condition = StopFile(tmp_path / "stop", FakeClock())
    waiting = asyncio.create_task(condition.wait())
    await run_what_is_ready()
    (tmp_path / "other").write_text("")
    await run_what_is_ready()
    assert not waiting.done()
    (tmp_path / "other").rename(tmp_path / "stop")
    reason = await asyncio.wait_for(waiting, DEADLINE)
    assert reason.kind is EndKind.STOP_FILE
    assert str(tmp_path / "stop") in reason.text


async def test_stop_file_that_was_there(tmp_path: Path) -> None:
    """A stop that was asked for before the start is a stop, a dangling link included."""
    (tmp_path / "stop").symlink_to("nowhere")
    assert (await StopFile(tmp_path / "stop", FakeClock()).wait()).kind is EndKind.STOP_FILE


async def test_stop_file_without_inotify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an inotify watch the file is polled."""

    def none(_directory: Path) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(inotify, "Inotify", none)
    clock = FakeClock()
    waiting = asyncio.create_task(StopFile(tmp_path / "stop", clock).wait())
    await clock.tick(5)
    assert not waiting.done()
    (tmp_path / "stop").write_text("")
    await clock.tick(1)
    assert waiting.done()


def test_stop_file_nowhere(tmp_path: Path) -> None:
    """A directory that does not exist can never hold the file, and is named."""
    with pytest.raises(ConfigError, match="--stop-file"):
        StopFile(tmp_path / "none" / "stop", FakeClock())


PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=1)
sys.stdin.read()
"""

ORPHAN = """
import asyncio, sys
from mayfly.registry.clock import SystemClock
from mayfly.registry.lifecycle.watches import ParentDeath
async def main():
    condition = ParentDeath(SystemClock())
    waiting = asyncio.create_task(condition.wait())
    await asyncio.sleep(0)
    print("waiting", condition.holds(), flush=True)
    print((await waiting).kind, condition.holds(), flush=True)
asyncio.run(main())
"""


def test_parent_death() -> None:
    """The death of the parent is noticed, kill -9 included."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, ORPHAN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    assert parent.stdout.readline() == "waiting False\n"
    parent.kill()
    parent.wait()
    assert parent.stdout.readline() == "parent True\n"
    parent.stdin.close()
    parent.stdout.close()


async def test_parent_that_lives() -> None:
    """A running parent does not end the server, and waiting leaves no descriptor open."""
    before = descriptors()
    waiting = asyncio.create_task(ParentDeath(FakeClock()).wait())
    await run_what_is_ready()
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert descriptors() == before


async def test_standard_input_ends() -> None:
    """Input is discarded; its end counts."""
    out, into = os.pipe()
    condition = StandardInput(out)
    waiting = asyncio.create_task(condition.wait())
    os.write(into, b"x" * 1000)
    await run_what_is_ready()
    assert not condition.holds()
    os.close(into)
    assert (await asyncio.wait_for(waiting, DEADLINE)).kind is EndKind.STANDARD_INPUT
    os.close(out)


async def test_standard_input_of_a_terminal_that_goes() -> None:
    """A terminal that was closed is at its end."""
    ours, theirs = os.openpty()
    waiting = asyncio.create_task(StandardInput(theirs).wait())
    await run_what_is_ready()
    os.close(ours)
    assert (await asyncio.wait_for(waiting, DEADLINE)).kind is EndKind.STANDARD_INPUT
    os.close(theirs)


def test_standard_input_that_never_ends(tmp_path: Path) -> None:
    """A regular file as standard input is refused."""
    (tmp_path / "file").write_text("")
    with (tmp_path / "file").open() as file, pytest.raises(ConfigError, match="not a pipe"):
        StandardInput(file.fileno())
    with Path(os.devnull).open() as null, pytest.raises(ConfigError, match="not a pipe"):
        StandardInput(null.fileno())


async def test_signals() -> None:
    """The first signal asks for a stop, the second aborts the drain; ignored ones stay ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = Signals()
    signals.install()
    try:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await asyncio.wait_for(signals.first.wait(), DEADLINE)).text == "SIGTERM"
        assert not signals.second.holds()
        os.kill(os.getpid(), signal.SIGINT)
        second = await asyncio.wait_for(signals.second.wait(), DEADLINE)
        assert second.exit_code == 130
    finally:
        signals.remove()
        signal.signal(signal.SIGHUP, before)


def test_signal_whose_exception_was_dropped() -> None:
    """The server ends by it before it serves, and so does a command that can be cancelled."""
    for begin in (Signals().install, lambda: run_cancellable(asyncio.sleep(0))):
        with contextlib.suppress(SystemExit):
            exit_by_signal(signal.SIGTERM, None)
        with pytest.raises(SystemExit) as left:
            begin()
        assert left.value.code == 143


async def test_signals_are_handed_on() -> None:
    """With a command every signal is forwarded; those for the command alone do not stop Mayfly."""
    handed: list[signal.Signals] = []
    signals = Signals(handed.append)
    signals.install()
    try:
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
            await run_what_is_ready()
        assert not signals.first.holds()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(signals.first.wait(), DEADLINE)
        assert handed == [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM]
    finally:
        signals.remove()
