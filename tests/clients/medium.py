"""An image of some twenty megabytes for tests that send it many times, made of layers at hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.images import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    REF_NAME,
    Images,
    blob_path,
    sha256,
)


@dataclass(frozen=True)
class Medium:
    """An OCI layout with one image, ``medium``, of three layers.

    Attributes:
        digest: of its manifest.
        id: of its configuration: what docker and podman call the image.
        blobs: its layers and configuration → their sizes.
    """

    layout: Path
    digest: str
    id: str
    blobs: dict[str, int]


def make_medium(images: Images, layout: Path) -> Medium:
    """Two layers of the small image, and above them the one with Python's library."""
    (layout / "blobs/sha256").mkdir(parents=True)
    layers, diff_ids = [], []
    for name, chosen in (("small", slice(0, 2)), ("debian", slice(2, 3))):
        manifest = images.manifest(name)
        config = json.loads(images.blob(manifest["config"]["digest"]).read_bytes())
        layers += manifest["layers"][chosen]
        diff_ids += config["rootfs"]["diff_ids"][chosen]
    for layer in layers:
        shutil.copyfile(images.blob(layer["digest"]), blob_path(layout, layer["digest"]))
    config["rootfs"]["diff_ids"] = diff_ids
    described = _add(layout, OCI_CONFIG, config)
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": layers}
    manifest = _add(layout, OCI_MANIFEST, body)
    entry = manifest | {"annotations": {REF_NAME: "medium"}}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    blobs = {d["digest"]: d["size"] for d in (described, *layers)}
    return Medium(layout, manifest["digest"], described["digest"], blobs)


def _add(layout: Path, media_type: str, value: dict[str, Any]) -> dict[str, Any]:
    file = layout / "document.json"
    file.write_text(json.dumps(value))
    digest, size = sha256(file), file.stat().st_size
    file.rename(blob_path(layout, digest))
    return {"mediaType": media_type, "digest": digest, "size": size}
