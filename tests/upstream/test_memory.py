"""Copies and new bundles take the same memory, however large the blobs are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mayfly.storage.directory.store import DistributionStore
from tests.support.commands import peak_of
from tests.support.images import image_body, push, put
from tests.support.process import Mayfly

APP = "team/app"
MIB = 2**20
SIZES = {"small": MIB // 16, "large": 32 * MIB}
"""Bytes of each of the four layers of an image, which are copied at once."""

ROOM = 24 * MIB
"""Bytes for pieces of four blobs that are received, hashed and sent."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with both images."""
    place = tmp_path_factory.mktemp("memory")
    with closing(DistributionStore(place)) as store:
        push(store, APP, b"{}")
        for tag, size in SIZES.items():
            layers = [tag.encode() + bytes([number]) * size for number in range(4)]
            for layer in layers:
                push(store, APP, layer)
            put(store, APP, image_body(b"{}", layers), tag)
    return place


@pytest.mark.parametrize("where", ["registry", "store", "bundle"])
def test_blobs_pass_in_pieces(
    root: Path, tmp_path: Path, start_mayfly: Callable[..., Mayfly], where: str
) -> None:
    """From a registry to another, to a store, and into a bundle."""
    source = start_mayfly("--read-only", root=root)

    def peak(tag: str, target: object) -> int:
        image = f"{source.host}/{APP}:{tag}"
        if where == "bundle":
            return peak_of("bundle", "create", image, "-o", tmp_path / f"{tag}.tar")
        return peak_of("copy", image, target)

    with contextlib.ExitStack() as stack:
        target: object = tmp_path / "store"
        if where == "registry":
            target = stack.enter_context(Mayfly(tmp_path / "root", tmp_path / "state")).host
        assert peak("large", target) < peak("small", target) + ROOM
