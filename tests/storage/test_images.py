"""The store seen as images: names, sizes, stacks, sharing, and the scrub that reads it all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage import images
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import BlobUnknown, ManifestUnknown
from mayfly.storage.reading import read_blob
from mayfly.storage.upkeep.space import space
from mayfly.storage.upkeep.verify import Fault, Finding, verify
from tests.support.images import descriptor, image_body, index_body, push, put

BASE, ONE, TWO = b"base layer" * 10, b"layer one", b"layer two, longer"
CONFIG = json.dumps(
    {
        "os": "linux",
        "architecture": "amd64",
        "history": [
            {"created_by": "ADD base"},
            {"created_by": "ENV x", "empty_layer": True},
            {"created_by": "RUN one"},
        ],
    }
).encode()


@pytest.fixture
def store(root: Path) -> DistributionStore:
    """Two images on one base, one of them behind an index that lacks a platform."""
    made = DistributionStore(root, allow_sparse=True)
    for repository, layer in (("library/one", ONE), ("team/two", TWO)):
        for blob in (CONFIG, BASE, layer):
            push(made, repository, blob)
    put(made, "library/one", image_body(CONFIG, [BASE, ONE]), "v1")
    child, _ = put(made, "team/two", image_body(CONFIG, [BASE, TWO]))
    absent = descriptor(b"no such platform", child.media_type)
    manifests = [descriptor(child.body, child.media_type), absent]
    put(made, "team/two", index_body(manifests=manifests), "latest")
    return made


def test_images_and_what_they_lack(store: DistributionStore) -> None:
    """Each tag with everything below it; a platform that was left out is named as missing."""
    found = {image.name: image for image in images.images(store)}
    assert list(found) == ["library/one:v1", "team/two:latest"]
    one = image_body(CONFIG, [BASE, ONE])
    assert found["library/one:v1"].size == sum(map(len, (one, CONFIG, BASE, ONE)))
    assert found["team/two:latest"].missing == (digests.of(b"no such platform"),)


def test_usage_counts_shared_blobs_once(store: DistributionStore) -> None:
    """What two images share is saved once."""
    found = space(store)
    assert found.images == 2
    assert found.saved == len(CONFIG) + len(BASE)
    assert (found.untagged, found.untagged_size, found.unused_size) == (0, 0, 0)


def test_space_without_a_tag(store: DistributionStore) -> None:
    """What only an untagged manifest needs is told apart from what nothing needs."""
    store.delete_tag("library/one", "v1")
    push(store, "library/one", b"of nothing")
    found = space(store)
    assert found.images == 1
    assert found.untagged == 1
    assert found.untagged_size == len(ONE) + len(image_body(CONFIG, [BASE, ONE]))
    assert found.unused_size == len(b"of nothing")


def test_stack_is_bottom_to_top(store: DistributionStore) -> None:
    """Layers come in mounting order, with their build step and the images that share them."""
    repository, digest = images.resolve(store, "team/two")
    (stack,) = images.stacks(store, repository, digest, "team/two:latest")
    assert stack.platform == "linux/amd64"
    assert [layer.digest for layer in stack.layers] == [digests.of(BASE), digests.of(TWO)]
    assert [layer.created_by for layer in stack.layers] == ["ADD base", "RUN one"]
    assert [layer.shared_with for layer in stack.layers] == [("library/one:v1",), ()]


@pytest.mark.parametrize(
    ("config", "entry", "platform"),
    [
        ({"architecture": "arm", "variant": "v7"}, {}, "linux/arm/v7"),
        ({"architecture": "arm"}, {"variant": "v6"}, "linux/arm/v6"),
        ({"architecture": "arm", "variant": "v7"}, {"variant": "v6"}, "linux/arm/v7"),
        ({"architecture": "arm64", "variant": "v8"}, {}, "linux/arm64"),
        ({"architecture": "arm64"}, {"variant": "v8"}, "linux/arm64"),
        ({"architecture": "amd64"}, {"variant": "v1"}, "linux/amd64"),
        ({"architecture": "amd64"}, {"variant": "v3"}, "linux/amd64/v3"),
        ({"architecture": "arm", "variant": 7}, {}, "linux/arm"),
    ],
)
def test_variants(
    root: Path, config: dict[str, object], entry: dict[str, object], platform: str
) -> None:
    """A platform has its variant, from the config or else the index, except for the usual ones."""
    store = DistributionStore(root)
    body = json.dumps({"os": "linux", **config}).encode()
    for blob in (body, BASE):
        push(store, "app", blob)
    child, _ = put(store, "app", image_body(body, [BASE]))
    of_entry = {"os": "linux", "architecture": config["architecture"], **entry}
    named = descriptor(child.body, child.media_type, platform=of_entry)
    put(store, "app", index_body(manifests=[named]), "1")
    (stack,) = images.stacks(store, *images.resolve(store, "app:1"), "app:1", shared=False)
    assert stack.platform == platform


def test_blob_that_goes_while_it_is_read(
    store: DistributionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a blob that is unknown, not a manifest."""
    found = store.blob("library/one", digests.of(ONE))
    found.path.unlink()
    monkeypatch.setattr(DistributionStore, "blob", lambda *_: found)
    with pytest.raises(BlobUnknown):
        read_blob(store, "library/one", digests.of(ONE), 100)


@pytest.mark.parametrize(
    "text",
    ["one:v1", "library/one:v1", "docker.io/library/one:v1", "localhost:5000/library/one:v1"],
)
def test_resolve_takes_an_operators_names(store: DistributionStore, text: str) -> None:
    """However an operator writes it, it is the same image."""
    assert images.resolve(store, text) == ("library/one", store.tag("library/one", "v1"))


def test_resolve_by_digest_and_unknown(store: DistributionStore) -> None:
    """A digest is taken as it is; an unknown image is named."""
    digest = store.tag("library/one", "v1")
    assert images.resolve(store, f"library/one@{digest}")[1] == digest
    with pytest.raises(ManifestUnknown, match="nope"):
        images.resolve(store, "nope")


def test_verify_finds_every_fault(store: DistributionStore) -> None:
    """A flipped byte, and a blob that an image lacks, are found with an image that needs them.

    A platform that was left out is none, as long as another is here.
    """
    clean = verify(store)
    assert (clean.findings, clean.left_out) == ((), 1)
    path = store.blob("library/one", digests.of(ONE)).path
    path.write_bytes(ONE[:-1] + b"!")
    store.blob("team/two", digests.of(TWO)).path.unlink()
    read: list[int] = []
    found = verify(store, progress=read.append)
    assert set(found.findings) == {
        Finding(Fault.CORRUPT, digests.of(ONE), "library/one:v1"),
        Finding(Fault.MISSING, digests.of(TWO), "team/two:latest"),
    }
    assert sum(read) == found.size
    assert found.blobs == clean.blobs - 1
