"""Writing over bundles: what is seen, where it goes, and what deleting leaves."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.bundle.errors import BundleConflict
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import (
    BlobUnknown,
    ContentCorrupt,
    ManifestBlobUnknown,
    ManifestUnknown,
    NameUnknown,
    SizeInvalid,
)
from mayfly.storage.interface import Store
from mayfly.storage.overlay import OverlayStore
from mayfly.storage.reading import read_unverified
from mayfly.storage.upkeep.collect import collect
from mayfly.storage.upkeep.verify import Fault, verify
from tests.bundle.builders import Layout, blob_name, layers, proof_of
from tests.overlay.conftest import OpenOverlay
from tests.support.images import (
    descriptor,
    files,
    image_body,
    index_body,
    push,
    put,
    put_image,
    read,
    subject_of,
)

NOVA, GLANCE = "kolla/nova", "kolla/glance"
BASE, NEW, OLD = layers("base", "new", "old")


class Made:
    """A bundle and the digests of what is in it."""

    def __init__(self, path: Path) -> None:
        layout = Layout()
        nova, glance = layout.image(BASE, NEW), layout.image(BASE)
        self.nova = layout.name(nova, f"quay.io/{NOVA}:1")
        layout.name(nova, f"quay.io/{NOVA}:latest")
        self.glance = layout.name(glance, f"quay.io/{GLANCE}:1")
        self.sbom = layout.name(layout.image(subject=nova, artifactType="application/sbom"))
        self.layout = layout
        self.path = layout.write_tar(path)

    def manifest(self, digest: Digest) -> dict[str, Any]:
        """A manifest of the bundle."""
        return dict(json.loads(self.layout.files[blob_name(str(digest))]))


@pytest.fixture
def bundle(tmp_path: Path) -> Made:
    """Two images on one base, and what refers to one of them."""
    return Made(tmp_path / "bundle.tar")


@pytest.fixture
def store(open_overlay: OpenOverlay, bundle: Made) -> OverlayStore:
    """An empty upper store over the bundle."""
    return open_overlay(bundle.path)


@pytest.fixture(autouse=True)
def bundle_stays_as_it_is(bundle: Made) -> Iterator[None]:
    """Whatever a test does, no byte and no time of the bundle changes."""
    before = bundle.path.read_bytes(), bundle.path.stat().st_mtime_ns
    yield
    assert (bundle.path.read_bytes(), bundle.path.stat().st_mtime_ns) == before


def stored(root: Path) -> set[str]:
    """The names of blobs whose bytes are in the upper store."""
    return {p.parent.name for p in root.rglob("data") if "_uploads" not in p.parts}


def gone(store: Store, repository: str, digest: Digest, *tags: str) -> None:
    """A manifest and its tags are not to be found in any way."""
    with pytest.raises(ManifestUnknown):
        store.manifest(repository, digest)
    for tag in tags:
        with pytest.raises(ManifestUnknown):
            store.tag(repository, tag)
    with contextlib.suppress(NameUnknown):
        assert not set(tags) & set(store.tags(repository))


# Reading


def test_lower_is_seen(store: OverlayStore, bundle: Made, root: Path) -> None:
    """Everything of the bundle is there and nothing of it is copied."""
    assert store.repositories("", 9) == [GLANCE, NOVA]
    assert store.tags(NOVA) == ["1", "latest"]
    assert store.tag(NOVA, "1") == bundle.nova
    assert read(store.blob(NOVA, digests.of(NEW))) == NEW
    assert digests.of(read(store.manifest(NOVA, bundle.nova))) == bundle.nova
    assert [d["digest"] for d in list(store.referrers(NOVA, bundle.nova))] == [str(bundle.sbom)]
    assert sorted(store.repositories_with(digests.of(BASE))) == [GLANCE, NOVA]
    assert stored(root) == set()
    with pytest.raises(BlobUnknown):
        store.blob(GLANCE, digests.of(NEW))


def test_catalog_is_merged_by_pages(store: OverlayStore) -> None:
    """Names of both sides in order, each once, whatever the page size."""
    for name in ("a", GLANCE, "kolla/heat", "z"):
        push(store, name, b"x")
    expected = ["a", GLANCE, "kolla/heat", NOVA, "z"]
    for limit in (1, 2, 3, 9):
        found: list[str] = []
        while page := store.repositories(found[-1] if found else "", limit):
            found += page
        assert found == expected


def test_upper_wins(store: OverlayStore, bundle: Made) -> None:
    """A tag pushed over one of the bundle takes its place; the bundle's image stays by digest."""
    _, digest = put_image(store, NOVA, "1", "2")
    assert store.tag(NOVA, "1") == digest
    assert store.tag(NOVA, "latest") == bundle.nova
    assert store.tags(NOVA) == ["1", "2", "latest"]
    assert store.manifest(NOVA, bundle.nova).size > 0


def test_referrers_are_merged(store: OverlayStore, bundle: Made) -> None:
    """What is pushed refers to an image of the bundle like any; the same one is listed once."""
    push(store, NOVA, b"{}")
    subject = descriptor(read(store.manifest(NOVA, bundle.nova)))
    _, digest = put(store, NOVA, image_body(subject=subject))
    found = [d["digest"] for d in list(store.referrers(NOVA, bundle.nova))]
    assert found == sorted([str(digest), str(bundle.sbom)])
    put(store, NOVA, read(store.manifest(NOVA, bundle.sbom)))
    assert [d["digest"] for d in list(store.referrers(NOVA, bundle.nova))] == found


# Writing


def test_image_on_a_layer_of_the_bundle(store: OverlayStore, root: Path) -> None:
    """What a repository has in the bundle need not be pushed to it again."""
    config = b'{"new": true}'
    push(store, NOVA, config)
    body = image_body(config, [BASE])
    _, digest = put(store, NOVA, body, "mine")
    assert store.tag(NOVA, "mine") == digest
    assert stored(root) == {digests.of(config).hex, digest.hex}


def test_references_of_the_bundle_are_checked(store: OverlayStore) -> None:
    """Content of another repository, or with another size, is refused as in any store."""
    push(store, GLANCE, b"{}")
    with pytest.raises(ManifestBlobUnknown):
        put(store, GLANCE, image_body(b"{}", [NEW]))
    wrong = descriptor(BASE) | {"size": 1}
    with pytest.raises(SizeInvalid):
        put(store, GLANCE, image_body(b"{}", layers=[wrong]))


def test_index_of_images_of_the_bundle(store: OverlayStore, bundle: Made) -> None:
    """An index may be pushed over images that only the bundle has."""
    child = manifests.parse(read(store.manifest(NOVA, bundle.nova)))
    _, digest = put(store, NOVA, index_body([child]), "all")
    assert store.tag(NOVA, "all") == digest


def test_mount_from_the_bundle(
    store: OverlayStore, bundle: Made, root: Path, open_overlay: OpenOverlay
) -> None:
    """A link, no copy; it lasts as long as something has the bytes."""
    store.mount("team/app", digests.of(NEW), NOVA)
    assert read(store.blob("team/app", digests.of(NEW))) == NEW
    proof_of(store.blob("team/app", digests.of(NEW))).establish()
    assert stored(root) == set()
    assert "team/app" in store.repositories("", 9)
    with pytest.raises(BlobUnknown):
        store.mount("team/other", digests.of(NEW), GLANCE)
    push(store, "team/app", b"{}")
    _, digest = put(store, "team/app", image_body(b"{}", [NEW]), "1")
    without = open_overlay()
    with pytest.raises(BlobUnknown):
        without.blob("team/app", digests.of(NEW))
    assert without.tag("team/app", "1") == digest
    again = open_overlay(bundle.path)
    assert read(again.blob("team/app", digests.of(NEW))) == NEW


def test_mount_into_a_repository_of_the_bundle(store: OverlayStore) -> None:
    """From the upper store into a repository that only the bundle had."""
    digest = push(store, "team/app", b"blob")
    store.mount(NOVA, digest, "team/app")
    assert read(store.blob(NOVA, digest)) == b"blob"


def test_pushed_copy_is_served_first(store: OverlayStore, root: Path) -> None:
    """A blob that the bundle has too, once pushed, comes from the upper store, as proven there."""
    push(store, NOVA, NEW)
    assert store.blob(NOVA, digests.of(NEW)).path.is_relative_to(root)


def test_pushing_mends_a_corrupt_bundle(tmp_path: Path, open_overlay: OpenOverlay) -> None:
    """A blob that is corrupt in the bundle is served again once it was pushed."""
    made = Made(tmp_path / "damaged.tar")
    name = blob_name(str(digests.of(NEW)))
    made.layout.files[name] = bytes(len(NEW))
    store = open_overlay(made.layout.write_tar(made.path))
    with pytest.raises(ContentCorrupt):
        proof_of(store.blob(NOVA, digests.of(NEW))).establish()
    with pytest.raises(ContentCorrupt):
        store.blob(NOVA, digests.of(NEW))
    push(store, NOVA, NEW)
    assert read(store.blob(NOVA, digests.of(NEW))) == NEW
    os.utime(store.blob(NOVA, digests.of(NEW)).path, (0, 0))
    assert collect(store, 0).blobs == ()
    assert read(store.blob(NOVA, digests.of(NEW))) == NEW


def test_bundle_of_differences(tmp_path: Path, open_overlay: OpenOverlay, bundle: Made) -> None:
    """What a bundle leaves out comes from the store where the same repository links it.

    Its manifest may name any digest: that gives it nothing of another's.
    """
    made = Made(tmp_path / "delta.tar")
    del made.layout.files[blob_name(str(digests.of(BASE)))]
    store = open_overlay(made.layout.write_tar(made.path))
    with pytest.raises(BlobUnknown):
        store.blob(NOVA, digests.of(BASE))
    push(store, "secret/app", BASE)
    for call in (store.blob, store.touch):
        with pytest.raises(BlobUnknown):
            call(NOVA, digests.of(BASE))
    assert NOVA not in store.repositories_with(digests.of(BASE))
    with pytest.raises(BlobUnknown):
        store.mount("elsewhere", digests.of(BASE), NOVA)
    push(store, NOVA, BASE)
    assert read(store.blob(NOVA, digests.of(BASE))) == BASE
    with pytest.raises(BlobUnknown):
        store.blob("old/other", digests.of(BASE))


# Deleting


def test_deleted_tag(store: OverlayStore, bundle: Made, open_overlay: OpenOverlay) -> None:
    """Gone at once and after a restart; the manifest and its other tags stay."""
    store.delete_tag(NOVA, "1")
    for seen in (store, open_overlay(bundle.path)):
        with pytest.raises(ManifestUnknown):
            seen.tag(NOVA, "1")
        with pytest.raises(ManifestUnknown):
            seen.delete_tag(NOVA, "1")
        assert seen.tags(NOVA) == ["latest"]
        assert seen.manifest(NOVA, bundle.nova).size > 0


def test_deleted_tag_uncovers_nothing(store: OverlayStore) -> None:
    """A tag that was pushed over the bundle's, deleted, does not bring that one back."""
    put_image(store, NOVA, "1")
    store.delete_tag(NOVA, "1")
    with pytest.raises(ManifestUnknown):
        store.tag(NOVA, "1")
    assert store.tags(NOVA) == ["latest"]


def test_deleted_manifest(store: OverlayStore, bundle: Made, open_overlay: OpenOverlay) -> None:
    """With every tag on it, at once and after a restart, in one repository only."""
    store.delete_manifest(NOVA, bundle.nova)
    for seen in (store, open_overlay(bundle.path)):
        gone(seen, NOVA, bundle.nova, "1", "latest")
        with pytest.raises(ManifestUnknown):
            seen.delete_manifest(NOVA, bundle.nova)
        assert seen.tag(GLANCE, "1") == bundle.glance
        assert read(seen.blob(NOVA, digests.of(NEW))) == NEW


def test_deleted_manifest_uncovers_nothing(store: OverlayStore, bundle: Made) -> None:
    """Tags of what was pushed over the bundle's go, and the bundle's do not come back."""
    _, digest = put_image(store, NOVA, "1", "2")
    store.delete_manifest(NOVA, digest)
    gone(store, NOVA, digest, "1", "2")
    assert store.tags(NOVA) == ["latest"]
    assert store.tag(NOVA, "latest") == bundle.nova


def test_deleted_referrer(store: OverlayStore, bundle: Made) -> None:
    """It leaves the list."""
    store.delete_manifest(NOVA, bundle.sbom)
    assert list(store.referrers(NOVA, bundle.nova)) == []


def test_deleted_blob(store: OverlayStore, bundle: Made, open_overlay: OpenOverlay) -> None:
    """Gone from its repository, at once and after a restart; others keep it."""
    shared = digests.of(BASE)
    store.delete_blob(NOVA, shared)
    for seen in (store, open_overlay(bundle.path)):
        for call in (seen.blob, seen.delete_blob):
            with pytest.raises(BlobUnknown):
                call(NOVA, shared)
        assert list(seen.repositories_with(shared)) == [GLANCE]
        assert read(seen.blob(GLANCE, shared)) == BASE


def test_deleted_blob_on_both_sides(store: OverlayStore) -> None:
    """Pushed over the bundle's, deleted, it is gone from both."""
    digest = push(store, NOVA, NEW)
    store.delete_blob(NOVA, digest)
    with pytest.raises(BlobUnknown):
        store.blob(NOVA, digest)


def test_repository_of_which_nothing_is_left(store: OverlayStore, bundle: Made) -> None:
    """It leaves the catalog, and is back with the first push."""
    for digest in (bundle.nova, bundle.sbom):
        store.delete_manifest(NOVA, digest)
    assert store.repositories("", 9) == [GLANCE]
    assert store.repositories("", 1) == [GLANCE]
    with pytest.raises(NameUnknown):
        store.tags(NOVA)
    put_image(store, NOVA, "new")
    assert store.repositories("", 9) == [GLANCE, NOVA]
    assert store.tags(NOVA) == ["new"]


def test_pushed_again_after_deleting(
    store: OverlayStore, bundle: Made, open_overlay: OpenOverlay
) -> None:
    """The same image, tag and blob can come back, and be deleted again."""
    body = read(store.manifest(NOVA, bundle.nova))
    config = digests.parse(bundle.manifest(bundle.nova)["config"]["digest"])
    content = read(store.blob(NOVA, config))
    for _ in range(2):
        store.delete_manifest(NOVA, bundle.nova)
        store.delete_blob(NOVA, config)
        with pytest.raises(ManifestBlobUnknown):
            put(store, NOVA, body, "1")
        push(store, NOVA, content)
        put(store, NOVA, body, "1")
        for seen in (store, open_overlay(bundle.path)):
            assert seen.tag(NOVA, "1") == bundle.nova
            assert seen.tags(NOVA) == ["1"]
            assert read(seen.blob(NOVA, config)) == content


def test_newer_bundle_is_not_hidden(
    store: OverlayStore, bundle: Made, tmp_path: Path, open_overlay: OpenOverlay
) -> None:
    """A tag deleted of one bundle is there again when another brings a new image under it."""
    store.delete_manifest(NOVA, bundle.nova)
    store.delete_tag(GLANCE, "1")
    newer = Layout()
    for name in (NOVA, GLANCE):
        digest = newer.name(newer.image(OLD), f"quay.io/{name}:1")
    seen = open_overlay(newer.write_tar(tmp_path / "newer.tar"))
    assert seen.tag(NOVA, "1") == digest
    assert seen.tag(GLANCE, "1") == digest


@pytest.mark.parametrize("what", ["tag", "manifest"])
def test_interrupted_delete(
    store: OverlayStore, bundle: Made, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Ended between its steps, a delete has not happened; it never shows what lies beneath."""
    _, digest = put_image(store, NOVA, "1")
    calls = {
        "tag": lambda: store.delete_tag(NOVA, "1"),
        "manifest": lambda: store.delete_manifest(NOVA, digest),
    }
    with monkeypatch.context() as patch:
        for name in ("remove_tag", "remove_manifest"):
            patch.setattr(DistributionStore, name, _stop)
        with pytest.raises(KeyboardInterrupt):
            calls[what]()
    assert store.tag(NOVA, "1") == digest
    calls[what]()
    with pytest.raises(ManifestUnknown):
        store.tag(NOVA, "1")


def _stop(*_args: object) -> None:
    raise KeyboardInterrupt


# What lies in the upper store


def test_collecting(store: OverlayStore, bundle: Made, root: Path) -> None:
    """Garbage goes; what pushed images use stays, links into the bundle among it."""
    push(store, "team/app", b"{}")
    store.mount("team/app", digests.of(BASE), NOVA)
    put(store, "team/app", image_body(b"{}", [BASE]), "1")
    garbage = push(store, "team/app", b"garbage")
    for path in root.rglob("data"):
        os.utime(path, (0, 0))
    assert collect(store, 0).blobs == (garbage,)
    assert read(store.blob("team/app", digests.of(BASE))) == BASE
    assert read(store.blob("team/app", digests.of(b"{}"))) == b"{}"


def test_manifest_that_goes_while_it_is_read(
    store: OverlayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted between being found and being read, it is unknown."""
    _, digest = put_image(store, NOVA, "mine")
    extent = store.manifest(NOVA, digest)
    monkeypatch.setattr(store, "manifest", lambda repository, digest: extent)
    extent.path.unlink()
    with pytest.raises(ManifestUnknown):
        read_unverified(store, NOVA, digest)


def test_plain_store_on_the_same_root(store: OverlayStore, bundle: Made, root: Path) -> None:
    """Served without the bundle, the root is an ordinary one that holds what was pushed."""
    put_image(store, NOVA, "mine")
    store.delete_tag(NOVA, "1")
    store.delete_manifest(GLANCE, bundle.glance)
    plain = DistributionStore(root)
    assert plain.repositories("", 9) == [NOVA]
    assert plain.tags(NOVA) == ["mine"]
    plain.close()


def test_whiteouts_are_all_that_deleting_leaves(
    store: OverlayStore, bundle: Made, root: Path
) -> None:
    """Under names that registry:2 passes over, and empty."""
    store.delete_tag(NOVA, "1")
    store.delete_manifest(GLANCE, bundle.glance)
    store.delete_blob(NOVA, digests.of(NEW))
    found = files(root / "docker/registry/v2/repositories")
    prefix = "_mayfly/whiteouts"
    assert found == {
        f"{NOVA}/{prefix}/tags/1/sha256/{bundle.nova.hex}": b"",
        f"{NOVA}/{prefix}/blobs/sha256/{digests.of(NEW).hex}": b"",
        f"{GLANCE}/{prefix}/manifests/sha256/{bundle.glance.hex}": b"",
    }


def test_has_repository(store: OverlayStore) -> None:
    """Only what was pushed: neither the bundle's nor what holds whiteouts alone."""
    store.delete_tag(NOVA, "1")
    assert not store.upper.has_repository(NOVA)
    put_image(store, "library/nova", "1")
    assert store.upper.has_repository("library/nova")
    assert not store.upper.has_repository("library")


# Layers of another kind


def test_registry_directory_beneath(tmp_path: Path, open_overlay: OpenOverlay) -> None:
    """Another registry's directory: read and hidden like a bundle, and not written to."""
    other = tmp_path / "other"
    lower = DistributionStore(other)
    image, digest = put_image(lower, "team/app", "1", "2")
    _, referrer = put_image(lower, "team/app", config=b"[]", subject=subject_of(image))
    lower.close()
    for path in other.rglob("*"):
        os.utime(path, (0, 0))
    before = files(other)
    store = open_overlay(other)
    assert store.tags("team/app") == ["1", "2"]
    put(store, "team/app", image_body(b"{}", annotations={"a": "b"}), "3")
    store.mount("copy", digests.of(b"{}"), "team/app")
    store.delete_tag("team/app", "1")
    assert store.tags("team/app") == ["2", "3"]
    assert [d["digest"] for d in list(store.referrers("team/app", digest))] == [str(referrer)]
    store.delete_manifest("team/app", digest)
    assert store.tags("team/app") == ["3"]
    assert collect(store, 0).blobs == ()
    assert files(other) == before
    assert {p.stat().st_mtime for p in other.rglob("*")} == {0}


def test_layers_that_disagree(tmp_path: Path, open_overlay: OpenOverlay, bundle: Made) -> None:
    """A tag on which two layers disagree is an error until one is pushed."""
    other = tmp_path / "other"
    lower = DistributionStore(other)
    put_image(lower, NOVA, "1")
    lower.close()
    store = open_overlay(bundle.path, other)
    with pytest.raises(BundleConflict):
        store.tag(NOVA, "1")
    _, digest = put_image(store, NOVA, "1", config=b"[]")
    assert store.tag(NOVA, "1") == digest


def test_index_of_what_the_bundle_has(bundle: Made, open_overlay: OpenOverlay) -> None:
    """An index over images that only the bundle has is whole; once they are deleted, it is not."""
    store = open_overlay(bundle.path)
    child = manifests.parse_stored(bundle.layout.files[blob_name(str(bundle.nova))])
    put(store, NOVA, index_body([child]), "both")
    assert verify(store).findings == ()
    store.delete_manifest(NOVA, digests.of(child.body))
    (finding,) = verify(store).findings
    assert (finding.fault, finding.digest) == (Fault.MISSING, digests.of(child.body))
