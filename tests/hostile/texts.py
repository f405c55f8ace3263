"""Text as strangers may write it: escape sequences, line breaks, marks of direction, odd types.

For any test of what is printed: `TEXT` for names in documents, `NAME` for file names, `bundle`
and `store` for content full of both, `check` for what a command or a server printed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.layout import Layout as Paths
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.manifest import OCI_INDEX, OCI_MANIFEST, parse
from tests.bundle.builders import CONFIG_TYPE, LAYER_TYPE, Layout, document, layers
from tests.support.images import push

FORGED = "FORGED"
"""Begins a line only if a line break was let through."""

NAME = (
    f"x\x1b[31mred\x1b]0;title\x07\r\n{FORGED}\u2028{FORGED}\u202egpj\u2066\x9b1m\x7f'\"$(id)\udcff"
)
"""A file's name, the end of it no UTF-8."""

TEXT = NAME.replace("\udcff", "\ud800") + "\x00/…:"
"""A text in a document."""

ODD: tuple[Any, ...] = (TEXT, None, 7, True, [TEXT], {TEXT: TEXT}, [[[]]], 1e300, "")
"""Values where text is expected."""


def configs() -> list[bytes]:
    """Image configs with odd types everywhere, and some that are no configs."""
    found: list[Any] = [
        {
            "os": odd,
            "architecture": odd,
            "created": odd,
            "author": odd,
            "config": odd,
            "history": [odd, {"created_by": odd, "empty_layer": odd}, {"comment": odd}],
            "rootfs": {"type": odd, "diff_ids": odd},
        }
        for odd in ODD
    ]
    found += [{"history": odd, "rootfs": odd} for odd in ODD]
    return [*map(document, found), b"", b"[", b"\xff\xfe", b"[]", b"null"]


def bundle(path: Path) -> Path:
    """An OCI layout whose names, annotations, types and configs are hostile."""
    layout = Layout()
    layer = layers("one")[0]
    for number, config in enumerate(configs()):
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": layout.add(config, CONFIG_TYPE),
            "layers": [layout.add(layer, LAYER_TYPE)],
            "annotations": {TEXT: TEXT},
        }
        layout.name(layout.add(document(manifest), OCI_MANIFEST), f"quay.io/app:{number}")
    image = layout.image(layer)
    refused = layout.add(document([TEXT]), OCI_MANIFEST)
    odd_type = layout.add(document({"schemaVersion": 2, "mediaType": TEXT}), OCI_MANIFEST)
    odd = layout.add(document({"schemaVersion": 2, TEXT: 1, "layers": [TEXT]}), OCI_MANIFEST)
    for name in (TEXT, f"quay.io/{TEXT}:1", f"{TEXT}/a:1", f"quay.io/a:{TEXT}"):
        layout.name(image, name)
        layout.entries.append(image | {"annotations": {"org.opencontainers.image.ref.name": name}})
    layout.entries += [refused, odd_type, odd]
    return layout.write_directory(path)


def store(root: Path) -> Digest:
    """A store of images with hostile configs, and odd entries beside them; the last image."""
    made = DistributionStore(root)
    digest = digests.of(b"")
    try:
        for number, config in enumerate(configs()):
            push(made, "team/app", config)
            push(made, "team/app", b"layer")
            body = {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "artifactType": "application/x",
                "config": _descriptor(CONFIG_TYPE, config),
                "layers": [_descriptor(LAYER_TYPE, b"layer")],
                "annotations": {TEXT: TEXT},
            }
            parsed = parse(document(body))
            digest = digests.of(parsed.body)
            made.put_manifest("team/app", parsed, digest, (f"v{number}",))
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        parsed = parse(document(index | {"annotations": {TEXT: TEXT}}))
        made.put_manifest("team/index", parsed, digests.of(parsed.body), ("latest",))
    finally:
        made.close()
    paths = Paths(root)
    for directory in (paths.repositories, paths.tags("team/app"), paths.blobs / "sha256"):
        (directory / NAME).mkdir(parents=True)
    link = paths.tag_link("team/app", "odd")
    link.parent.mkdir(parents=True)
    link.write_text(TEXT, "utf-8", "surrogatepass")
    damaged = document({"schemaVersion": 2, "mediaType": TEXT, "layers": [{"digest": TEXT}]})
    digest = digests.of(damaged)
    for path, data in (
        (paths.data(digest), damaged),
        (paths.revision_link("team/odd", digest), str(digest).encode()),
        (paths.tag_link("team/odd", "v1"), str(digest).encode()),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return digest


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digests.of(data)), "size": len(data)}


def check(text: str, *, is_json: bool = False) -> None:
    """Assert that a text moves no cursor, forges no line, and is no traceback."""
    hostile = {c for c in text if not c.isprintable() and c not in "\n\t"}
    assert not hostile, f"{sorted(map(ascii, hostile))} in {text!r}"
    assert "Traceback" not in text, text
    if is_json:
        for part in _documents(text):
            json.loads(part)
        return
    forged = [line for line in text.splitlines() if line.lstrip().startswith(FORGED)]
    assert not forged, text


def _documents(text: str) -> list[str]:
    """One document, or one on each line."""
    return [text] if text.startswith("{\n") else text.splitlines()
