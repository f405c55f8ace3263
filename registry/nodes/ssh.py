"""Run a script on a node over the system's OpenSSH, with the operator's configuration and agent.

The script is passed by standard input: arguments are seen by all users of both machines. Nothing is
asked on the terminal, no agent and no port is forwarded to the node, and host keys are checked as
the operator's configuration says.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from mayfly.registry.nodes.carrier import ARGUMENTS, ScriptEnd
from mayfly.registry.nodes.node_output import NodeOutput
from mayfly.registry.nodes.programs import find_program, run_program
from mayfly.registry.settings.errors import ConfigError

_DESTINATION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,254}")
"""Names and addresses. Nothing that ssh, its configuration's tokens or a shell read as more, or
that is too long for an argument."""

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
        # ssh ends alike without a word if the connection was lost and if its command was killed by
        # a signal. So the login shell stays, and its exit code tells of the signal.
        return [*words, "--", node, " ".join([shell, "-s", "--", *arguments]) + "; exit"]

    def check(self, nodes: Iterable[str]) -> None:
        """See that ssh is installed, and that it can be given each name and its configuration.

        Raises:
            ConfigError: it is not, or it cannot.
        """
        for node in nodes:
            check_destination(node)
        if self.config is not None:
            try:
                self.config.open("rb").close()
            except OSError as error:
                raise ConfigError(f"--ssh-config {self.config}: {error.strerror}") from None
        find_program("ssh")

    @contextlib.asynccontextmanager
    async def session(self, note: Callable[[str], None]) -> AsyncIterator[SSH]:
        """Nothing is to be prepared or removed."""
        yield self

    async def run(self, node: str, script: str, output: NodeOutput, seconds: float) -> ScriptEnd:
        """Run a script on a node; see `carrier.Session`."""
        code = await run_program(
            self.words(node, *ARGUMENTS, "--attended"),
            script.encode(),
            on_stdout=output.stdout,
            on_stderr=output.stderr,
            most=output.most,
            total=output.total,
            seconds=seconds,
            # When this process or the connection ends, the node's sshd ends the script's input.
            keep_open=True,
        )
        return ScriptEnd(code)


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
