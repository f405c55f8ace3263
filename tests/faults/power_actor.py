"""A process that works on a store and can be killed at any step; what it is told, it says.

``python -m tests.faults.power_actor push|delete|collect ROOT`` does what a client has done, also
one that begins again because the server died under it: what is there is not sent again, and what is
gone is not an error. Each change that has been answered is a line ``ACK``.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import BlobUnknown, ManifestUnknown
from mayfly.storage.upkeep.collect import collect
from tests.faults.crash_model import Key, manifest_of
from tests.faults.power_story import Story
from tests.support.images import digest_of, push

APP, COPY = "team/app", "team/copy"
BLOBS = [b"config" * 20, b"layer" * 50]
IMAGE = manifest_of(BLOBS)
INDEX = (
    b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": ['
    b'{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "%s", "size": %d}]}'
    % (digest_of(IMAGE).encode(), len(IMAGE))
)


def pushed(story: Story) -> None:
    """What `push_all` is told, answer by answer."""
    for blob in BLOBS:
        with story.request(story.blob(COPY, blob)):
            pass
    # That a blob is there already is no promise yet; that its manifest was taken is one.
    image = story.blob(APP, BLOBS[0]) | story.blob(APP, BLOBS[1])
    with story.request(image | story.manifest(APP, IMAGE, "v1")):
        pass
    with story.request(story.manifest(COPY, IMAGE)):
        pass
    with story.request(story.manifest(COPY, INDEX, "all")):
        pass


def push_all(store: DistributionStore) -> None:
    """Push an image as docker does, mount it elsewhere, and put an index of it there."""
    for blob in BLOBS:
        try:
            store.touch(APP, digests.of(blob))
        except BlobUnknown:
            push(store, APP, blob)
    for blob in BLOBS:
        store.mount(COPY, digests.of(blob), APP)
        _answer()
    _put(store, APP, IMAGE, "v1")
    _put(store, COPY, IMAGE)
    _put(store, COPY, INDEX, "all")


def deleted(story: Story) -> None:
    """What `delete_all` is told, answer by answer."""
    with story.request({Key("tag", COPY, "all"): None}):
        pass
    for body in (INDEX, IMAGE):
        with story.request(story.deletion(COPY, digest_of(body))):
            pass
    for blob in BLOBS:
        with story.request({Key("blob", COPY, digest_of(blob)): None}):
            pass
    with story.request(story.deletion(APP, digest_of(IMAGE))):
        pass
    with story.request(story.collection()):
        pass


def delete_all(store: DistributionStore) -> None:
    """Delete all of it again, and collect what nobody refers to any more."""
    with contextlib.suppress(ManifestUnknown):
        store.delete_tag(COPY, "all")
    _answer()
    for body in (INDEX, IMAGE):
        with contextlib.suppress(ManifestUnknown):
            store.delete_manifest(COPY, digests.of(body))
        _answer()
    for blob in BLOBS:
        with contextlib.suppress(BlobUnknown):
            store.delete_blob(COPY, digests.of(blob))
        _answer()
    with contextlib.suppress(ManifestUnknown):
        store.delete_manifest(APP, digests.of(IMAGE))
    _answer()
    collect(store, 0)
    _answer()


def collect_all(store: DistributionStore) -> None:
    """Collect what nobody refers to any more, though another process deleted it."""
    collect(store, 0)
    _answer()


def _put(store: DistributionStore, repository: str, body: bytes, *tags: str) -> None:
    store.put_manifest(repository, manifests.parse(body), digests.of(body), tags)
    _answer()


def _answer() -> None:
    os.write(1, b"ACK\n")


if __name__ == "__main__":
    opened = DistributionStore(Path(sys.argv[2]))
    {"push": push_all, "delete": delete_all, "collect": collect_all}[sys.argv[1]](opened)
    opened.close()
