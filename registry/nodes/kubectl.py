"""Ask a cluster by the system's kubectl, with the operator's configuration and rights.

Objects are passed by standard input, never by arguments, which all users of this machine see.
Answers of the cluster are input from other machines: they are read to a bound.
"""

from __future__ import annotations

import json
import re
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from mayfly.registry.errors import LifetimeError
from mayfly.registry.exit_codes import Exit
from mayfly.registry.nodes.programs import TIMED_OUT, TOO_MUCH, run_program

ASK_SECONDS = 60.0
"""For one question."""

MOST = 256 * 1024 * 1024
"""Bytes of an answer: some 25 000 pods."""

_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
"""RFC 1123 subdomain (Kubernetes, "Object Names and IDs"); its labels are left to the cluster."""

_LINES = 5
_TEXT = 300


class Kubectl(NamedTuple):
    """Which cluster is asked, as whom.

    Attributes:
        kubeconfig: kubectl's configuration file; None for the operator's own.
        context: of it; None for the current one.
    """

    kubeconfig: Path | None = None
    context: str | None = None

    def words(self, *arguments: str) -> list[str]:
        """Return the command with these arguments; its words."""
        words = ["kubectl"]
        if self.kubeconfig is not None:
            words += ["--kubeconfig", str(self.kubeconfig)]
        if self.context is not None:
            words += ["--context", self.context]
        return [*words, *arguments]

    async def ask(
        self,
        *arguments: str,
        content: bytes = b"",
        seconds: float = ASK_SECONDS,
        most: int = MOST,
    ) -> bytes:
        """Run kubectl and return its standard output; if this is cancelled, kubectl is ended.

        Args:
            arguments: hold no secret.
            content: for its standard input.
            seconds: it may take.
            most: bytes of the answer.

        Raises:
            ConfigError: there is no kubectl.
            LifetimeError: it failed, took too long, or answered too much; exit code 3. The message
                has kubectl's own, which may hold text of others.
        """
        answer = bytearray()
        errors: deque[str] = deque(maxlen=_LINES)

        def keep(line: bytes) -> None:
            nonlocal answer
            answer += line + b"\n"

        def note(line: bytes) -> None:
            if text := line.decode(errors="replace").strip():
                errors.append(text[:_TEXT])

        code = await run_program(
            self.words(*arguments),
            content,
            on_stdout=keep,
            on_stderr=note,
            most=most,
            total=most,
            seconds=seconds,
        )
        if code == TIMED_OUT:
            raise _failed(arguments, f"no answer in {seconds:.0f} s")
        if code == TOO_MUCH:
            raise _failed(arguments, f"more than {most} bytes")
        if code != 0:
            raise _failed(arguments, "; ".join(errors) or f"exit code {code}")
        return bytes(answer)

    async def read(self, *arguments: str, seconds: float = ASK_SECONDS) -> dict[str, Any]:
        """Run ``kubectl get`` or the like with ``-o json``; its document, empty if it prints none.

        With ``--ignore-not-found`` kubectl prints none if nothing is found.

        Args:
            arguments: as of `ask`.
            seconds: it may take.

        Raises:
            ConfigError: there is no kubectl.
            LifetimeError: as `ask`, or the answer is not a JSON object.
        """
        answer = await self.ask(*arguments, "-o", "json", seconds=seconds)
        return read_object(answer, arguments) if answer.strip() else {}

    async def list(self, *arguments: str, seconds: float = ASK_SECONDS) -> list[dict[str, Any]]:
        """Run ``kubectl get`` for a list; its objects.

        Raises:
            ConfigError: there is no kubectl.
            LifetimeError: as `ask`, or the answer is not a list of objects, each with its kind.
        """
        found = await self.read(*arguments, seconds=seconds)
        items = found.get("items")
        if found.get("kind") != "List" or not isinstance(items, list):
            raise _failed(arguments, "the answer is not a list")
        if not all(isinstance(one, dict) and isinstance(one.get("kind"), str) for one in items):
            raise _failed(arguments, "the list has something that is not an object")
        return items


def is_name(text: str) -> bool:
    """Return whether a node or a Secret can have this name; kubectl takes none for an option."""
    return _SUBDOMAIN.fullmatch(text) is not None


def read_object(answer: bytes, arguments: tuple[str, ...]) -> dict[str, Any]:
    """Read the answer to these arguments.

    Raises:
        LifetimeError: it is not a JSON object; exit code 3.
    """
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _failed(arguments, "the answer is not a JSON object")
    return found


def _failed(arguments: tuple[str, ...], problem: str) -> LifetimeError:
    """Return the error of a question; of its words only the first are shown."""
    return LifetimeError(f"kubectl {' '.join(arguments[:2])}: {problem}", Exit.INCOMPLETE)
