"""A bundle of sixty images that share layers, as operators bring one: served where it lies."""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.clients.images import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Images
from tests.clients.programs import Client
from tests.support.commands import run_mayfly
from tests.support.process import Mayfly

IMAGES = 60
CHANGED = 3
OWN_BYTES = 2 * 2**20
FULL_NAME = "io.containerd.image.name"
UPSTREAM = "quay.example"


class Bundle:
    """An OCI archive of images that share the layers of `debian`, each with one of its own."""

    def __init__(self, images: Images, file: Path, version: str, changed: int = IMAGES) -> None:
        self.file = file
        self.digests: dict[str, str] = {}
        self.own_bytes = 0
        base = images.manifest("debian")
        config = json.loads(images.blob(base["config"]["digest"]).read_bytes())
        with tarfile.open(file, "w") as archive:
            self._archive = archive
            self._add("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
            for layer in base["layers"]:
                path = images.blob(layer["digest"])
                archive.add(path, f"blobs/sha256/{layer['digest'].partition(':')[2]}")
            entries = []
            for number in range(IMAGES):
                mark = version if number < changed else "1"
                entry = self._image(config, base["layers"], number, mark)
                name = f"kolla/service{number}"
                self.digests[name] = entry["digest"]
                entries.append({**entry, "annotations": {FULL_NAME: f"{UPSTREAM}/{name}:r"}})
            index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
            self._add("index.json", json.dumps(index).encode())

    def _image(
        self, config: dict[str, Any], layers: list[dict[str, Any]], number: int, mark: str
    ) -> dict[str, Any]:
        layer = BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as own:
            # Bytes that do not repeat, so that a shared or missing block would show.
            content = random.Random(f"{number} {mark}").randbytes(OWN_BYTES)
            member = tarfile.TarInfo(f"srv/service{number}")
            member.size = len(content)
            own.addfile(member, BytesIO(content))
        added = self._blob(OCI_LAYER.removesuffix("+gzip"), layer.getvalue())
        diff_ids = [*config["rootfs"]["diff_ids"], added["digest"]]
        mine = config | {"rootfs": {"type": "layers", "diff_ids": diff_ids}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self._blob(OCI_CONFIG, json.dumps(mine).encode()),
            "layers": [*layers, added],
        }
        if mark != "1":
            self.own_bytes += added["size"]
        return self._blob(OCI_MANIFEST, json.dumps(manifest).encode())

    def _blob(self, media_type: str, data: bytes) -> dict[str, Any]:
        encoded = hashlib.sha256(data).hexdigest()
        self._add(f"blobs/sha256/{encoded}", data)
        return {"mediaType": media_type, "digest": f"sha256:{encoded}", "size": len(data)}

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._archive.addfile(member, BytesIO(data))


@pytest.fixture(scope="module")
def bundle(images: Images, workspace: Path) -> Iterator[Bundle]:
    """The sixty images before the upgrade."""
    made = Bundle(images, workspace / "old.tar", "1")
    yield made
    made.file.unlink()


def size_of(root: Path) -> int:
    """Bytes that a directory takes on the disk."""
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*"))


def test_pulled_in_place(
    docker: Client,
    containerd: Any,
    bundle: Bundle,
    start_mayfly: Callable[..., Mayfly],
    scratch: Path,
) -> None:
    """docker pulls by path, containerd by mirror under the upstream's name; nothing is copied."""
    server = start_mayfly(str(bundle.file))
    before = size_of(server.root)
    target = f"{server.host}/kolla/service7:r"
    assert bundle.digests["kolla/service7"] in docker("pull", target)
    assert "ID=debian" in docker("run", "--rm", "--network=none", target).splitlines()
    docker("image", "rm", target)
    hosts = scratch / "certs.d" / UPSTREAM
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(
        f'server = "https://{UPSTREAM}"\n'
        f'[host."http://{server.host}"]\n  capabilities = ["pull", "resolve"]\n'
    )
    name = f"{UPSTREAM}/kolla/service8:r"
    ctr = containerd.ctr
    ctr("images", "pull", "--hosts-dir", scratch / "certs.d", name)
    assert bundle.digests["kolla/service8"] in ctr("images", "ls", f"name=={name}")
    ctr("images", "rm", "--sync", name)
    assert size_of(server.root) == before


def test_sharing_and_difference(
    images: Images, bundle: Bundle, skopeo: Client, scratch: Path
) -> None:
    """`du` shows the sharing; of three changed images only what changed travels, and completes."""
    run_mayfly("import", bundle.file, "--root", scratch / "target")
    usage = json.loads(run_mayfly("du", "--root", scratch / "target", "--json"))
    shared = sum(layer["size"] for layer in images.manifest("debian")["layers"])
    assert usage["images"] == IMAGES
    assert usage["saved"] >= (IMAGES - 1) * shared
    upgraded = Bundle(images, scratch / "new.tar", "2", changed=CHANGED)
    run_mayfly("import", upgraded.file, "--root", scratch / "source")
    run_mayfly(
        *("export", "--all", "--root", scratch / "source"),
        *("-o", scratch / "delta.tar", "--have", bundle.file),
    )
    changed = upgraded.own_bytes
    assert changed <= (scratch / "delta.tar").stat().st_size <= changed * 1.05
    run_mayfly("import", scratch / "delta.tar", "--root", scratch / "target")
    assert "0 faults" in run_mayfly("verify", "--root", scratch / "target")
    with Mayfly(scratch / "target", scratch / "state") as server:
        for name, digest in upgraded.digests.items():
            found = json.loads(
                skopeo("inspect", "--tls-verify=false", f"docker://{server.host}/{name}:r")
            )
            assert found["Digest"] == digest
