"""JSON of many images and files takes hardly more memory than the same as text."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from mayfly.registry.text import exact_json, json_pieces
from mayfly.storage.directory.store import DistributionStore
from tests.support.commands import peak_of, run_mayfly
from tests.support.images import descriptor, image_body, push, put

APP = "team/app"
CONFIG = json.dumps({"os": "linux", "architecture": "amd64"}).encode()
FILES, IMAGES = 20_000, 8_000

ROOM = 10 * 1024 * 1024
"""Bytes that JSON may take more: the part of a document that is kept in memory, and the pieces."""


def _layer(prefix: str) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for number in range(FILES):
            archive.addfile(tarfile.TarInfo(f"{prefix}/d{number // 100}/a-file-{number}"))
    return gzip.compress(output.getvalue(), 1, mtime=0)


def _store(root: Path, layer: bytes) -> Path:
    with closing(DistributionStore(root)) as store:
        for data in (CONFIG, layer):
            push(store, APP, data)
        put(store, APP, image_body(CONFIG, [layer]), "1")
    return root


def test_files_are_streamed(tmp_path: Path) -> None:
    """Those of an image, and those that differ between two."""
    old, new = (_store(tmp_path / name, _layer(name)) for name in ("old", "new"))
    for words in (("inspect", f"{APP}:1", "--files", "--root", old), ("diff", old, new, "--files")):
        text, document = peak_of(*words), peak_of(*words, "--json")
        assert document < text + ROOM, words
        found = run_mayfly(*words, "--json")
        assert len(found) > FILES * 100
        assert exact_json(json.loads(found), indent=2) + "\n" == found


def test_images_are_streamed(tmp_path: Path) -> None:
    """Those of a bundle; each Python object that is kept of an image would show."""
    blobs = tmp_path / "blobs/sha256"
    blobs.mkdir(parents=True)
    layers = [b"layer %d" % number for number in range(20)]
    body = image_body(CONFIG, layers)
    for data in (CONFIG, body, *layers):
        (blobs / str(descriptor(data)["digest"]).partition(":")[2]).write_bytes(data)
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    entry = descriptor(body, "application/vnd.oci.image.manifest.v1+json")
    name = "io.containerd.image.name"
    entries = [
        entry | {"annotations": {name: f"example.com/a/b:{number}"}} for number in range(IMAGES)
    ]
    (tmp_path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    one = peak_of("inspect", "a/b:1", tmp_path)
    assert peak_of("ls", tmp_path, "--json") < one + ROOM
    assert peak_of("diff", tmp_path, tmp_path, "--json") < one + 2 * ROOM


DOCUMENTS: tuple[object, ...] = (
    {},
    [],
    {"a": []},
    {"a": {}},
    [[], {}, [1, None, True]],
    {"a": [{"b": "\x7f\n\u202e"}]},
    "x",
    1.5,
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=repr)
def test_pieces_are_the_same_text(document: object) -> None:
    """As `json` makes it; an iterator is an array."""
    assert "".join(json_pieces(document, 2)) == exact_json(document, indent=2)
    assert "".join(json_pieces({"x": iter([document])}, 2)) == exact_json(
        {"x": [document]}, indent=2
    )
