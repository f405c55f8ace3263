"""The exit codes of every command: one table for the code, ``--help`` and the documentation."""

from __future__ import annotations

from enum import IntEnum
from typing import NoReturn


class Exit(IntEnum):
    """How a command ended. `name` in lower case is the ``code`` of an error document."""

    DONE = 0
    INTERNAL = 1
    USAGE = 2
    INCOMPLETE = 3
    STORAGE = 4
    BUNDLE = 5
    NOT_RUNNING = 6

    @property
    def code(self) -> str:
        """The name that programs read."""
        return self.name.lower()


MEANINGS: dict[Exit, str] = {
    Exit.DONE: "done: the condition was met or a stop was asked for, everything drained, "
    "and coverage is complete where it was asked for",
    Exit.INTERNAL: "internal error",
    Exit.USAGE: "wrong usage or configuration",
    Exit.INCOMPLETE: "incomplete: coverage is missing, transfers were cut, the deadline passed "
    "with the command still running, wait timed out, stopping is not safe, images could not be "
    "fetched or copied, or nodes lack images after a prefetch",
    Exit.STORAGE: "storage failed, or stored content is corrupt",
    Exit.BUNDLE: "a bundle is invalid",
    Exit.NOT_RUNNING: "no Mayfly runs there",
}

OTHERS: tuple[tuple[str, str], ...] = (
    ("126, 127", "run: the command cannot be executed, or was not found"),
    (
        "130, 143",
        "130: Ctrl-C, 143: SIGTERM; a server exits with these only at the second signal, "
        "run also when its command does",
    ),
    ("other", "run: the exit code of its command"),
)


def exit_code_of_signal(number: int) -> int:
    """Return the exit code that a shell shows for a process that a signal killed."""
    return 128 + number


_arrived: list[int] = []
"""Numbers of the signals that `exit_by_signal` has answered."""


def exit_by_signal(number: int, _frame: object) -> NoReturn:
    """End the process, with its cleanup; a signal handler.

    Raises:
        SystemExit: with the exit code of the signal.
    """
    _arrived.append(number)
    raise SystemExit(exit_code_of_signal(number))


def exit_by_lost_signal() -> None:
    """End the process if `exit_by_signal` was called and its exception was dropped.

    The compiler drops it while it folds the constants of a module that is imported.

    Raises:
        SystemExit: with the exit code of that signal.
    """
    if _arrived:
        raise SystemExit(exit_code_of_signal(_arrived.pop()))


def describe() -> list[tuple[str, str]]:
    """Return the table, a row of exit code and meaning each."""
    return [*((str(int(code)), text) for code, text in MEANINGS.items()), *OTHERS]
