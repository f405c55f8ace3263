"""What is deleted of two layers at once while it is pushed anew."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.errors import ManifestUnknown
from mayfly.storage.manifest import OCI_MANIFEST, parse
from tests.bundle.builders import CONFIG_TYPE, Layout
from tests.overlay.conftest import OpenOverlay
from tests.storage.disk import Disk
from tests.support.images import image_body, push, put

REPO = "team/app"
BELOW = image_body(annotations={"is": "below"})
PUSHED = image_body()


def test_manifest_deleted_at_every_step_while_it_is_pushed(
    open_overlay: OpenOverlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pushed under a tag that the bundle gives to another image, and deleted: that one stays away.

    Either the delete came first, and the tag is the pushed image's, or it took the tag with it.
    """
    layout = Layout()
    layout.add(b"{}", CONFIG_TYPE)
    layout.name(layout.add(BELOW, OCI_MANIFEST), f"quay.io/{REPO}:v1")
    layout.name(layout.add(PUSHED, OCI_MANIFEST), f"quay.io/{REPO}:other")
    bundle = layout.write_tar(tmp_path / "b.tar")
    disk, digest = Disk(monkeypatch), digests.of(PUSHED)
    number, pushed = 0, True
    while pushed:
        store = open_overlay(bundle, root=tmp_path / str(number))
        push(store, REPO, b"{}")
        put(store, REPO, PUSHED)
        thread = threading.Thread(
            target=store.put_manifest, args=(REPO, parse(PUSHED), digest, ("v1",))
        )

        def before(step: int, number: int = number, thread: threading.Thread = thread) -> None:
            if step == number:
                thread.start()
                # Either it gets through now, or it waits for the delete; both is right.
                thread.join(0.1)

        with disk.watch(before=before):
            store.delete_manifest(REPO, digest)
        pushed = thread.ident is not None
        if pushed:
            thread.join()
            with suppress(ManifestUnknown):
                assert store.tag(REPO, "v1") == digest, f"step {number}"
        number += 1
    assert number > 5
