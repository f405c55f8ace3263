"""The server is killed at any moment, again and again: nothing acknowledged is lost.

`make soak` runs the long form of MAYFLY_SOAK_ROUNDS kills.
"""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bundle.builders import Layout, layers
from tests.faults.crash_model import blobs_in
from tests.faults.crash_world import World

SOAK = int(os.environ.get("MAYFLY_SOAK_ROUNDS", "0"))
"""How many times to kill; the short form kills a few times."""

ROUNDS = SOAK or 12
ROUNDS_OVER_A_BUNDLE = SOAK // 10 or 2
STORES = int(os.environ.get("MAYFLY_SOAK_STORES", "2"))
"""Beaten at the same time."""

SEED = os.environ.get("MAYFLY_SOAK_SEED") or str(random.randrange(2**32))
"""Seed of the clients' steps and of the server's ends; that of an earlier run repeats its plan."""


def _run(worlds: list[World], rounds: int) -> None:
    """Beat the stores at the same time, and say what was done."""
    print(f"MAYFLY_SOAK_SEED={SEED}")
    began = time.monotonic()
    with ThreadPoolExecutor(len(worlds)) as pool:
        jobs = [pool.submit(world.run, rounds // len(worlds)) for world in worlds]
    for job, world in zip(jobs, worlds, strict=True):
        print(f"{world.figures}; {(time.monotonic() - began) / 60:.1f} minutes")
        job.result()


def test_nothing_acknowledged_is_lost(workspace: Path) -> None:
    """Blobs, manifests, tags, deletions and uploads are, after each kill, as clients were told."""
    worlds = []
    for number in range(STORES):
        home = workspace / f"crash{number}"
        home.mkdir()
        worlds.append(World(home, f"{SEED} {number}"))
    _run(worlds, ROUNDS)


def test_nothing_is_lost_over_a_bundle(workspace: Path) -> None:
    """The same of an overlay: a bundle's images are moved, deleted and pushed over."""
    home = workspace / "crash-over-a-bundle"
    home.mkdir()
    bundle = Layout()
    images = [bundle.image(*layers(f"{tag} one", f"{tag} two")) for tag in ("t0", "t1")]
    for number, image in enumerate(images):
        bundle.name(image, f"example.org/client0/app:t{number}")
    world = World(home, SEED, str(bundle.write_tar(home / "bundle.tar")))
    contents = {f"sha256:{name.rpartition('/')[2]}": data for name, data in bundle.files.items()}
    for number, image in enumerate(images):
        body = contents[image["digest"]]
        blobs = [contents[digest] for digest in blobs_in(body)]
        world.lies_below("client0/app", f"t{number}", blobs, body)
    _run([world], ROUNDS_OVER_A_BUNDLE)
