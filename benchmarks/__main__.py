"""``python -m benchmarks``: Mayfly and the peers that are installed, in turn, several rounds.

Prints medians, and the ratio of each peer to Mayfly. Nothing is asserted: times belong to the
machine. Budgets of the first release: ready in under 0.5 s, under 64 MiB while 50 clients pull.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import load, peers

CLIENTS = 50
LAYERS = 6
LAYER_BYTES = 16 * 2**20

FIGURES = {
    "ready, s": "ready",
    "50 clients pull, MiB/s": "rate",
    "server CPU, s per GiB": "cpu",
    "peak memory, MiB": "peak",
}


def measure(name: str) -> dict[str, float]:
    """One peer, once: start, six layers pushed, fifty clients pull them all."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        peers.serve(name, Path(directory)) as server,
    ):
        digests = load.push_blobs(server.port, "bench/image", LAYERS, LAYER_BYTES)
        before = server.cpu_seconds()
        result = load.fleet(server.port, [f"/v2/bench/image/blobs/{d}" for d in digests], CLIENTS)
        spent = server.cpu_seconds() - before
        return {
            "ready": server.ready_seconds,
            "rate": result.mib_per_second,
            "cpu": spent / (result.received / 2**30),
            "peak": server.peak_mib(),
        }


def main() -> None:
    """Measure, then print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    names = peers.installed()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            print(f"round {number + 1}/{rounds}: {name}", file=sys.stderr)
            runs[name].append(measure(name))
    print(f"{'median of ' + str(rounds):<28}" + "".join(f"{name:>18}" for name in names))
    for title, key in FIGURES.items():
        medians = [statistics.median(run[key] for run in runs[name]) for name in names]
        cells = [f"{m:.2f} ({m / medians[0]:.2f}x)" for m in medians]
        print(f"{title:<28}" + "".join(f"{cell:>18}" for cell in cells))
    most = load.ceiling(CLIENTS, LAYER_BYTES).mib_per_second
    print(f"{'the load by itself, MiB/s':<28}{most:>18.2f}")


if __name__ == "__main__":
    main()
