"""The upper store given to registry:2: whiteouts and links into bundles do not disturb it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.errors import ManifestUnknown
from mayfly.storage.manifest import OCI_MANIFEST
from tests.bundle.builders import Layout, layers
from tests.clients.programs import Distribution, collect_garbage
from tests.overlay.conftest import OpenOverlay
from tests.support.images import image_body, push, put, put_image, read

LAYER, OTHER = layers("layer", "other")


def status(host: str, path: str) -> int:
    """The status of a GET."""
    request = urllib.request.Request(f"http://{host}/v2/{path}", headers={"Accept": OCI_MANIFEST})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def listed(host: str, path: str, key: str) -> list[str]:
    """A list that the registry gives."""
    with urllib.request.urlopen(f"http://{host}/v2/{path}", timeout=30) as answer:
        return list(json.load(answer)[key])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """An image of the bundle that is deleted, and one whose layer is mounted."""
    layout = Layout()
    for name, layer in (("nova", LAYER), ("glance", OTHER)):
        layout.name(layout.image(layer), f"quay.io/kolla/{name}:1")
    return layout.write_tar(tmp_path / "bundle.tar")


def test_registry_2_serves_the_upper_store(
    open_overlay: OpenOverlay, bundle: Path, root: Path, tmp_path: Path
) -> None:
    """It lists and serves what was pushed, collects garbage, and what is hidden stays hidden."""
    store = open_overlay(bundle)
    store.delete_tag("kolla/nova", "1")
    store.delete_manifest("kolla/glance", store.tag("kolla/glance", "1"))
    store.mount("team/app", digests.of(LAYER), "kolla/nova")
    push(store, "team/app", b"{}")
    _, mounted = put(store, "team/app", image_body(b"{}", [LAYER]), "1")
    _, pushed = put_image(store, "kolla/nova", "mine")
    garbage = push(store, "team/app", b"garbage")
    said = collect_garbage(root, tmp_path / "collector")
    assert f"blob eligible for deletion: {garbage}" in said
    with Distribution(root, tmp_path / "registry") as registry:
        host = registry.host
        assert listed(host, "_catalog", "repositories") == ["kolla/nova", "team/app"]
        assert listed(host, "kolla/nova/tags/list", "tags") == ["mine"]
        assert status(host, f"kolla/nova/manifests/{pushed}") == 200
        assert status(host, "team/app/manifests/1") == 200
        assert status(host, f"team/app/blobs/{digests.of(b'{}')}") == 200
        # Only the bundle has these bytes.
        assert status(host, f"team/app/blobs/{digests.of(LAYER)}") == 404
    again = open_overlay(bundle)
    assert read(again.blob("team/app", digests.of(LAYER))) == LAYER
    assert again.tag("team/app", "1") == mounted
    assert again.tags("kolla/nova") == ["mine"]
    assert again.repositories("", 9) == ["kolla/nova", "team/app"]
    with pytest.raises(ManifestUnknown):
        again.tag("kolla/nova", "1")
