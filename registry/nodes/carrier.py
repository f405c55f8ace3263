"""How the script of a node gets there and runs: over ssh (`ssh`), or in a pod (`pods`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from mayfly.registry.nodes.causes import Cause
from mayfly.registry.nodes.node_output import NodeOutput

ARGUMENTS = ("--json", "--progress")
"""Options of the script, with which `NodeOutput` can read its output."""


class ScriptEnd(NamedTuple):
    """How a run of the script ended.

    Attributes:
        code: its exit code; `programs.TIMED_OUT` if it took too long.
        cause: why the script did not run to its end, where the carrier knows; otherwise None.
        detail: text for people about that; may come from other machines.
    """

    code: int
    cause: Cause | None = None
    detail: str = ""


class Session(Protocol):
    """Runs scripts on nodes."""

    async def run(self, node: str, script: str, output: NodeOutput, seconds: float) -> ScriptEnd:
        """Run a script on a node with `ARGUMENTS`; if this is cancelled, the script is ended.

        Args:
            node: its name.
            script: holds the node's credential.
            output: takes its output.
            seconds: it may take.

        Raises:
            Exception: of `output`; the script is ended.
        """


class Carrier(Protocol):
    """A way to nodes."""

    def check(self, nodes: Iterable[str]) -> None:
        """Check that its programs are installed, and that nodes can be reached by these names.

        Raises:
            ConfigError: it is not, or they cannot.
        """

    def session(self, note: Callable[[str], None]) -> AbstractAsyncContextManager[Session]:
        """Prepare to run scripts; whatever that makes is removed at the end.

        Args:
            note: called with a text for people about objects that could not be removed.

        Raises:
            LifetimeError: the cluster refuses, or does not answer.
        """
