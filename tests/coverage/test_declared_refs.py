"""References of a manifest: blobs that a registry must have, and those it has."""

from __future__ import annotations

from mayfly.registry.coverage.declared_refs import refs_of
from mayfly.registry.coverage.store_queries import ReaderQueries
from mayfly.storage import digest as digests
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.manifest import parse
from tests.support.images import FOREIGN_TYPE, descriptor, image_body, push, put

REPO = "team/app"


def test_urls_excuse_absence_only(store: DistributionStore) -> None:
    """A layer with `urls` counts where it is there, so that its failed transfer is not ignored."""
    for data in (b"{}", b"plain", b"present", b"of a type"):
        push(store, REPO, data)
    layers = [
        descriptor(b"plain"),
        descriptor(b"present", urls=["https://example.com/"]),
        descriptor(b"absent", urls=["https://example.com/"]),
        descriptor(b"of a type", FOREIGN_TYPE),
        descriptor(b"absent, of a type", FOREIGN_TYPE),
    ]
    manifest, digest = put(store, REPO, image_body(layers=layers), "v1")
    expected = [str(digests.of(b)) for b in (b"{}", b"plain", b"present", b"of a type")]
    found = ReaderQueries(store).refs(REPO, str(digest))
    assert found is not None
    assert list(found.blobs) == expected
    assert refs_of(manifest).within(store, REPO) == found
    assert len(refs_of(manifest).within(store, "elsewhere").blobs) == 2


def test_each_reference_once() -> None:
    """An index may name a child, and an image a layer, ten thousand times."""
    body = image_body(layers=[descriptor(b"x")] * 10_000)
    assert len(refs_of(parse(body)).required.blobs) == 2
