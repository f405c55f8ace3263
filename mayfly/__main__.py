"""The command ``mayfly``, which ``python -m mayfly`` is too: from exec to the exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

STDERR = 2
"""The number of standard error."""

_THREADS_SECONDS = 2.0
"""Time for threads that still work at the exit, such as a hash whose result is not needed."""


def main() -> None:
    """Run the command line and leave with its exit code, without a traceback for Ctrl-C."""
    code: str | int | None = 130
    _open_standard_streams()
    # Ctrl-C may come while the command line is loaded, or at the exit.
    with contextlib.suppress(KeyboardInterrupt):
        from mayfly.registry.cli import execute
        from mayfly.registry.text import install

        install()
        code = execute()
        for number in (signal.SIGINT, signal.SIGTERM):
            # The interpreter would answer with a traceback as it leaves.
            signal.signal(number, signal.SIG_IGN)
    _bound_the_end(code if isinstance(code, int) else 1)
    sys.exit(code)


def _open_standard_streams() -> None:
    """Open standard input, output and error where they are closed, as some programs leave them.

    A file or socket would get their numbers, and what is printed.
    """
    with contextlib.suppress(OSError):  # a host without /dev
        while (opened := os.open(os.devnull, os.O_RDWR)) <= STDERR:
            os.set_inheritable(opened, True)
        os.close(opened)
        # The interpreter has None for those that were closed.
        sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
        sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = sys.stderr or open(STDERR, "w", closefd=False)  # noqa: SIM115


def _bound_the_end(code: int) -> None:
    """Exit soon even if a thread does not end; the interpreter would wait for it for ever."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    leaving = threading.Timer(_THREADS_SECONDS, os._exit, [code])
    leaving.daemon = True
    leaving.start()


if __name__ == "__main__":
    main()
