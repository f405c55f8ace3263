"""The rows of copying images from one registry to another, by Mayfly and other tools.

Each has the same task: all images, with their digests, to repositories of the same names.
The memory and CPU of the registries do not count.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
from pathlib import Path

from benchmarks import load, peers
from benchmarks.bench import CPU, DURABLE, PEAK, RATE, Bench, Figures, sync_tree
from benchmarks.load import MIB
from benchmarks.making import SECONDS, TITLE_IMAGES, Images, fill
from benchmarks.peers import PEERS, TAG, CopyOrder, Peer
from benchmarks.server import Server

TITLE = f"copy {TITLE_IMAGES} from distribution"


def measure(target: str, bench: Bench, peer: Peer, verify: bool) -> Figures:
    """Copy the images once with one tool; see `benchmarks.rows.Measure`.

    Args:
        target: the registry that they are copied to; it is empty.
    """
    registry = PEERS["distribution"]
    images = bench.kept(("images",), lambda: Images(bench.directory, bench.scale))
    root = bench.kept(("images", registry.name), lambda: fill(bench, registry, images))
    place = bench.directory / "lists"
    shutil.rmtree(place, ignore_errors=True)  # of an attempt that failed
    place.mkdir()
    with (
        bench.empty() as copied,
        bench.serve(registry, root) as source,
        bench.serve(PEERS[target], copied) as to,
    ):
        order = _order(source, to, images, place)
        assert peer.copy is not None
        os.sync()  # so that this tool does not wait for writes of others
        result = load.run_commands(peer.copy(order), peers.environment(peer, bench.library))
        syncing = sync_tree(copied)
        if verify:
            _check(source, to, images)
    shutil.rmtree(place)
    mib = sum(blob.size for blob in images.blobs.values()) / MIB
    return {
        RATE: mib / result.seconds,
        DURABLE: mib / (result.seconds + syncing),
        SECONDS: result.seconds,
        CPU: result.cpu_seconds / (mib / 1024),
        PEAK: result.peak_kib / 1024,
    }


def _order(source: Server, to: Server, images: Images, place: Path) -> CopyOrder:
    names = tuple(images.images)
    listed, synced = place / "images.txt", place / "sync.yaml"
    listed.write_text("".join(f"{source.address}/{name}:{TAG}\n" for name in names))
    # JSON is YAML.
    wanted = {"tls-verify": False, "images": {name: [TAG] for name in names}}
    synced.write_text(json.dumps({source.address: wanted}))
    return CopyOrder(source.address, to.address, names, listed, synced)


def _check(source: Server, to: Server, images: Images) -> None:
    """See that every image arrived, with its layers.

    Raises:
        RuntimeError: one is missing or another.
    """
    for name, layers in images.images.items():
        path = f"/v2/{name}/manifests/{TAG}"
        if _get(source, "GET", path) != _get(to, "GET", path):
            raise RuntimeError(f"{name} is another image")
        for layer in layers:
            _get(to, "HEAD", f"/v2/{name}/blobs/{layer.digest}")


def _get(server: Server, method: str, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, headers={"Accept": load.OCI_MANIFEST})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{method} {path} answered {answer.status}")
    return body
