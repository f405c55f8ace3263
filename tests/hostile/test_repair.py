"""A repair gives nobody content that they only named.

`evil/app` may push, and names all that `good/app:v1` is made of: layers with ``urls``, which no
registry has to hold, and, where the server takes sparse indexes, manifests too. After
`mayfly verify --repair`, with good content damaged or not, `good/app` is whole and `evil/app` has
nothing of it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mayfly.storage.digest import parse
from mayfly.storage.directory.layout import Layout
from mayfly.storage.manifest import OCI_INDEX, OCI_MANIFEST
from tests.hostile.harness import Hostile
from tests.hostile.pushes import Pusher
from tests.support.images import LAYER_TYPE, descriptor, digest_of

SECRET = b"a layer that is nobody else's" * 100


@pytest.mark.parametrize("options", [(), ("--allow-sparse",)], ids=["plain", "sparse"])
@pytest.mark.parametrize("damaged", ["nothing", "layer", "manifest", "link"])
def test_named_is_not_owned(
    hostile: Hostile, tmp_path: Path, options: tuple[str, ...], damaged: str
) -> None:
    """Neither from the store's other repositories nor from those of the bundle it repairs from."""
    server = hostile.serve(*options, "--drain-timeout", "1s")
    client = Pusher(server.host)
    for data in (b"{}", SECRET):
        client.blob("good/app", data)
    image = client.image("good/app", None, layers=[descriptor(SECRET)])
    client.index("good/app", "v1", [image])
    bundle = tmp_path / "good.tar"
    row = f"named in a repair: {damaged} {' '.join(options)}".strip()
    root = server.root
    _run(hostile, row, "export", "--all", "-o", bundle, "--root", root)

    client.blob("evil/app", b"{}")
    named = [descriptor(SECRET, urls=["https://example.com/"]), descriptor(image, urls=["x:"])]
    client.image("evil/app", "urls", layers=named)
    entry = descriptor(image, OCI_MANIFEST)
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    client.put("evil/app", "index", json.dumps(index).encode(), OCI_INDEX)
    sparse = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(SECRET)}
    body = json.dumps(sparse | {"layers": [descriptor(SECRET, LAYER_TYPE)]}).encode()
    assert client.put("evil/app", "x", body, OCI_MANIFEST).status == (201 if options else 400)

    paths = Layout(root)
    layer, manifest = parse(digest_of(SECRET)), parse(digest_of(image))
    if damaged == "layer":
        paths.data(layer).write_bytes(bytes(len(SECRET)))
    elif damaged == "manifest":
        paths.data(manifest).write_bytes(b"")
    elif damaged == "link":
        paths.layer_link("good/app", layer).unlink()
        paths.revision_link("good/app", manifest).unlink()
    _run(hostile, row, "verify", "--repair", bundle, "--root", root)
    again = Pusher(hostile.serve(root=root).host)
    for data, kind in ((SECRET, "blobs"), (image, "manifests"), (image, "blobs")):
        assert again.ask("GET", f"/v2/evil/app/{kind}/{digest_of(data)}").status == 404, kind
    assert again.ask("GET", f"/v2/good/app/blobs/{digest_of(SECRET)}").body == SECRET
    assert again.ask("GET", f"/v2/good/app/manifests/{digest_of(image)}").body == image


def _run(hostile: Hostile, row: str, *words: str | Path) -> None:
    done = hostile.command(f"{row}, {words[0]}", *words, before="-")
    assert done.returncode in (0, 4), done.stderr
