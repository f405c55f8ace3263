"""Bundles made by hand: layers that are real tars, layouts, and tars of any shape, also broken."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mayfly.storage.bundle.verified import PieceProof
from mayfly.storage.digest import Digest, parse
from mayfly.storage.interface import Content, Extent
from mayfly.storage.manifest import OCI_INDEX, OCI_MANIFEST
from tests.support.images import digest_of

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
FULL_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"

Object = dict[str, Any]


def tar(files: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of these files, in this order."""
    return tar_of(*[(tar_info(name, data), data) for name, data in files.items()], format=format)


def tar_info(name: str, data: bytes = b"", **fields: Any) -> tarfile.TarInfo:
    """A member's header; ``fields`` are set on it."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tar_of(
    *members: tuple[tarfile.TarInfo, bytes] | tarfile.TarInfo, format: int = tarfile.PAX_FORMAT
) -> bytes:
    """A tar of any members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def symlink(name: str, target: str) -> tarfile.TarInfo:
    """A symbolic link."""
    return tar_info(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tarfile.TarInfo:
    """A hard link."""
    return tar_info(name, type=tarfile.LNKTYPE, linkname=target)


def document(value: object) -> bytes:
    """A JSON document."""
    return json.dumps(value).encode()


class Layout:
    """An OCI layout in memory: file name → bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": document({"imageLayoutVersion": "1.0.0"})}
        self.entries: list[Object] = []

    def add(self, data: bytes, media_type: str) -> Object:
        """Store content; its descriptor."""
        digest = digest_of(data)
        self.files[blob_name(digest)] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def image(
        self, *layers: bytes, architecture: str = "amd64", compress: bool = False, **fields: Any
    ) -> Object:
        """Store an image of these layers; its descriptor."""
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.add(document(config), CONFIG_TYPE),
            "layers": [
                self.add(gzip.compress(layer, mtime=0), f"{LAYER_TYPE}+gzip")
                if compress
                else self.add(layer, LAYER_TYPE)
                for layer in layers
            ],
        }
        return self.add(document(manifest | fields), OCI_MANIFEST)

    def index(self, *children: Object, **fields: Any) -> Object:
        """Store an index of what was stored before; its descriptor."""
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(children)}
        return self.add(document(index | fields), OCI_INDEX)

    def name(self, descriptor: Object, name: str | None = None, **annotations: str) -> Digest:
        """List an image in ``index.json``, under its full name or with other annotations."""
        known = dict(annotations) | ({FULL_NAME: name} if name else {})
        self.entries.append(descriptor | ({"annotations": known} if known else {}))
        return parse(descriptor["digest"])

    def all_files(self) -> dict[str, bytes]:
        """Every file of the layout, the index last as tools write it."""
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self.entries}
        return self.files | {"index.json": document(index)}

    def write_directory(self, path: Path) -> Path:
        """The layout as a directory."""
        for name, data in self.all_files().items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path

    def write_tar(self, path: Path, format: int = tarfile.PAX_FORMAT) -> Path:
        """The layout as a tar."""
        path.write_bytes(tar(self.all_files(), format))
        return path


def docker_archive(
    *images: tuple[list[str], list[bytes]],
    compress: bool = False,
    name_layer: Any = lambda data: f"{hashlib.sha1(data).hexdigest() * 2}"[:64] + "/layer.tar",
) -> dict[str, bytes]:
    """The files of a ``docker save`` of before 25: names and uncompressed layers of each image."""
    files: dict[str, bytes] = {}
    index = []
    for names, layers in images:
        diff_ids = [digest_of(layer) for layer in layers]
        config = document({"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        stored = [gzip.compress(layer, mtime=0) if compress else layer for layer in layers]
        members = [name_layer(data) for data in stored]
        files |= dict(zip(members, stored, strict=True))
        config_name = digest_of(config).removeprefix("sha256:") + ".json"
        files[config_name] = config
        index.append({"Config": config_name, "RepoTags": names or None, "Layers": members})
    return files | {"manifest.json": document(index)}


def blob_name(digest: str) -> str:
    """The file of content in a layout."""
    return f"blobs/{digest.replace(':', '/')}"


def read(content: Content) -> bytes:
    """All bytes of content."""
    with content.open() as opened:
        return opened.read(0, content.size)


def layers(*texts: str) -> list[bytes]:
    """Layers of one small file each."""
    return [tar({f"etc/{text}": text.encode() * 50}) for text in texts]


def write(path: Path, files: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> Path:
    """A tar of these files at ``path``."""
    path.write_bytes(tar(dict(files)))
    return path


def proof_of(extent: Extent) -> PieceProof:
    """The proof of a bundle's content; there must be one."""
    assert isinstance(extent.proof, PieceProof)
    return extent.proof
