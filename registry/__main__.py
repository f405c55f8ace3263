"""The command ``mayfly``, which ``python -m registry`` is too: from exec to the exit code."""

from __future__ import annotations

import contextlib
import signal
import sys


def main() -> None:
    """Run the command line and leave with its exit code, without a traceback for Ctrl-C."""
    code: str | int | None = 130
    # Ctrl-C may come while the command line is loaded, or when all is done and said.
    with contextlib.suppress(KeyboardInterrupt):
        from registry.cli import execute

        code = execute()
        for number in (signal.SIGINT, signal.SIGTERM):
            # The interpreter would answer with a traceback as it leaves.
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
