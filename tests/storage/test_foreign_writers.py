"""What registry:2, its garbage collector, a crash or a person did to the directory meanwhile.

The store keeps no state that such a change could make wrong for longer than the next read. The
helpers write and delete as distribution's filesystem driver does: a delete removes the ``link``
file and leaves its directory.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import BlobUnknown, ManifestUnknown, UploadUnknown
from mayfly.storage.interface import Store
from tests.storage.contract import OpenStore
from tests.support.images import (
    descriptor,
    file_of,
    image_body,
    push,
    put,
    put_image,
    read,
    subject_of,
)

REPO = "team/app"


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """The store that is written to behind its back."""
    return open_store()


@pytest.fixture
def base(root: Path) -> Path:
    """The directory that registry:2 works in."""
    return root / "docker/registry/v2"


def _settle(directory: Path) -> None:
    """Make a directory look unchanged for an hour, as it is on a real volume."""
    then = directory.stat().st_mtime_ns - 3600 * 10**9
    os.utime(directory, ns=(then, then))


def _revision(base: Path, digest: Digest) -> Path:
    return base / "repositories" / REPO / "_manifests/revisions/sha256" / digest.hex


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _push_as_registry_2(base: Path, body: bytes, *tags: str) -> Digest:
    digest = digests.of(body)
    _write(base / "blobs/sha256" / digest.hex[:2] / digest.hex / "data", body)
    _write(_revision(base, digest) / "link", str(digest).encode())
    for tag in tags:
        directory = base / "repositories" / REPO / "_manifests/tags" / tag
        _write(directory / "index/sha256" / digest.hex / "link", str(digest).encode())
        _write(directory / "current/link", str(digest).encode())
    return digest


def _listed(store: Store, subject: Digest) -> list[str]:
    return [str(d["digest"]) for d in store.referrers(REPO, subject)]


def test_push_is_seen(store: Store, base: Path) -> None:
    """A manifest and tag that registry:2 wrote are served."""
    digest = _push_as_registry_2(base, image_body(), "theirs")
    assert store.tag(REPO, "theirs") == digest
    assert store.tags(REPO) == ["theirs"]
    assert read(store.manifest(REPO, digest)) == image_body()
    assert store.repositories("", 10) == [REPO]


def test_new_referrer_is_seen(store: Store, base: Path) -> None:
    """A referrer that another process wrote is in the next list."""
    image, subject = put_image(store, REPO)
    ours = put(store, REPO, image_body(subject=subject_of(image)))[1]
    _settle(_revision(base, ours).parent)
    assert _listed(store, subject) == [str(ours)]
    theirs = _push_as_registry_2(base, image_body(subject=subject_of(image), annotations={}))
    assert _listed(store, subject) == sorted([str(ours), str(theirs)])


def test_deleted_referrer_is_gone(store: Store, base: Path) -> None:
    """registry:2 deletes a manifest by its link file alone; the list must not keep it."""
    image, subject = put_image(store, REPO)
    referrer = put(store, REPO, image_body(subject=subject_of(image)))[1]
    _settle(_revision(base, referrer).parent)
    assert _listed(store, subject) == [str(referrer)]
    (_revision(base, referrer) / "link").unlink()
    with pytest.raises(ManifestUnknown):
        store.manifest(REPO, referrer)
    assert _listed(store, subject) == []


@pytest.mark.parametrize("pushed_by", ["us", "registry:2"])
def test_referrer_pushed_where_one_was_deleted(store: Store, base: Path, pushed_by: str) -> None:
    """A referrer pushed again into the directory that registry:2's delete left is listed."""
    image, subject = put_image(store, REPO)
    body = image_body(subject=subject_of(image))
    referrer = digests.of(body)
    _revision(base, referrer).mkdir(parents=True)
    _settle(_revision(base, referrer).parent)
    assert _listed(store, subject) == []
    if pushed_by == "us":
        put(store, REPO, body)
    else:
        _push_as_registry_2(base, body)
    assert store.manifest(REPO, referrer).size == len(body)
    assert _listed(store, subject) == [str(referrer)]


def test_damaged_referrer_is_passed_over(store: Store) -> None:
    """A manifest that is not one any more hides no other."""
    image, subject = put_image(store, REPO)
    bodies = [image_body(subject=subject_of(image), annotations={"n": str(n)}) for n in range(3)]
    made = [put(store, REPO, body)[1] for body in bodies]
    file_of(store.manifest(REPO, made[0])).write_bytes(b"\xff{not a manifest")
    file_of(store.manifest(REPO, made[1])).unlink()
    assert _listed(store, subject) == [str(made[2])]


def test_data_removed_by_the_garbage_collector(store: Store) -> None:
    """A link whose data is gone is as good as no link."""
    digest = push(store, REPO, b"collected")
    _, manifest = put_image(store, REPO, "v1")
    file_of(store.blob(REPO, digest)).unlink()
    file_of(store.manifest(REPO, manifest)).unlink()
    with pytest.raises(BlobUnknown):
        store.blob(REPO, digest)
    with pytest.raises(ManifestUnknown):
        store.manifest(REPO, manifest)
    with pytest.raises(BlobUnknown):
        store.mount("team/copy", digest, REPO)
    assert list(store.repositories_with(digest)) == []
    assert push(store, REPO, b"collected") == digest
    assert read(store.blob(REPO, digest)) == b"collected"


def test_upload_removed(store: Store, base: Path) -> None:
    """A session whose directory something purged is unknown, not an internal error."""
    upload = store.begin_upload(REPO, "sha256")
    upload.write([b"x"], 0)
    directory = base / "repositories" / REPO / "_uploads" / upload.id
    (directory / "data").unlink()
    for call in (
        lambda: store.upload(REPO, upload.id),
        lambda: upload.offset,
        lambda: upload.write([b"y"], 1),
        lambda: upload.commit(digests.of(b"x")),
    ):
        with pytest.raises(UploadUnknown):
            call()


def test_strange_entries_among_sessions(store: Store, base: Path) -> None:
    """What is no session is not counted as one, and keeps none from being ended."""
    old = store.begin_upload(REPO, "sha256").id
    uploads = base / "repositories" / REPO / "_uploads"
    _write(uploads / "not-a-uuid/startedat", b"\xff\xfe")
    _write(uploads / "a-file", b"x")
    (uploads / "gone").symlink_to("nowhere")
    for path in (uploads / old / "data", uploads / old, uploads / "not-a-uuid", uploads / "a-file"):
        os.utime(path, (0, 0))
    assert isinstance(store, DistributionStore)
    assert store.purge_uploads(3600) == 2
    assert {path.name for path in uploads.iterdir()} == {"a-file", "gone"}
    assert store.purge_uploads(3600) == 0


def test_session_of_registry_2(store: Store, base: Path) -> None:
    """A session that registry:2 began, with its saved hash states, can be finished here."""
    directory = base / "repositories" / REPO / "_uploads/6a2f41a3-c54c-4a1b-9dbc-5ca4b9a2f0ee"
    _write(directory / "data", b"theirs, ")
    _write(directory / "startedat", b"2026-01-01T00:00:00Z")
    _write(directory / "hashstates/sha256/8", b"opaque")
    upload = store.upload(REPO, directory.name)
    assert upload.offset == 8
    upload.write([b"ours"], 8)
    digest = digests.of(b"theirs, ours")
    upload.commit(digest)
    assert read(store.blob(REPO, digest)) == b"theirs, ours"
    assert not directory.exists()


TORN_LINKS = {
    "empty": b"",
    "zeros": b"\0" * 71,
    "half": b"sha256:abc",
    "binary": b"\xff\xfe",
    "unsupported": b"sha384:" + b"a" * 96,
}
torn_links = pytest.mark.parametrize("torn", TORN_LINKS.values(), ids=TORN_LINKS)


@torn_links
def test_torn_tag_link(store: Store, base: Path, torn: bytes) -> None:
    """A tag's link that a crash of registry:2 left empty or broken: unknown, and mended by a push.

    registry:2 writes links without sync; a zero-length link after power loss is its best-known
    damage.
    """
    _, digest = put_image(store, REPO, "v1", "v2")
    (base / "repositories" / REPO / "_manifests/tags/v1/current/link").write_bytes(torn)
    with pytest.raises(ManifestUnknown):
        store.tag(REPO, "v1")
    assert "v2" in store.tags(REPO)
    put_image(store, REPO, "v1")
    assert store.tag(REPO, "v1") == digest


@torn_links
def test_deletes_beside_a_torn_tag_link(store: Store, base: Path, torn: bytes) -> None:
    """A broken link is no obstacle to deleting a manifest by its digest."""
    _, digest = put_image(store, REPO, "v1", "v2")
    (base / "repositories" / REPO / "_manifests/tags/v1/current/link").write_bytes(torn)
    store.delete_manifest(REPO, digest)
    with pytest.raises(ManifestUnknown):
        store.tag(REPO, "v2")


def test_torn_blob_and_revision_links_are_mended(store: Store, base: Path) -> None:
    """A push over broken links writes whole ones, which registry:2 can read."""
    _, manifest = put_image(store, REPO, "v1")
    config = digests.of(b"{}")
    links = {
        base / "repositories" / REPO / "_layers/sha256" / config.hex / "link": config,
        _revision(base, manifest) / "link": manifest,
    }
    for link in links:
        link.write_bytes(b"")
    put_image(store, REPO, "v1")
    for link, digest in links.items():
        assert link.read_text() == str(digest)


def test_strange_entries_among_tags(store: Store, base: Path) -> None:
    """Files that are no tags (.nfs…, lost+found, editors' copies) are passed over everywhere."""
    _, digest = put_image(store, REPO, "v1")
    tags = base / "repositories" / REPO / "_manifests/tags"
    _write(tags / ".nfs000001", b"")
    _write(tags / "lost+found/current/link", str(digest).encode())
    (tags / "empty").mkdir()
    assert store.tags(REPO) == ["v1"]
    store.delete_manifest(REPO, digest)
    with pytest.raises(ManifestUnknown):
        store.tag(REPO, "v1")


def test_strange_entries_among_revisions(store: Store, base: Path) -> None:
    """What is no digest among the revisions hides no referrer."""
    image, subject = put_image(store, REPO)
    referrer = put(store, REPO, image_body(subject=subject_of(image)))[1]
    _write(_revision(base, subject).parent / "lost+found/link", b"x")
    _write(_revision(base, subject).parent / ".nfs1", b"x")
    _write(_revision(base, subject).parent.parent / "sha384/abc/link", b"x")
    assert _listed(store, subject) == [str(referrer)]


@pytest.mark.parametrize("name", [".snapshot/hourly", "Team", "lost+found", "a b"])
def test_strange_entries_among_repositories(store: Store, base: Path, name: str) -> None:
    """A directory whose name no client could ask for is no repository."""
    digest = push(store, REPO, b"held")
    _write(base / "repositories" / name / "_layers/sha256" / digest.hex / "link", b"x")
    assert store.repositories("", 10) == [REPO]
    assert list(store.repositories_with(digest)) == [REPO]


def test_blob_linked_by_hand(store: Store, base: Path) -> None:
    """A link written by another process makes the blob readable at once."""
    digest = push(store, REPO, b"linked")
    _write(base / "repositories/other/_layers/sha256" / digest.hex / "link", str(digest).encode())
    assert read(store.blob("other", digest)) == b"linked"
    assert sorted(store.repositories_with(digest)) == ["other", REPO]


def test_subject_of_another_algorithm(store: Store, base: Path) -> None:
    """A referrer found on disk may name its subject by any registered algorithm."""
    body = image_body(subject=descriptor(b"subject", algorithm="sha512"))
    referrer = _push_as_registry_2(base, body)
    assert _listed(store, digests.of(b"subject", "sha512")) == [str(referrer)]
