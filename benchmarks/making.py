"""The rows of making a bundle: the same images from the same registry, by Mayfly and other tools.

Each has to make one file, an OCI layout in a tar. Tools that make a directory are followed
by tar; `UNPACKED` is their rate without it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import BinaryIO

from benchmarks import load, peers
from benchmarks.bench import CPU, DURABLE, PEAK, RATE, Bench, Figures, sync_tree
from benchmarks.load import MIB, Blob
from benchmarks.peers import PEERS, TAG, Order, Peer
from benchmarks.server import Server

UNPACKED = "MiB/s without tar"
SECONDS = "s"

IMAGES = 24
_BASE = (64, 32, 16, 8)
"""MiB of the layers that all images share."""

_OWN = (8, 4)
"""MiB of an image's own layers."""

TITLE_IMAGES = f"{IMAGES} images, {sum(_BASE)} MiB shared and {sum(_OWN)} MiB of their own,"
TITLE = f"make a bundle of {TITLE_IMAGES} from distribution"

_TOGETHER = "bench/all"


class Images:
    """The content of the registries: layers as gzip, of random bytes.

    Args:
        directory: for the file of all layers.
        scale: see `load.Data`.
    """

    def __init__(self, directory: Path, scale: float) -> None:
        self.path = directory / "images"
        with self.path.open("wb") as file:
            base = [_layer(file, size, scale) for size in _BASE]
            self.images = {
                f"bench/image-{number:02}": [*base, *(_layer(file, size, scale) for size in _OWN)]
                for number in range(IMAGES)
            }

    @property
    def blobs(self) -> dict[str, Blob]:
        """Every layer once."""
        return {blob.digest: blob for layers in self.images.values() for blob in layers}

    @property
    def tags(self) -> dict[str, str]:
        """The tag of each image in the one repository that has all."""
        return {name: name.rpartition("/")[2] for name in self.images}

    def put(self, server: Server) -> None:
        """Push all: each image into a repository of its own, and into one together."""
        every = list(self.blobs.values())
        load.run(server, "push-put", "", data=str(self.path), blobs=every, clients=1)
        load.mount(server, _TOGETHER, every)
        for name, layers in self.images.items():
            load.mount(server, name, layers)
            for repository, tag in ((name, TAG), (_TOGETHER, self.tags[name])):
                load.put_image(server, "", tag, layers, repository, load.OCI_GZIP_LAYER)


def _layer(file: BinaryIO, mib: int, scale: float) -> Blob:
    """Write a layer with one file of random bytes."""
    size = max(1, round(mib * scale)) * MIB
    made = io.BytesIO()
    # Without a name and a time in its header; stored, as random bytes cannot be compressed.
    with (
        gzip.GzipFile("", "wb", 0, made, 0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        member = tarfile.TarInfo("data")
        member.size = size
        tar.addfile(member, io.BytesIO(os.urandom(size)))
    data = made.getbuffer()
    offset = file.tell()
    file.write(data)
    return Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", offset, len(data))


def measure(upstream: str, tls: bool, bench: Bench, peer: Peer, verify: bool) -> Figures:
    """Make the bundle once with one tool; see `benchmarks.rows.Measure`."""
    registry = PEERS[upstream]
    images = bench.kept(("images",), lambda: Images(bench.directory, bench.scale))
    root = bench.kept(("images", upstream), lambda: fill(bench, registry, images))
    with bench.empty() as place, bench.serve(registry, root, tls=tls) as server:
        layout, made = place / "layout", place / "made"
        made.mkdir()
        order = _order(server, images, place, layout, made / "set.tar")
        assert peer.make is not None
        added = peers.environment(peer, bench.library)
        added |= {"SSL_CERT_FILE": str(server.ca)} if server.ca else {}
        os.sync()  # so that this tool does not wait for writes of others
        result = load.run_commands(peer.make(order), added)
        seconds, cpu = result.seconds, result.cpu_seconds
        if layout.exists():
            packing = load.run_commands(
                [["tar", "-C", str(layout), "-cf", str(order.output), "."]], {}
            )
            seconds, cpu = seconds + packing.seconds, cpu + packing.cpu_seconds
        syncing = sync_tree(made)
        if verify:
            _check(order.output, images)
    mib = sum(blob.size for blob in images.blobs.values()) / MIB
    return {
        RATE: mib / seconds,
        UNPACKED: mib / result.seconds,
        DURABLE: mib / (seconds + syncing),
        SECONDS: seconds,
        CPU: cpu / (mib / 1024),
        PEAK: result.peak_kib / 1024,
    }


def fill(bench: Bench, registry: Peer, images: Images) -> Path:
    """A registry's store with the images, filled by itself."""
    root = bench.directory / f"images-{registry.name}"
    shutil.rmtree(root, ignore_errors=True)  # of an attempt that failed
    root.mkdir()
    with bench.serve(registry, root) as server:
        images.put(server)
    os.sync()
    return root


def _order(server: Server, images: Images, place: Path, layout: Path, output: Path) -> Order:
    names = tuple(images.images)
    listed = place / "images.txt"
    listed.write_text("".join(f"{server.address}/{name}:{TAG}\n" for name in names))
    certificates = place / "certificates"
    certificates.mkdir()
    if server.ca:
        shutil.copy(server.ca, certificates / "ca.crt")
    tags = tuple(images.tags.values())
    return Order(
        server.address, names, _TOGETHER, tags, listed, server.ca, certificates, layout, output
    )


def _check(made: Path, images: Images) -> None:
    """See that a tar has every layer, whole.

    Raises:
        RuntimeError: one is missing or another.
    """
    found = set()
    with tarfile.open(made) as tar:
        for member in tar:
            if "blobs/sha256/" in member.name and (file := tar.extractfile(member)):
                digest = hashlib.sha256(file.read()).hexdigest()
                if not member.name.endswith(digest):
                    raise RuntimeError(f"{member.name} has another digest")
                found.add(f"sha256:{digest}")
    if missing := images.blobs.keys() - found:
        raise RuntimeError(f"{len(missing)} layers are missing: {min(missing)}")
