"""Attacks by the layers that `inspect --files` and `diff --files` read."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mayfly.storage.directory.store import DistributionStore
from tests.hostile.harness import Hostile
from tests.support.images import image_body, push, put

MIB = 1024 * 1024
CONFIG = json.dumps({"os": "linux", "architecture": "amd64"}).encode()


def _header(name: str, kind: bytes = b"0", size: int = 0) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.PAX_FORMAT)


def _packed(pieces: Iterator[bytes]) -> bytes:
    output = io.BytesIO()
    with gzip.GzipFile(fileobj=output, mode="wb", compresslevel=1) as file:
        for piece in pieces:
            file.write(piece)
    return output.getvalue()


def many_files() -> Iterator[bytes]:
    """1.2 million empty files."""
    for number in range(1_200_000):
        if number % 10_000 == 0:
            block = bytearray(_header("0000000"))
            rest = sum(block[7:148]) + 8 * 32 + sum(block[156:])
        block[:7] = name = b"%07d" % number
        block[148:156] = b"%06o\0 " % (sum(name) + rest)
        yield bytes(block)


def long_header() -> Iterator[bytes]:
    """A pax header of 1 GiB."""
    yield _header("x", b"x", 1024 * MIB)
    for _ in range(1024):
        yield bytes(MIB)


def large_file() -> Iterator[bytes]:
    """A file of 3 GiB of zeros in a small layer."""
    yield _header("zeros", size=3 * 1024 * MIB)
    for _ in range(3 * 1024):
        yield bytes(MIB)


def deep() -> Iterator[bytes]:
    """Twenty thousand directories, each path 2000 deep."""
    for number in range(20_000):
        yield _header("a/" * 1995 + f"{number}", b"5")


@pytest.mark.parametrize(
    ("attack", "growth"),
    [(many_files, 450), (long_header, 48), (large_file, 48), (deep, 128)],
)
def test_layer(
    hostile: Hostile, tmp_path: Path, attack: Callable[[], Iterator[bytes]], growth: float
) -> None:
    """Memory has a bound, and the layer is named in one line."""
    layer = _packed(attack())
    with closing(DistributionStore(tmp_path / "root")) as store:
        for data in (CONFIG, layer):
            push(store, "app", data)
        put(store, "app", image_body(CONFIG, [layer]), "1")
    done = hostile.command(
        f"inspect --files: {attack.__doc__}", "inspect", "app:1", "--files",
        "--root", tmp_path / "root", before="new", growth=growth, timeout=300,
    )  # fmt: skip
    if attack is not deep:
        assert done.returncode == 4
        assert "layer 1: " in done.stderr
        assert done.stderr.count("\n") == 1
