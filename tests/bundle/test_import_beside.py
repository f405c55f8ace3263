"""Imports beside each other, and beside a server that is pushed to and collects."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mayfly.storage.bundle.open import open_bundles
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import BlobUnknown
from mayfly.storage.transfer import importing
from mayfly.storage.upkeep.collect import collect
from mayfly.storage.upkeep.verify import verify
from tests.bundle.builders import Layout, layers
from tests.registry.test_collecting import Pusher
from tests.support.commands import mayfly, started
from tests.support.process import PATIENCE, Mayfly

IMAGES = 30


@pytest.fixture
def layout() -> Layout:
    """Images that share a layer and have one of their own."""
    made = Layout()
    shared, *own = layers("shared", *(f"own{number}" for number in range(IMAGES)))
    for number, layer in enumerate(own):
        made.name(made.image(shared, layer), f"quay.example/kolla/service{number}:1")
    return made


def test_beside_a_server(
    layout: Layout, start_mayfly: Callable[..., Mayfly], tmp_path: Path
) -> None:
    """Two imports of one bundle at once, and pushes: all is there afterwards, and all is whole."""
    bundle = layout.write_tar(tmp_path / "bundle.tar")
    server = start_mayfly("--gc-interval", "1s", "--gc-grace", "60s")
    pushers = [Pusher(server.host, number, seed=1) for number in range(2)]
    done = threading.Event()

    def going() -> bool:
        return not done.is_set()

    threads = [threading.Thread(target=pusher.work, args=(going,)) for pusher in pushers]
    for thread in threads:
        thread.start()
    words = ("import", bundle, "--root", server.root, "--json")
    try:
        with started(*words) as first, started(*words) as second:
            imports = [first, second]
            ended = [process.communicate(timeout=PATIENCE) for process in imports]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    for process, (said, error) in zip(imports, ended, strict=True):
        assert process.returncode == 0, error
        assert len(json.loads(said.splitlines()[-1])["images"]) == IMAGES
    for pusher in pushers:
        assert pusher.kept
        pusher.check()
    for number, entry in enumerate(layout.entries):
        path = f"/v2/kolla/service{number}/manifests/1"
        code, body = pushers[0].ask("GET", path)
        assert (code, body) == (200, layout.files[f"blobs/{entry['digest'].replace(':', '/')}"])
    found = mayfly("verify", "--root", server.root)
    assert found.returncode == 0, found.stdout


def test_collected_meanwhile(layout: Layout, tmp_path: Path) -> None:
    """What a collector took before anything referred to it is missed, not passed over."""
    root = tmp_path / "root"
    bundle = layout.write_tar(tmp_path / "bundle.tar")
    with (
        closing(DistributionStore(root, allow_absent_platforms=True)) as store,
        closing(DistributionStore(root)) as collecting,
        closing(open_bundles([bundle])) as bundles,
    ):
        freed: list[Digest] = []

        def collect_meanwhile(size: int) -> None:
            # With a grace that spares nothing, as no operator should set it.
            freed.extend(collect(collecting, -1).blobs)

        planned = importing.plan(store, bundles.layer)
        with pytest.raises(BlobUnknown, match="import again"):
            importing.carry_out(store, bundles.layer, planned, collect_meanwhile, workers=1)
        assert freed
        assert verify(store).findings == ()
        planned = importing.plan(store, bundles.layer)
        assert len(importing.carry_out(store, bundles.layer, planned).names) == IMAGES
        assert verify(store).findings == ()


def test_images_come_one_by_one(layout: Layout, tmp_path: Path) -> None:
    """Where a bundle's last image is corrupt, those before it are in the store, and only those."""
    root = tmp_path / "root"
    last = layout.entries[-1]
    manifest = json.loads(layout.files[f"blobs/{last['digest'].replace(':', '/')}"])
    name = f"blobs/{manifest['layers'][-1]['digest'].replace(':', '/')}"
    layout.files[name] = bytes(len(layout.files[name]))
    names = sorted(f"kolla/service{number}" for number in range(IMAGES))
    before = names[: names.index(f"kolla/service{IMAGES - 1}")]
    done = mayfly("import", layout.write_tar(tmp_path / "bundle.tar"), "--root", root)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].startswith(f"mayfly: {tmp_path}/bundle.tar: blob sha256:")
    listed = json.loads(mayfly("ls", "--root", root, "--json").stdout)["images"]
    assert [image["name"] for image in listed] == [f"{name}:1" for name in before]
    assert mayfly("verify", "--root", root).returncode == 0
