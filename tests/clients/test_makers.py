"""Bundles of other makers, served where they lie, and pulled by real clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundle.makers import APP, MAKERS, content, write
from tests.clients.programs import Client, Containerd
from tests.support.process import Mayfly, need


@pytest.mark.parametrize("name", MAKERS)
def test_pulled(
    name: str, start_mayfly: Callable[..., Mayfly], skopeo: Client, home: Path, scratch: Path
) -> None:
    """crane and skopeo pull an image and an index byte for byte; the log names the maker."""
    need("crane")
    maker, made = MAKERS[name], content()
    paths = write(maker, maker.make(made), scratch)
    server = start_mayfly(*map(str, paths))
    crane = Client("crane", home, "--insecure")
    for reference, image in made.images.items():
        here = f"{server.host}/{reference.partition('/')[2]}"
        assert crane("digest", here).strip() == image["digest"]
        target = scratch / f"pulled-{image['digest'][7:19]}"
        skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{here}", f"dir:{target}")
        for blob in made.blobs(image):
            file = target / blob["digest"].removeprefix("sha256:")
            assert file.read_bytes() == made.data(blob["digest"])
    assert f"it was made by {maker.name}" in server.output()
    assert not [path for path in server.root.rglob("data") if "blobs" in path.parts]


def test_containerd(
    containerd: Containerd, start_mayfly: Callable[..., Mayfly], scratch: Path
) -> None:
    """containerd pulls from a hauler's store by the upstream's own name, with its ``ns``."""
    maker, made = MAKERS["hauler-store"], content()
    server = start_mayfly(*map(str, write(maker, maker.make(made), scratch)))
    hosts = scratch / "certs.d" / "quay.example"
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(
        'server = "https://quay.example"\n'
        f'[host."http://{server.host}"]\n  capabilities = ["pull", "resolve"]\n'
    )
    containerd.ctr("images", "pull", "--hosts-dir", scratch / "certs.d", f"{APP}:1")
    listed = containerd.ctr("images", "ls", f"name=={APP}:1")
    assert json.dumps(made.images[f"{APP}:1"]["digest"]).strip('"') in listed
    containerd.ctr("images", "rm", "--sync", f"{APP}:1")
