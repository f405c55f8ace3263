"""Commands that are disturbed until they are done."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

from tests.support.process import REPO


def repeat_until_done(run: Callable[[], subprocess.CompletedProcess[str]], times: int = 10) -> None:
    """Run a command over a network that breaks; each time it says that something is missing."""
    for _ in range(times):
        done = run()
        if done.returncode == 0:
            return
        assert done.returncode == 3, done.stdout + done.stderr
    raise AssertionError(f"not done after {times} times: {done.stderr}")


def kill_until_done(
    argv: Sequence[str], seconds: float, after: Callable[[], None], times: int = 30
) -> None:
    """Run a command, and kill it a little later each time, until it ends before that.

    Args:
        argv: the command.
        seconds: until the first kill.
        after: looks at what a kill left.
        times: at most.
    """
    for kill in range(times):
        process = subprocess.Popen(
            argv, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=seconds + 0.1 * kill)
        except subprocess.TimeoutExpired:
            process.kill()
        if process.wait() == 0:
            return
        after()
    raise AssertionError(f"not done after {times} kills")
