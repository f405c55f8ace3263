"""A bundle of differences is hardly larger than what changed; the upstream is a real registry."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from mayfly.storage.directory.store import DistributionStore
from tests.clients.programs import Distribution
from tests.support.commands import run_mayfly
from tests.support.images import image_body, push, put
from tests.support.process import Mayfly

COUNT, CHANGED = 60, 3
BASE = [b"shared layer %d" % number * 30_000 for number in range(3)]
NEW_SIZE = 12 * 1024 * 1024
"""Bytes of each changed layer: small beside those of real services."""

HOST = "registry.example"


def _repository(number: int) -> str:
    return f"kolla/service-{number:02}"


def _put(store: DistributionStore, number: int, layer: bytes, tag: str) -> int:
    """Put an image on the shared layers; the bytes that it adds."""
    config = b'{"os": "linux", "architecture": "amd64", "service": %d, "tag": "%s"}' % (
        number,
        tag.encode(),
    )
    for data in (config, layer, *BASE):
        push(store, _repository(number), data)
    body = image_body(config, [*BASE, layer])
    put(store, _repository(number), body, tag)
    return len(config) + len(layer) + len(body)


@dataclass(frozen=True)
class Upgrade:
    """A registry after three of its sixty images changed.

    Attributes:
        upstream: option that leads to it.
        before, after: lists of the images.
        base: a bundle of the first list.
        changed: bytes of content that the second list has and the first has not.
        root: the registry's store.
    """

    upstream: tuple[str, str]
    before: Path
    after: Path
    base: Path
    changed: int
    root: Path


@pytest.fixture(scope="module")
def upgrade(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgrade]:
    """See `Upgrade`."""
    place = tmp_path_factory.mktemp("delta")
    root = place / "root"
    names = [_repository(number) for number in range(COUNT)]
    with closing(DistributionStore(root)) as store:
        for number in range(COUNT):
            _put(store, number, b"service %d" % number * 3000, "1")
        changed = sum(_put(store, n, os.urandom(NEW_SIZE), "2") for n in range(CHANGED))
    before, after = place / "before.txt", place / "after.txt"
    before.write_text("".join(f"{HOST}/{name}:1\n" for name in names))
    tags = [2] * CHANGED + [1] * (COUNT - CHANGED)
    after.write_text(
        "".join(f"{HOST}/{name}:{tag}\n" for name, tag in zip(names, tags, strict=True))
    )
    with Distribution(root, place / "registry") as registry:
        upstream = ("--upstream", f"{HOST}=http://{registry.host}")
        base = place / "base.tar"
        run_mayfly("bundle", "create", before, "-o", base, *upstream)
        yield Upgrade(upstream, before, after, base, changed, root)


@pytest.fixture
def target(upgrade: Upgrade, tmp_path: Path) -> Path:
    """A store with the first list."""
    root = tmp_path / "target"
    run_mayfly("import", upgrade.base, "--root", root)
    return root


@pytest.mark.parametrize("have", ["inventory", "bundle", "url"])
def test_a_difference_is_as_small_as_the_changes(
    have: str,
    upgrade: Upgrade,
    target: Path,
    tmp_path: Path,
    start_mayfly: Callable[..., Mayfly],
) -> None:
    """Within one per cent of the changed bytes, all manifests included; imported, all is whole."""
    delta = tmp_path / "delta.tar"
    known: str | Path = upgrade.base
    if have == "inventory":
        known = tmp_path / "known.txt"
        known.write_text(run_mayfly("inventory", "--root", target))
    elif have == "url":
        known = start_mayfly(root=target, state_dir=tmp_path / "state").url
    create = ("bundle", "create", upgrade.after, "-o", delta, "--have", known)
    run_mayfly(*create, *upgrade.upstream)
    assert upgrade.changed <= delta.stat().st_size <= upgrade.changed * 1.01
    run_mayfly("import", delta, "--root", target)
    run_mayfly("verify", "--root", target)
    whole = tmp_path / "whole.tar"
    run_mayfly("bundle", "create", upgrade.after, "-o", whole, *upgrade.upstream)
    again = tmp_path / "again.tar"
    run_mayfly("bundle", "create", upgrade.after, "-o", again, "--from", target)
    assert again.read_bytes() == whole.read_bytes()
