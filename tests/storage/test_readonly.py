"""`ReadOnlyStore`: every change is refused, every read passes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.errors import BlobUnknown, ManifestUnknown, NameUnknown, ReadOnly
from mayfly.storage.interface import Reader, Store
from mayfly.storage.readonly import ReadOnlyStore
from tests.storage.contract import OpenStore
from tests.support.images import files, image_body, push, put, put_image, read, subject_of

REPO = "team/app"
SESSION = "0b8a5c63-9a5b-4f2b-8a0e-3a1c7f5b9b11"
DIGEST = digests.of(b"x")

CHANGES: dict[str, Callable[[Store], object]] = {
    "check_room": lambda s: s.check_room(1),
    "begin_upload": lambda s: s.begin_upload(REPO, "sha256"),
    "upload": lambda s: s.upload(REPO, SESSION),
    "mount": lambda s: s.mount("team/copy", DIGEST, REPO),
    "put_manifest": lambda s: put(s, REPO, image_body(), "v1"),
    "delete_manifest": lambda s: s.delete_manifest(REPO, DIGEST),
    "delete_tag": lambda s: s.delete_tag(REPO, "v1"),
    "delete_blob": lambda s: s.delete_blob(REPO, DIGEST),
}


def _methods(protocol: type) -> set[str]:
    return {n for n, _ in inspect.getmembers(protocol, inspect.isfunction) if n[0] != "_"}


def test_every_change_is_in_the_table() -> None:
    """The changes tested are all that the interface has; the others only look, here."""
    assert CHANGES.keys() == _methods(Store) - _methods(Reader) - {"touch", "compare", "examine"}


@pytest.mark.parametrize("change", CHANGES)
def test_change_is_refused(open_store: OpenStore, root: Path, change: str) -> None:
    """A change raises `ReadOnly` whether or not it would have found its object."""
    store = open_store()
    put_image(store, REPO, "v1")
    push(store, REPO, b"x")
    before = files(root)
    with pytest.raises(ReadOnly):
        CHANGES[change](ReadOnlyStore(store))
    assert files(root) == before


def test_reads_pass(open_store: OpenStore) -> None:
    """Each read answers what the store below answers."""
    store = open_store()
    image, digest = put_image(store, REPO, "v1")
    put(store, REPO, image_body(subject=subject_of(image)))
    config = digests.of(b"{}")
    seen: Store = ReadOnlyStore(store)
    assert read(seen.blob(REPO, config)) == b"{}"
    assert seen.touch(REPO, config) == seen.blob(REPO, config)
    assert read(seen.manifest(REPO, digest)) == image.body
    assert seen.tag(REPO, "v1") == digest
    assert seen.tags(REPO) == ["v1"]
    assert seen.repositories("", 10) == [REPO]
    assert seen.repositories(REPO, 10) == []
    assert list(seen.repositories_with(config)) == [REPO]
    assert list(seen.referrers(REPO, digest)) == list(store.referrers(REPO, digest)) != []


def test_errors_pass(open_store: OpenStore) -> None:
    """What is unknown below is unknown above."""
    seen = ReadOnlyStore(open_store())
    with pytest.raises(BlobUnknown):
        seen.blob(REPO, DIGEST)
    with pytest.raises(ManifestUnknown):
        seen.manifest(REPO, DIGEST)
    with pytest.raises(ManifestUnknown):
        seen.tag(REPO, "v1")
    with pytest.raises(NameUnknown):
        seen.tags(REPO)
