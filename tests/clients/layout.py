"""OCI layouts of images made on the spot, for tests that need no real package tree."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

from tests.clients.images import ARCHITECTURE, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, REF_NAME

FULL_NAME = "io.containerd.image.name"


class Layout:
    """An OCI layout that images are added to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs = directory / "blobs/sha256"
        self._blobs.mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._entries: list[dict[str, Any]] = []

    def add(self, name: str, *layers: bytes, **config: object) -> str:
        """An image of these layers (tar files); its digest."""
        described = [self._blob(OCI_LAYER, gzip.compress(layer, 1, mtime=0)) for layer in layers]
        diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        document = {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/bin:/bin"], **config},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self._blob(OCI_CONFIG, json.dumps(document).encode()),
            "layers": described,
        }
        entry = self._blob(OCI_MANIFEST, json.dumps(manifest).encode())
        self._entries.append({**entry, "annotations": {REF_NAME: name, FULL_NAME: name}})
        index = {"schemaVersion": 2, "manifests": self._entries}
        (self.directory / "index.json").write_text(json.dumps(index))
        return str(entry["digest"])

    def archive(self) -> Path:
        """The layout as one tar file."""
        made = self.directory.with_suffix(".tar")
        with tarfile.open(made, "w") as archive:
            archive.add(self.directory, ".")
        return made

    def _blob(self, media_type: str, data: bytes) -> dict[str, Any]:
        encoded = hashlib.sha256(data).hexdigest()
        (self._blobs / encoded).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{encoded}", "size": len(data)}


def layer(files: dict[str, bytes | Path], owned: tuple[str, ...] = ()) -> bytes:
    """A layer: path → content, or the file to copy; ``owned`` are directories of user 65532."""
    raw = BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        made: set[str] = set()
        for path, content in sorted(files.items()):
            _parents(archive, path, made)
            data = content if isinstance(content, bytes) else content.read_bytes()
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, BytesIO(data))
        for path in owned:
            _parents(archive, path, made)
            member = tarfile.TarInfo(path)
            member.type, member.mode, member.uid, member.gid = tarfile.DIRTYPE, 0o755, 65532, 65532
            archive.addfile(member)
    return raw.getvalue()


def _parents(archive: tarfile.TarFile, path: str, made: set[str]) -> None:
    parent = os.path.dirname(path)  # noqa: PTH120 - a name in an archive
    if parent and parent not in made:
        _parents(archive, parent, made)
        made.add(parent)
        member = tarfile.TarInfo(parent)
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(member)
