"""``python -m benchmarks``: Mayfly and its peers, in turn, several rounds, side by side.

Every round takes each row in order, and in each row one registry after the other; their order
changes from round to round. Nothing is asserted: the goals are printed as met or missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from benchmarks import limits, load, report
from benchmarks.bench import Bench, Figures
from benchmarks.goals import Results
from benchmarks.peers import MISSING_BY_NATURE, PEERS
from benchmarks.report import Run
from benchmarks.rows import ROWS


def main() -> None:
    """Measure the rows that the command line names, and print them."""
    asked = _arguments()
    if not load.LOAD.is_file():
        sys.exit("the load is not built: run benchmarks/install (it takes Go)")
    wanted = asked.peers or list(PEERS)
    usable = [name for name in wanted if PEERS[name].path]
    absent = [name for name in wanted if name not in usable]
    missing = dict.fromkeys(absent, "not installed: run benchmarks/install")
    if "mayfly-file" in missing:
        missing["mayfly-file"] = "not built: make dist"
    if not asked.peers:
        missing |= MISSING_BY_NATURE
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="mayfly-bench-", dir=asked.directory) as directory:
        bench = Bench(Path(directory), asked.scale)
        if bench.library is None and "mayfly-nosync" in usable:
            usable.remove("mayfly-nosync")
            missing["mayfly-nosync"] = "there is no C compiler"
        for name, why in missing.items():
            _say(f"left out: {name}, {why}")
        _say("limits of this machine")
        found = limits.measure(bench)
        results, failures = _rounds(bench, asked.only or list(ROWS), usable, asked.rounds)
        run = Run(
            results,
            failures,
            found,
            {name: PEERS[name].version_text() for name in usable},
            bench.ciphers,
            missing,
            asked.rounds,
            asked.scale,
            _command(asked),
            busy,
        )
        print(report.text(run), end="", flush=True)
        if asked.json:
            report.write_json(run, asked.json)
        if asked.markdown:
            report.write_markdown(run, asked.markdown)
        _say("removing the files")
    if failures:
        sys.exit(f"{len(failures)} measurements failed")


def _rounds(
    bench: Bench, rows: list[str], usable: list[str], rounds: int
) -> tuple[Results, list[str]]:
    """Results and failures, in words; that leaves a round without figures."""
    results: Results = {}
    failures: list[str] = []
    for number in range(rounds):
        for row in (ROWS[name] for name in rows):
            able = [
                name for name in usable if name in row.peers and (PEERS[name].tls or not row.tls)
            ]
            turn = number % max(len(able), 1)
            for name in able[turn:] + able[:turn]:
                began = time.monotonic()
                here = f"round {number + 1}: {row.id} {name}"
                figures: Figures = {}
                try:
                    figures = row.measure(bench, PEERS[name], number == 0)
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    failures.append(f"{here}: {' '.join(str(error).split())}")
                    _say(failures[-1])
                else:
                    took = time.monotonic() - began
                    _say(f"{here}: {figures[row.main]:,.1f} {row.main} ({took:.1f} s)")
                results.setdefault(row.id, {n: [] for n in able})[name].append(figures)
    return results, failures


def _command(asked: argparse.Namespace) -> str:
    """The arguments, without the place of the output."""
    words = ["python -m benchmarks", f"--rounds {asked.rounds}"]
    words += [f"--only {','.join(asked.only)}"] if asked.only else []
    words += [f"--peers {','.join(asked.peers)}"] if asked.peers else []
    words += [f"--scale {asked.scale:g}"] if asked.scale != 1 else []
    return " ".join(words)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=_names(ROWS), metavar="ROW,...", help=", ".join(ROWS))
    parser.add_argument("--peers", type=_names(PEERS), metavar="PEER,...", help=", ".join(PEERS))
    parser.add_argument("--scale", type=float, default=1.0, help="of blobs and repositories")
    parser.add_argument("--directory", default="/var/tmp", help="on a disk, for temporary files")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args()


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def read(value: str) -> list[str]:
        names = value.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return read


if __name__ == "__main__":
    main()
