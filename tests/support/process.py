"""Programs a test needs, the child processes it starts, and what those leave on disk.

Every process here is ended by its own pid. Waiting always means polling a condition until
a deadline, and a process that dies early fails the wait with what it wrote.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import AnyStr, Self, TypeVar

import pytest

from tests.support.programs import BIN, CI, manifest

REPO = Path(__file__).resolve().parents[2]
CACHE = REPO / ".cache"
POLL_INTERVAL = 0.01

PATIENCE = 120.0
"""Seconds in which what a test waits for has happened, on a machine with much else to do."""

T = TypeVar("T")


def find_program(name: str, *first: Path) -> str | None:
    """Where a program is: in ``first``, .cache/bin, PATH, or where daemons are installed."""
    own = [*map(str, first), str(BIN)]
    path = os.pathsep.join([*own, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return shutil.which(name, path=path)


def need(*programs: str, directory: Path | None = None) -> None:
    """Skip the calling test when a program it runs is missing, naming it and how to get it.

    One that another tier installs counts as missing, although it may be there: CI lacks it.

    Args:
        directory: where they are, if the version matters; otherwise anywhere.

    Raises:
        LookupError: nothing in the manifest installs one of them.
    """
    for name in programs:
        provider = manifest().provider(name)
        if provider is None:
            raise LookupError(f"{name} is not in .ci/programs.toml: nothing installs it")
        tier, package = provider
        found = find_program(name) if directory is None else shutil.which(name, path=directory)
        if found is None or tier not in (CI, _running_tier()):
            which = name if directory is None else f"{directory.name}/{name}"
            how = ".ci/install" if tier == CI else f"make {tier}"
            way = f"apt-get install {package}, or {how}" if package else how
            pytest.skip(f"needs the program {which} (install: {way})")


def _running_tier() -> str:
    """The tier of the test that runs: tests/x has tier "test-x" if there is one, others have CI."""
    _, _, path = os.environ.get("PYTEST_CURRENT_TEST", "").partition("tests/")
    tier = f"test-{path.partition('/')[0]}"
    return tier if tier in manifest().tiers() else CI


def need_root() -> None:
    """Skip the calling test unless it may make device nodes, mounts and containers."""
    if os.geteuid() != 0:
        pytest.skip("needs root (run: sudo make test)")


def remove_tree(path: Path) -> None:
    """Remove a directory, first unmounting what container engines left mounted in it."""
    prefix = f"{path.resolve()}/"
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    # Latest first: a mount may lie on another one.
    for point in reversed([line.split(" ")[4] for line in mounts]):
        if point.startswith(prefix):
            subprocess.run(["umount", point], check=True, timeout=30)
    shutil.rmtree(path)


def poll(
    probe: Callable[[], T | None],
    what: Callable[[], object] | str = "",
    *,
    seconds: float = PATIENCE,
) -> T:
    """Call a probe until it returns something true, and return that.

    Args:
        what: what has not happened, or is there instead, if the time is over.
        seconds: after which that is a failure.
    """
    end = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if found := probe():
            return found
        now = time.monotonic()
        assert now < end, f"not within {seconds} s: {what() if callable(what) else what}"
        # A probe that runs a program leaves half of the time to what it looks at.
        time.sleep(max(POLL_INTERVAL, now - began))


async def until(probe: Callable[[], object], what: str = "") -> None:
    """Let the event loop run until a probe returns something true, or awaits it; see `poll`."""
    end = time.monotonic() + PATIENCE
    while True:
        found = probe()
        if await found if isinstance(found, Awaitable) else found:
            return
        assert time.monotonic() < end, f"not within {PATIENCE} s: {what}"
        await asyncio.sleep(POLL_INTERVAL)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def text_of(file: Path) -> str:
    """What is in a file; empty if there is none yet."""
    return file.read_text() if file.exists() else ""


def has_line(file: Path) -> bool:
    """Whether a file is there and ends with a whole line."""
    return text_of(file).endswith("\n")


def descriptors(pid: int | None = None) -> int:
    """How many descriptors a process has open, this one without ``pid``."""
    return len(os.listdir(f"/proc/{pid or 'self'}/fd"))


def resident_bytes(pid: int | None = None) -> int:
    """Bytes of memory that a process has, this one without ``pid``."""
    pages = Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(pid: int) -> int:
    """The most bytes of memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@contextmanager
def killed_at_end(process: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """Kill a process after the block if it still runs; its pipes are closed."""
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


class Process:
    """A child process whose output goes to a file, named when it fails.

    As a context it is killed at the end of the block, if it still runs.
    """

    def __init__(
        self,
        argv: Sequence[object],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.argv = [str(word) for word in argv]
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                cwd=cwd,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def describe(self) -> str:
        return f"{' '.join(self.argv)}\n--- output, its end:\n{self.output()[-8000:]}"

    def wait_for(self, probe: Callable[[], T | None], deadline: float = PATIENCE) -> T:
        """Poll until a probe returns something true; the end of the process is a failure, too."""

        def look() -> T | None:
            found = probe()
            if not found and not self.running:
                raise AssertionError(f"exited {self.popen.returncode} early: {self.describe()}")
            return found

        return poll(look, self.describe, seconds=deadline)

    def stop(self, timeout: float = PATIENCE) -> int:
        """SIGTERM, then wait; a process that does not end is killed and is a failure."""
        if self.running:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"still running {timeout} s after SIGTERM: {self.describe()}"
            ) from None

    def kill(self) -> None:
        """SIGKILL: no chance to tidy anything."""
        self.popen.kill()
        self.popen.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Mayfly(Process):
    """`mayfly serve` as its own process, ready to answer when the constructor returns."""

    def __init__(
        self,
        root: Path,
        state_dir: Path,
        *options: str,
        listen: str = "127.0.0.1:0",
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        state_dir.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.state_dir = state_dir
        argv: list[object] = [*prefix, sys.executable, "-m", "mayfly", "serve", "--root", root]
        argv += ["--state-dir", state_dir, "--listen", listen, *options]
        if env is None:
            # Settings of the user who runs the tests are not the test's.
            env = {name: os.environ[name] for name in os.environ if not name.startswith("MAYFLY_")}
        super().__init__(argv, state_dir / "output.log", env=env, cwd=REPO)
        try:
            ready = self.wait_for(self._read_ready)
        except BaseException:
            self.kill()
            raise
        self.url: str = ready["url"].rstrip("/")
        self.host: str = self.url.partition("://")[2]

    def _read_ready(self) -> dict[str, str] | None:
        # A file left by a killed predecessor names another pid.
        try:
            ready = json.loads((self.state_dir / "ready.json").read_text())
        except FileNotFoundError:
            return None
        return ready if ready["pid"] == self.pid else None

    def stop(self, timeout: float = PATIENCE) -> int:
        """SIGTERM; a clean stop is exit code 0."""
        code = super().stop(timeout)
        assert code == 0, f"exit code {code} after SIGTERM: {self.describe()}"
        return code

    def __exit__(self, *_exc: object) -> None:
        if self.running:
            self.stop()
