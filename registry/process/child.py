"""The command of ``mayfly run``: start it, forward signals, propagate the exit status.

*Process group.* The command stays in Mayfly's, so that a shell treats both as one job and the
command may read the terminal. The terminal then sends Ctrl-C to both; forwarding would deliver it
twice, so SIGINT is not forwarded while the group has the terminal's foreground.

*Exit status.* Mayfly exits with the command's exit code. If the command died by a signal, Mayfly
dies by the same signal after its cleanup (`exit_like`). A shell shows both as 128 + n, but only a
real death lets it see that Ctrl-C meant the whole script, and lets `subprocess` report -n.

*If Mayfly is killed* the kernel sends the command SIGTERM (``PR_SET_PDEATHSIG``). `launch` asks for
that in the new process, which then becomes the command: a ``preexec_fn`` would run Python between
fork and exec of a process with threads. The kernel exempts commands with a setuid bit, as ``sudo``.
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

from mayfly.registry.ending import EndKind, EndReason, Latch
from mayfly.registry.errors import LifetimeError
from mayfly.registry.exit_codes import exit_code_of_signal
from mayfly.registry.process import open_files
from mayfly.registry.state.private import AUTH_FILE, CERT_DIR, Login

NOT_FOUND = 127
NOT_EXECUTABLE = 126
"""Exit codes of a command that could not be started, as a shell has them."""

_MAX_FIRST_LINE = 256
"""Bytes of a script that the kernel looks at for its interpreter."""

_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_PREFIX = "LISTEN_"

OWN_COMMAND = "mayfly"
"""Name of the program that `own_command` makes."""


def environment(
    inherited: Mapping[str, str],
    login: Login,
    private: Path,
    state_dir: Path,
    programs: Path | None = None,
) -> dict[str, str]:
    """Return the environment of the command (docs/lifetime.md, "The command of `run`").

    Args:
        inherited: environment of this process.
        login: for the registry.
        private: directory of the auth file.
        state_dir: so that `mayfly status`, `wait` and `stop` in it mean this server.
        programs: directory that comes first in ``PATH``.
    """
    variables = {
        name: value
        for name, value in inherited.items()
        if name not in _NOT_INHERITED and not name.startswith(_PREFIX)
    }
    registry = {
        "MAYFLY_URL": login.url,
        "MAYFLY_HOST": login.host,
        "MAYFLY_USERNAME": login.username,
        "MAYFLY_PASSWORD": login.password,
        "MAYFLY_CA": str(login.ca) if login.ca else None,
        "MAYFLY_CERT_DIR": str(private / CERT_DIR) if login.ca else None,
    }
    for name, value in registry.items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = value
    variables["MAYFLY_STATE_DIR"] = str(state_dir)
    variables["DOCKER_CONFIG"] = str(private)
    variables["REGISTRY_AUTH_FILE"] = str(private / AUTH_FILE)
    if programs is not None:
        variables["PATH"] = f"{programs}{os.pathsep}{inherited.get('PATH') or os.defpath}"
    return variables


def find(name: str, environment: Mapping[str, str]) -> str:
    """Return the path of the file that a command names.

    Raises:
        LifetimeError: the file does not exist (exit code 127), or it cannot be executed or is a
            script whose interpreter is not there (126).
    """
    search = environment.get("PATH", os.defpath)
    found = shutil.which(name, path=search)
    if found is not None:
        if problem := _script_problem(found):
            raise LifetimeError(f"cannot run {name}: {problem}", NOT_EXECUTABLE)
        return found
    candidates = [Path(name)] if "/" in name else [Path(d, name) for d in search.split(":")]
    there = [path for path in candidates if path.exists()]
    if any(path.is_file() for path in there):
        raise LifetimeError(
            f"cannot run {name}: it may not be executed; run chmod +x on it, or give it to its "
            "shell, as in: -- sh FILE (its file system may be mounted noexec)",
            NOT_EXECUTABLE,
        )
    if there:
        raise LifetimeError(f"cannot run {name}: it is a directory", NOT_EXECUTABLE)
    here = f"; the file that lies here is ./{name}" if Path(name).is_file() else ""
    raise LifetimeError(f"cannot run {name}: command not found{here}", NOT_FOUND)


def _script_problem(path: str) -> str:
    """Return why the kernel would not start a script, or "". Its own error names only the file.

    Args:
        path: of any executable file.
    """
    try:
        with Path(path).open("rb") as file:
            first = file.read(_MAX_FIRST_LINE).partition(b"\n")[0]
    except OSError:  # it may be executed and not read
        return ""
    named = first.removeprefix(b"#!").replace(b"\t", b" ") if first.startswith(b"#!") else b""
    words = [word for word in named.split(b" ") if word]
    if not words:
        return ""
    interpreter = Path(os.fsdecode(words[0]))
    is_there = interpreter.exists()
    # env looks for its argument as the kernel looks for env.
    if first.endswith(b"\r") and (not is_there or interpreter.name == "env"):
        return (
            "its lines end in CR LF, as on Windows, and Linux takes the CR for a part of its "
            "interpreter's name; run on it: sed -i 's/\\r$//'"
        )
    return "" if is_there else f"its first line names {interpreter}, which is not there"


def check_command(name: str, environment: Mapping[str, str]) -> None:
    """Check that a command can be found before there is a registry for it.

    Args:
        name: of the command.
        environment: of this process; `own_command` adds a program to it later.

    Raises:
        LifetimeError: see `find`.
    """
    if name != OWN_COMMAND:
        find(name, environment)


def launch_words(path: str, words: Sequence[str]) -> list[str]:
    """Return the arguments that start a program which the kernel ends with this process.

    Args:
        path: of the program.
        words: its own arguments, from its name on.
    """
    launch = str(Path(__file__).with_name("launch.py"))
    own = (str(os.getpid()), str(open_files.AT_START))
    return [sys.executable, "-I", "-S", launch, *own, path, *words]


class Child:
    """A started command.

    Attributes:
        code: exit code, or minus the number of the signal that killed it; None while it runs.
    """

    def __init__(self, process: asyncio.subprocess.Process, name: str, ended: Latch) -> None:
        self._process = process
        self._name = name
        self._ended = ended
        self.code: int | None = None
        self._waiting = asyncio.create_task(self._wait())

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], ended: Latch
    ) -> Child:
        """Start a command with the standard streams of this process.

        Args:
            command: program and arguments.
            environment: the whole environment.
            ended: set when the command ends; the reason carries its exit code.

        Raises:
            LifetimeError: the command cannot be started; see `find`.
        """
        path = find(command[0], environment)
        # If SIGCHLD were inherited as ignored, the kernel would discard the exit code.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        process = await asyncio.create_subprocess_exec(
            *launch_words(path, command), env=environment
        )
        return cls(process, command[0], ended)

    @property
    def pid(self) -> int:
        """Process ID of the command."""
        return self._process.pid

    def forward(self, number: signal.Signals) -> None:
        """Forward a signal that this process received."""
        if number != signal.SIGINT or not _in_foreground():
            self.send(number)

    def send(self, number: signal.Signals) -> None:
        """Send the command a signal, if it still runs."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def end(self) -> int:
        """Wait for the end of the command and return `code`."""
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
        self._ended.set(EndReason(EndKind.COMMAND, f"{self._name} {how}", self.code, detail))


def signal_name(number: int) -> str:
    """Return a signal's name as in signal(7), or its number if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _in_foreground() -> bool:
    """Whether the terminal sends its signals to this process group."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:  # noqa: PTH123 - no Path API needed
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def exit_like(code: int) -> int:
    """Exit as the command did: for a negative code, die by that signal now.

    Returns:
        The exit code to use. For a signal, 128 + n if the signal does not kill this process, as for
        process 1 of a container.
    """
    if code >= 0:
        return code
    number = -code
    sys.stdout.flush()
    sys.stderr.flush()
    # The command has dumped core already, if it did.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    return exit_code_of_signal(number)
