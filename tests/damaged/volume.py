"""A registry's directory with odd and damaged images, each in a repository of its own.

Files are written as registry:2 writes them. For a volume that Mayfly wrote, the records of the
verified sizes are added before anything is damaged.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.images import digest_of

OCI = "application/vnd.oci.image"
MANIFEST, INDEX = f"{OCI}.manifest.v1+json", f"{OCI}.index.v1+json"
CONFIG, LAYER = f"{OCI}.config.v1+json", f"{OCI}.layer.v1.tar+gzip"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

Document = dict[str, Any]


class Repository:
    """One repository of the volume, with one image tagged v1.

    Attributes:
        name: ``odd/<case>``.
        manifest: the digest of its image.
        blobs: the digests of its config and layer.
    """

    def __init__(self, volume: Path, name: str) -> None:
        self.name = name
        self.base = volume / "docker/registry/v2"
        self.root = self.base / "repositories" / name
        self.config = self.blob(b'{"os":"linux","of":"%s"}' % name.encode())
        self.layer = self.blob(f"the layer of {name} ".encode() * 40)
        self.blobs = (self.config, self.layer)
        self.manifest = ""
        self.put()

    def data(self, digest: str) -> Path:
        """The file of a blob."""
        encoded = digest.partition(":")[2]
        return self.base / "blobs/sha256" / encoded[:2] / encoded / "data"

    def layer_link(self, digest: str) -> Path:
        """The link of a blob."""
        return self.root / "_layers/sha256" / digest.partition(":")[2] / "link"

    def revision_link(self, digest: str) -> Path:
        """The link of a manifest."""
        return self.root / "_manifests/revisions/sha256" / digest.partition(":")[2] / "link"

    @property
    def tag_link(self) -> Path:
        """The link of the tag."""
        return self.root / "_manifests/tags/v1/current/link"

    def blob(self, data: bytes) -> str:
        """Write a blob and link it."""
        digest = self._store(data)
        _write(self.layer_link(digest), digest.encode())
        return digest

    def image(self, **fields: Any) -> Document:
        """The document of the image; ``fields`` take the place of others, None takes them away."""
        found = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.descriptor(self.config, CONFIG),
            "layers": [self.descriptor(self.layer, LAYER)],
        }
        return {k: v for k, v in (found | fields).items() if v is not ...}

    def descriptor(self, digest: str, media_type: str, **fields: Any) -> Document:
        """The descriptor of a blob."""
        size = self.data(digest).stat().st_size
        found = {"mediaType": media_type, "digest": digest, "size": size} | fields
        return {k: v for k, v in found.items() if v is not ...}

    def put(self, document: Document | None = None, *, tag: bool = True) -> str:
        """Write a manifest, in the place of the one before if it is tagged."""
        body = json.dumps(document or self.image()).encode()
        digest = self._store(body)
        _write(self.revision_link(digest), digest.encode())
        if tag:
            shutil.rmtree(self.root / "_manifests/tags", ignore_errors=True)
            if self.manifest and self.manifest != digest:
                shutil.rmtree(self.revision_link(self.manifest).parent)
            _write(self.tag_link.parents[1] / "index/sha256" / digest[7:] / "link", digest.encode())
            _write(self.tag_link, digest.encode())
            self.manifest = digest
        return digest

    def _store(self, data: bytes) -> str:
        digest = digest_of(data)
        _write(self.data(digest), data)
        return digest


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _cut(path: Path) -> None:
    os.truncate(path, 30)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _artefact(repository: Repository, **fields: Any) -> None:
    repository.put(repository.image(**fields))


def _capitals(repository: Repository) -> None:
    document = repository.image()
    repository.put({k[0].upper() + k[1:]: v for k, v in document.items()})


def _index(repository: Repository, *entries: Document, **fields: Any) -> None:
    repository.put({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)} | fields)


def _left_out(repository: Repository) -> None:
    child = repository.put(tag=False)
    absent = {"mediaType": MANIFEST, "digest": digest_of(b"arm64"), "size": 5}
    here = {"mediaType": MANIFEST, "digest": child, "size": repository.data(child).stat().st_size}
    _index(repository, here, absent)
    _write(repository.revision_link(child), child.encode())


def _of_blobs(repository: Repository) -> None:
    _index(repository, *(repository.descriptor(d, LAYER) for d in repository.blobs))


def _schema1(repository: Repository) -> None:
    repository.put(
        {
            "schemaVersion": 1,
            "name": repository.name,
            "tag": "v1",
            "architecture": "amd64",
            "fsLayers": [{"blobSum": repository.layer}],
            "history": [{"v1Compatibility": "{}"}],
        }
    )


def _foreign_layer(repository: Repository) -> None:
    windows = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": digest_of(b"windows"),
        "size": 7,
        "urls": ["https://example.com/windows"],
    }
    _artefact(repository, layers=[repository.descriptor(repository.layer, LAYER), windows])


def _by_digest(repository: Repository) -> None:
    shutil.rmtree(repository.root / "_manifests/tags")
    repository.data(repository.layer).unlink()


def _uploads(repository: Repository) -> None:
    uploads = repository.root / "_uploads"
    _write(uploads / "not-a-uuid/startedat", b"\xff\xfe")
    _write(uploads / "6a2f41a3-c54c-4a1b-9dbc-5ca4b9a2f0ee/startedat", b"yesterday")
    (uploads / "7a2f41a3-c54c-4a1b-9dbc-5ca4b9a2f0ee").write_bytes(b"a file")


def _strangers(repository: Repository) -> None:
    tags = repository.root / "_manifests/tags"
    _write(tags / "lost+found/current/link", b"x")
    _write(tags / ".nfs0001", b"x")
    (tags / os.fsdecode(b"\xff\xfe")).mkdir()
    (repository.root / "_layers/sha256/core.1234").write_bytes(b"x")
    _write(repository.root / "_manifests/revisions/sha384/abc/link", b"x")
    (repository.root / "gone").symlink_to("nowhere")
    _write(repository.data(repository.layer).with_name("data.bak"), b"x")
    (repository.root / os.fsdecode(b"\xff\xfe")).mkdir()


def _tag_is_a_file(repository: Repository) -> None:
    tag = repository.tag_link.parents[1]
    shutil.rmtree(tag)
    tag.write_bytes(b"x")


def _of(file: str, damage: Callable[[Path], None]) -> Callable[[Repository], None]:
    """Damage to one file of an image."""

    def apply(repository: Repository) -> None:
        damage(
            {
                "manifest": repository.data(repository.manifest),
                "layer": repository.data(repository.layer),
                "config": repository.data(repository.config),
                "layer link": repository.layer_link(repository.layer),
                "manifest link": repository.revision_link(repository.manifest),
                "tag link": repository.tag_link,
            }[file]
        )

    return apply


CASES: dict[str, Callable[[Repository], None]] = {
    "whole": lambda r: None,
    "layers-null": lambda r: _artefact(r, layers=None),
    "layers-absent": lambda r: _artefact(r, layers=...),
    "manifests-null": lambda r: _index(r, manifests=None),
    "size-negative": lambda r: _artefact(r, layers=[r.descriptor(r.layer, LAYER, size=-1)]),
    "size-missing": lambda r: _artefact(r, layers=[r.descriptor(r.layer, LAYER, size=...)]),
    "size-wrong": lambda r: _artefact(r, layers=[r.descriptor(r.layer, LAYER, size=7)]),
    "annotation-null": lambda r: _artefact(r, annotations={"key": None}),
    "layer-type-missing": lambda r: _artefact(
        r, layers=[r.descriptor(r.layer, LAYER, mediaType=...)]
    ),
    "type-missing": lambda r: _artefact(r, mediaType=...),
    "fields-capitalised": _capitals,
    "layer-foreign": _foreign_layer,
    "platform-left-out": _left_out,
    "index-of-blobs": _of_blobs,
    "schema-1": _schema1,
    "manifest-cut": _of("manifest", _cut),
    "manifest-empty": _of("manifest", _empty),
    "manifest-zeros": _of("manifest", _zeros),
    "manifest-gone": _of("manifest", Path.unlink),
    "manifest-directory": _of("manifest", _directory),
    "layer-cut": _of("layer", _cut),
    "layer-empty": _of("layer", _empty),
    "layer-zeros": _of("layer", _zeros),
    "layer-gone": _of("layer", Path.unlink),
    "layer-dangling": _of("layer", _dangling),
    "config-cut": _of("config", _cut),
    "layer-link-gone": _of("layer link", Path.unlink),
    "layer-link-empty": _of("layer link", _empty),
    "manifest-link-gone": _of("manifest link", Path.unlink),
    "manifest-link-empty": _of("manifest link", _empty),
    "tag-link-gone": _of("tag link", Path.unlink),
    "tag-link-empty": _of("tag link", _empty),
    "tag-link-directory": _of("tag link", _directory),
    "tag-a-file": _tag_is_a_file,
    "by-digest-layer-gone": _by_digest,
    "uploads-strange": _uploads,
    "strangers": _strangers,
}


ODD = frozenset(list(CASES)[: list(CASES).index("manifest-cut")])
"""Cases that somebody pushed so; the others were damaged later."""


def build(volume: Path, *, recorded: bool, damaged: bool = True) -> dict[str, Repository]:
    """Write the volume.

    Args:
        volume: the directory to make it in.
        recorded: whether Mayfly wrote it, and so knows the sizes.
        damaged: False for one with the same images before any damage.

    Returns:
        Case → its repository.
    """
    made = {case: Repository(volume, f"odd/{case}") for case in CASES}
    for case in ODD:
        CASES[case](made[case])
    if recorded:
        for data in list(volume.rglob("data")):
            (data.parent / f"_mayfly_size_{data.stat().st_size}").touch()
    if damaged:
        for case in CASES.keys() - ODD:
            CASES[case](made[case])
    return made
