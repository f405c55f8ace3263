"""`mayfly` as a process: started with a clean environment, its errors read as a user sees them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from mayfly.registry.cli import execute
from mayfly.registry.text import install
from tests.support.process import REPO, killed_at_end

TIMEOUT = 120


def environment(**more: str) -> dict[str, str]:
    """The tests' own environment without settings of their user."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MAYFLY_")}
    return inherited | {"PYTHONPATH": str(REPO)} | more


def command_line(*arguments: object) -> list[str]:
    """`mayfly` with arguments, texts and paths, as the interpreter of the tests runs it."""
    return [sys.executable, "-m", "mayfly", *map(str, arguments)]


def mayfly(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: Path = REPO,
    stdin: str = "",
    timeout: float = TIMEOUT,
) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself, whatever its exit code is."""
    return subprocess.run(
        command_line(*arguments),
        env=environment(**(env or {})),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def mayfly_here(
    *arguments: object, env: Mapping[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command in this process: a start takes ten times as long as most commands.

    For tests of what a command does with its arguments; `mayfly` is for how it starts and ends.
    """
    words = ["mayfly", *map(str, arguments)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    given, output, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(3))
    given.write(stdin)
    given.seek(0)
    try:
        with (
            mock.patch.dict(os.environ, environment(**(env or {})), clear=True),
            mock.patch.object(sys, "argv", words),
            mock.patch.object(sys, "stdin", given),
            redirect_stdout(output),
            redirect_stderr(errors),
        ):
            install()
            code = execute()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert not isinstance(code, str), code
    for stream in (output, errors):
        stream.seek(0)
    return subprocess.CompletedProcess(words, code or 0, output.read(), errors.read())


def printed_here(*arguments: object, stdin: str = "") -> str:
    """Run a command that succeeds in this process; its standard output."""
    done = mayfly_here(*arguments, stdin=stdin)
    assert done.returncode == 0, f"mayfly {arguments} exited {done.returncode}: {done.stderr}"
    return done.stdout


@contextmanager
def started(
    *arguments: object, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a command while the block does; if it still runs after that, it is killed.

    `communicate` reads its output and errors; until then they must fit into the pipes.
    """
    process = subprocess.Popen(
        command_line(*arguments),
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with killed_at_end(process):
        yield process


def run_mayfly(*arguments: object, stdin: str = "") -> str:
    """Run a command that succeeds; its standard output."""
    done = mayfly(*arguments, stdin=stdin)
    assert done.returncode == 0, f"mayfly {arguments} exited {done.returncode}: {done.stderr}"
    return done.stdout


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one line on stderr that has these words; nothing on stdout."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 1200
    for word in words:
        assert word in done.stderr


_MEASURED = """
import atexit, re, runpy, sys

def show():
    with open("/proc/self/status") as status:
        print("\\npeak", re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1], file=sys.stderr)

atexit.register(show)
sys.argv[0] = "mayfly"
runpy.run_module("mayfly", run_name="__main__")
"""


def measured(
    *arguments: object, timeout: float = TIMEOUT
) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run a command that ends by itself; its result, and its largest resident memory in bytes.

    The figures of wait4(2) would begin with the memory of the tests, which it is forked from.
    """
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *map(str, arguments)],
        env=environment(),
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    done.stderr, _, peak = done.stderr.rpartition("\npeak ")
    return done, int(peak) * 1024


def peak_of(*arguments: object) -> int:
    """Run a command that succeeds; its largest resident memory, in bytes."""
    done, peak = measured(*arguments)
    assert done.returncode == 0, f"mayfly {arguments} exited {done.returncode}: {done.stderr}"
    return peak
