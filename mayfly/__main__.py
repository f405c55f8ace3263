"""The command ``mayfly``, which ``python -m mayfly`` is too: from exec to the exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType

STDERR = 2
"""The number of standard error."""

_SIGNAL_CODES: dict[int, signal.Signals] = {130: signal.SIGINT, 143: signal.SIGTERM}
"""Exit codes by which handlers of signals end the process."""

_THREADS_SECONDS = 2.0
"""Time for threads that still work at the exit, such as a hash whose result is not needed."""

_AGAIN_SECONDS = 0.01
"""Between two looks whether a callback has returned whose exception was ignored."""


def main() -> None:
    """Run the command line and leave with its exit code, without a traceback for Ctrl-C."""
    code: str | int | None = 130
    sys.unraisablehook = _repeat_ignored_signal
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


def _repeat_ignored_signal(ignored: sys.UnraisableHookArgs) -> None:
    """Send the process a signal again whose exception the interpreter has ignored.

    A signal's handler may run in a callback whose exceptions are dropped, such as a destructor or
    the callback that the import system has for each module. The process would continue as if it had
    got no signal. Other ignored exceptions are printed as usual.
    """
    error = ignored.exc_value
    number: signal.Signals | None = None
    if isinstance(error, KeyboardInterrupt):
        number = signal.SIGINT
    elif isinstance(error, SystemExit) and isinstance(error.code, int):
        number = _SIGNAL_CODES.get(error.code)
    if number is None:
        sys.__unraisablehook__(ignored)
        return
    # In here its exception would be ignored again.
    hook, thread = sys._getframe(), threading.get_ident()

    def repeat() -> None:
        while _is_running(hook, thread):
            time.sleep(_AGAIN_SECONDS)
        os.kill(os.getpid(), number)

    threading.Thread(target=repeat, daemon=True).start()


def _is_running(called: FrameType, thread: int) -> bool:
    """Whether a call has not returned yet in its thread."""
    frame = sys._current_frames().get(thread)
    while frame is not None and frame is not called:
        frame = frame.f_back
    return frame is not None


def _open_standard_streams() -> None:
    """Open standard input, output and error where they are closed, as some programs leave them.

    A file or socket would get their numbers, and the output.
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
