"""Run the suite: `python -m tests [OPTIONS of pytest]`, which is what `make test` does.

Two runs of pytest, one after the other:

1. Tests side by side in several processes (pytest-xdist). Modules stay whole, since their tests
   share servers and daemons; `tests/conftest.py` names the exceptions.
2. Tests marked ``alone``, one at a time with nothing beside them: they measure time, memory or the
   processor, and neighbours would change what they measure.

Both run to their end, whatever the first one finds. The exit code is pytest's; "no tests were
collected" (5) only if neither run had any.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from tests.support.process import REPO

NO_TESTS = 5

SIDE_BY_SIDE = ("-m", "not alone", "--dist=loadscope", "--no-loadscope-reorder")
"""Options of the first run, besides the number of processes."""

PER_CPU = 4
"""Processes for each processor: many tests wait for timeouts, disks and daemons. With three,
and little else to do, almost a fifth of the time of the processors was left over."""


def main(options: Sequence[str]) -> int:
    """Run both; the exit code."""
    workers = len(os.sched_getaffinity(0)) * PER_CPU
    first = [*SIDE_BY_SIDE, f"--numprocesses={workers}"]
    # pytest's own directories are shared and tidied by all of its processes on a machine, and one
    # that loses such a race warns at its exit, which is an error here.
    top = tempfile.mkdtemp(prefix="tests-")
    try:
        codes = {
            _pytest("side by side", [*first, f"--basetemp={top}/a", *options]),
            _pytest("alone", ["-m", "alone", f"--basetemp={top}/b", *options]),
        }
    finally:
        # Some tests leave trees that are deeper than shutil.rmtree can go.
        subprocess.run(["rm", "-rf", top])
    failures = codes - {0, NO_TESTS}
    return max(failures) if failures else min(codes)


def _pytest(title: str, options: Sequence[str]) -> int:
    print(f"tests {title}: pytest {' '.join(options)}", flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", *options], cwd=REPO).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
