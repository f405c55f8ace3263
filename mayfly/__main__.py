"""The command ``mayfly``, which ``python -m mayfly`` is too: from exec to the exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

_THREADS_SECONDS = 2.0
"""Time for threads that still work at the exit, such as a hash whose result is not needed."""


def main() -> None:
    """Run the command line and leave with its exit code, without a traceback for Ctrl-C."""
    code: str | int | None = 130
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


def _bound_the_end(code: int) -> None:
    """Exit soon even if a thread does not end; the interpreter would wait for it for ever."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    leaving = threading.Timer(_THREADS_SECONDS, os._exit, [code])
    leaving.daemon = True
    leaving.start()


if __name__ == "__main__":
    main()
