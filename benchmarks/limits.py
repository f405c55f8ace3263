"""The limits of this machine, measured in the same run."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.load import MIB
from benchmarks.peers import PEERS

HASH = "SHA-256 on one core, MiB/s"
DISK = "write and fsync 256 MiB, MiB/s"
LOOPBACK = "sendfile over loopback to the load, 1 connection, MiB/s"

_ROUNDS = 3
_HASHED, _WRITTEN = 512, 256  # MiB


def measure(bench: Bench) -> dict[str, float]:
    """Medians of the limits."""
    found = {
        HASH: statistics.median(_hash() for _ in range(_ROUNDS)),
        DISK: statistics.median(_write(bench.directory) for _ in range(_ROUNDS)),
    }
    bare = PEERS["bare"]
    if bare.path:
        with bench.serve(bare, bench.directory) as server:
            results = [bench.pull(server, "", bench.data.large, repeat=4) for _ in range(_ROUNDS)]
        found[LOOPBACK] = statistics.median(r.bytes / MIB / r.seconds for r in results)
    return found


def _hash() -> float:
    data, digest = os.urandom(MIB), hashlib.sha256()
    began = time.perf_counter()
    for _ in range(_HASHED):
        digest.update(data)
    return _HASHED / (time.perf_counter() - began)


def _write(directory: Path) -> float:
    path, data = directory / "written", os.urandom(MIB)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(_WRITTEN):
            file.write(data)
        os.fsync(file.fileno())
    took = time.perf_counter() - began
    path.unlink()
    return _WRITTEN / took
