"""Content of other repositories is not even looked at: no time tells whether it is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.bundle.open import open_bundles
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import StorageError
from mayfly.storage.overlay import OverlayStore
from tests.bundle.builders import Layout as Bundle
from tests.support.images import image_body, index_body, push, put, put_image

SECRET = b"content of a repository that the caller may not read"
_SECRET_IMAGE = image_body(SECRET)
MINE = "team/app"

Writable = DistributionStore | OverlayStore
Ask = Callable[[Writable, Digest], object]


def _put(store: Writable, body: bytes) -> None:
    manifest = manifests.parse(body)
    store.put_manifest(MINE, manifest, digests.of(body), ())


def _put_sparse(store: Writable, body: bytes) -> None:
    store.upper._may_lack_blobs = store.upper._may_lack_manifests = True
    _put(store, body)


ASKS: dict[str, Ask] = {
    "mount": lambda store, digest: store.mount("team/new", digest, MINE),
    "blob": lambda store, digest: store.blob(MINE, digest),
    "touch": lambda store, digest: store.touch(MINE, digest),
    "manifest": lambda store, digest: store.manifest(MINE, digest),
    "referrers": lambda store, digest: list(store.referrers(MINE, digest)),
    "delete blob": lambda store, digest: store.delete_blob(MINE, digest),
    "delete manifest": lambda store, digest: store.delete_manifest(MINE, digest),
    "layer": lambda store, _: _put(store, image_body(b"{}", [SECRET])),
    "config": lambda store, _: _put(store, image_body(SECRET)),
    "child": lambda store, _: _put(store, index_body([manifests.parse(_SECRET_IMAGE)])),
    "layer of a sparse image": lambda store, _: _put_sparse(store, image_body(b"{}", [SECRET])),
    "child of a sparse index": lambda store, _: _put_sparse(
        store, index_body([manifests.parse(_SECRET_IMAGE)])
    ),
}


@pytest.fixture(params=["plain", "overlay"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Writable]:
    """A store whose repository ``secret/app`` holds what the caller asks for in another one."""
    root = tmp_path / "root"
    first = DistributionStore(root)
    put_image(first, MINE, "1")
    push(first, "secret/app", SECRET)
    put(first, "secret/app", _SECRET_IMAGE, "1")
    first.close()
    # Opened anew: nothing is known to be durable yet.
    with contextlib.ExitStack() as opened:
        if request.param == "plain":
            made: Writable = DistributionStore(root)
        else:
            layout = Bundle()
            layout.name(layout.image(b"lower"), "quay.io/lower/app:1")
            bundles = open_bundles([layout.write_tar(tmp_path / "b.tar")])
            opened.callback(bundles.close)
            made = OverlayStore(DistributionStore(root), bundles.layer)
        opened.callback(made.close)
        yield made


@pytest.mark.parametrize("ask", ASKS)
def test_foreign_content_is_not_looked_at(
    store: Writable, ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file or directory of a blob is opened or examined for a repository that lacks it."""
    secrets = [digests.of(SECRET), digests.of(_SECRET_IMAGE)]
    looked: list[str] = []
    blobs = str(store.upper.parts.layout.blobs)

    def record(name: str) -> None:
        real = getattr(os, name)

        def recorded(path: object, *args: object, **kwargs: object) -> object:
            text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
            if text.startswith(blobs) and any(one.hex in text for one in secrets):
                looked.append(f"{name} {text}")
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, name, recorded)

    for name in ("open", "stat", "lstat", "utime", "scandir", "listdir"):
        record(name)
    with contextlib.suppress(StorageError):
        ASKS[ask](store, secrets[1] if "manifest" in ask or ask == "referrers" else secrets[0])
    assert looked == []
    # The recording works: a caller with a right to the blob does look at it.
    store.touch("secret/app", secrets[0])
    assert looked
