"""The command ``mayfly``, which ``python -m registry`` is too: from exec to the exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

_THREADS_SECONDS = 2.0
"""For threads that still work when all is done and said, such as a hash that nobody wants."""


def main() -> None:
    """Run the command line and leave with its exit code, without a traceback for Ctrl-C."""
    code: str | int | None = 130
    # Ctrl-C may come while the command line is loaded, or when all is done and said.
    with contextlib.suppress(KeyboardInterrupt):
        from registry.cli import execute
        from registry.text import install

        install()
        code = execute()
        for number in (signal.SIGINT, signal.SIGTERM):
            # The interpreter would answer with a traceback as it leaves.
            signal.signal(number, signal.SIG_IGN)
    _bound_the_end(code if isinstance(code, int) else 1)
    sys.exit(code)


def _bound_the_end(code: int) -> None:
    """Leave soon even if a thread does not: the interpreter would wait for it without a bound."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    leaving = threading.Timer(_THREADS_SECONDS, os._exit, [code])
    leaving.daemon = True
    leaving.start()


if __name__ == "__main__":
    main()
