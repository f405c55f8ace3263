"""The overlay is a store like any other, over nothing and over what was deleted."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.manifest import OCI_MANIFEST
from tests.bundle.builders import CONFIG_TYPE, Layout
from tests.overlay.conftest import OpenOverlay
from tests.storage.contract import OpenStore, StoreContract
from tests.support.images import image_body


class TestOverNothing(StoreContract):
    """No bundle at all, and so a plain store."""

    @pytest.fixture
    def open_store(self, open_overlay: OpenOverlay) -> OpenStore:
        return open_overlay


class TestOverHiddenContent(StoreContract):
    """A bundle with the very manifests, tags and blobs that the contract pushes, all deleted."""

    @pytest.fixture
    def open_store(self, open_overlay: OpenOverlay, tmp_path: Path) -> OpenStore:
        layout = Layout()
        layout.add(b"{}", CONFIG_TYPE)
        image = layout.add(image_body(), OCI_MANIFEST)
        for tag in ("v1", "v2", "latest", "a", "b", "keep", "moved"):
            layout.name(image, f"quay.io/team/app:{tag}")
        path = layout.write_tar(tmp_path / "b.tar")
        store = open_overlay(path)
        for tag in store.tags("team/app"):
            store.delete_tag("team/app", tag)
        store.delete_manifest("team/app", digests.of(image_body()))
        store.delete_blob("team/app", digests.of(b"{}"))
        assert store.repositories("", 9) == []
        return partial(open_overlay, path)
