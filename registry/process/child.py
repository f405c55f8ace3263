"""The command of ``mayfly run``: started, told of signals, and its end handed on.

*Process group.* The command stays in ours, so that it is a shell's job together with us and may
read the terminal. Ctrl-C then reaches both from the terminal; handing it on would deliver it twice,
so SIGINT is not, while our group has the terminal's foreground.

*Its end is ours.* An exit code is passed on. A death by signal is, too: when all is tidy, we die by
the same signal (`leave`). A shell shows both as 128 + n, but only a real death lets it see that
Ctrl-C meant the whole script, and lets `subprocess` report -n.

*If we are killed* the kernel sends it SIGTERM (``PR_SET_PDEATHSIG``). That is asked for in the new
process itself, by `launch`, which then becomes the command: a ``preexec_fn`` would run Python
between fork and exec of a process with threads. A command with a setuid bit, as ``sudo``, is exempt
by the kernel's rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mayfly.registry.lifecycle.conditions import Kind, Once, Reason
from mayfly.registry.lifecycle.errors import LifetimeError
from mayfly.registry.process import open_files
from mayfly.registry.state.private import AUTH_FILE, CERT_DIR, Login

NOT_FOUND = 127
NOT_EXECUTABLE = 126
"""Exit codes of a command that could not be started, as of a shell."""

_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_PREFIX = "LISTEN_"


def environment(
    inherited: Mapping[str, str], login: Login, private: Path, state_dir: Path
) -> dict[str, str]:
    """What the command gets (CONTRACT.md, "run").

    Args:
        inherited: our own environment.
        login: for the registry.
        private: directory of the auth file.
        state_dir: so that `mayfly status`, `wait` and `stop` in it mean this server.
    """
    made = {
        name: value
        for name, value in inherited.items()
        if name not in _OURS and not name.startswith(_PREFIX)
    }
    given = {
        "MAYFLY_URL": login.url,
        "MAYFLY_HOST": login.host,
        "MAYFLY_USERNAME": login.username,
        "MAYFLY_PASSWORD": login.password,
        "MAYFLY_CA": str(login.ca) if login.ca else None,
        "MAYFLY_CERT_DIR": str(private / CERT_DIR) if login.ca else None,
    }
    for name, value in given.items():
        made.pop(name, None)
        if value is not None:
            made[name] = value
    made["MAYFLY_STATE_DIR"] = str(state_dir)
    made["DOCKER_CONFIG"] = str(private)
    made["REGISTRY_AUTH_FILE"] = str(private / AUTH_FILE)
    return made


def find(name: str, environment: Mapping[str, str]) -> str:
    """The file that a command names.

    Raises:
        LifetimeError: there is none (exit code 127), or it cannot be executed (126).
    """
    search = environment.get("PATH", os.defpath)
    found = shutil.which(name, path=search)
    if found is not None:
        return found
    there = [Path(name)] if "/" in name else [Path(d, name) for d in search.split(":")]
    if any(path.exists() for path in there):
        raise LifetimeError(f"cannot run {name}: it is not an executable file", NOT_EXECUTABLE)
    raise LifetimeError(f"cannot run {name}: command not found", NOT_FOUND)


class Child:
    """A started command.

    Attributes:
        code: its exit code, or minus the number of the signal it died by; None while it runs.
    """

    def __init__(self, process: asyncio.subprocess.Process, name: str, ended: Once) -> None:
        self._process = process
        self._name = name
        self._ended = ended
        self.code: int | None = None
        self._waiting = asyncio.create_task(self._wait())

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], ended: Once
    ) -> Child:
        """Start a command with our standard streams.

        Args:
            command: its words.
            environment: all of it.
            ended: met when it has; the reason carries its code.

        Raises:
            LifetimeError: it cannot be started; see `find`.
        """
        path = find(command[0], environment)
        # Inherited as ignored, it would have the kernel throw the command's exit code away.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        launch = str(Path(__file__).with_name("launch.py"))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            launch,
            str(os.getpid()),
            str(open_files.AT_START),
            path,
            *command,
            env=environment,
        )
        return cls(process, command[0], ended)

    @property
    def pid(self) -> int:
        """Of the command."""
        return self._process.pid

    def hand_on(self, number: signal.Signals) -> None:
        """Give the command a signal that we were sent."""
        if number != signal.SIGINT or not _in_foreground():
            self.send(number)

    def send(self, number: signal.Signals) -> None:
        """Send the command a signal; nothing if it has ended."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def end(self) -> int:
        """Its code, once it has ended."""
        await self._ended.wait()
        assert self.code is not None
        return self.code

    async def _wait(self) -> None:
        self.code = await self._process.wait()
        if self.code < 0:
            how = f"was ended by {signal_name(-self.code)}"
        else:
            how = f"ended with exit code {self.code}"
        detail: dict[str, str | float] = {"command": self._name, "exit_code": self.code}
        self._ended.set(Reason(Kind.COMMAND, f"{self._name} {how}", self.code, detail))


def signal_name(number: int) -> str:
    """As in signal(7); by number for those without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _in_foreground() -> bool:
    """Whether the terminal sends its signals to our process group."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:  # noqa: PTH123 - no Path API needed
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def leave(code: int) -> int:
    """End as a command did: for a negative code die by that signal, here and now.

    Returns:
        The exit code to use. For a signal, 128 + n where it does not kill us, which is so for
        process 1 of a container.
    """
    if code >= 0:
        return code
    number = -code
    sys.stdout.flush()
    sys.stderr.flush()
    # One core dump, the command's, is enough.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    return 128 + number
