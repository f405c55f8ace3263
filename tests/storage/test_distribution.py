"""The writable store: the contract, and what the format of registry:2 adds to it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import DigestInvalid, StorageError, UploadUnknown
from tests.storage.contract import OpenStore, StoreContract
from tests.support.images import file_of, image_body, push, put, put_image, read

REPO = "team/app"


class TestContract(StoreContract):
    """The contract on a new root, and on one reached by a symlink where strange things lie."""

    @pytest.fixture(params=["new root", "used root"], autouse=True)
    def prepare(self, request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> None:
        if request.param == "used root":
            (tmp_path / "real").mkdir()
            root.symlink_to("real")
            base = root / "docker/registry/v2"
            for name in ("_mayfly/other", "blobs/sha256/_x", "repositories/_empty/_layers"):
                (base / name).mkdir(parents=True)
            (base / "repositories/stray").write_text("a file among repositories")


def _paths(root: Path) -> set[str]:
    base = root / "docker/registry/v2"
    return {str(p.relative_to(base)) for p in base.rglob("*") if p.is_file()}


def test_files_are_where_registry_2_looks(root: Path, open_store: OpenStore) -> None:
    """An image with a tag makes exactly the files of the format, each link its digest's text.

    Beside the bytes lie their verified sizes, in names that registry:2 does not ask for.
    """
    store = open_store()
    _, digest = put_image(store, REPO, "v1")
    config = digests.of(b"{}")
    repository = f"repositories/{REPO}"
    links = {
        f"{repository}/_layers/sha256/{config.hex}/link": config,
        f"{repository}/_manifests/revisions/sha256/{digest.hex}/link": digest,
        f"{repository}/_manifests/tags/v1/current/link": digest,
        f"{repository}/_manifests/tags/v1/index/sha256/{digest.hex}/link": digest,
    }
    sizes = {config: 2, digest: len(image_body())}
    blobs = {d: f"blobs/sha256/{d.hex[:2]}/{d.hex}" for d in sizes}
    data = {f"{blobs[d]}/data" for d in sizes}
    records = {f"{blobs[d]}/_mayfly_size_{size}" for d, size in sizes.items()}
    assert _paths(root) == links.keys() | data | records
    for path, linked in links.items():
        assert (root / "docker/registry/v2" / path).read_bytes() == str(linked).encode()


def test_sha512_has_its_own_directories(root: Path, open_store: OpenStore) -> None:
    """The algorithm is part of every path."""
    digest = push(open_store(), REPO, b"x", "sha512")
    assert _paths(root) == {
        f"blobs/sha512/{digest.hex[:2]}/{digest.hex}/data",
        f"blobs/sha512/{digest.hex[:2]}/{digest.hex}/_mayfly_size_1",
        f"repositories/{REPO}/_layers/sha512/{digest.hex}/link",
    }


def test_tag_history_keeps_every_revision(root: Path, open_store: OpenStore) -> None:
    """A tag's index lists what it pointed at before; registry:2's collector reads it."""
    store = open_store()
    made = {put_image(store, REPO, "latest", config=config)[1] for config in (b"{}", b"{ }")}
    index = root / "docker/registry/v2/repositories" / REPO / "_manifests/tags/latest/index/sha256"
    assert set(os.listdir(index)) == {d.hex for d in made}


def test_upload_session_on_disk(root: Path, open_store: OpenStore) -> None:
    """A session is ``data`` and ``startedat`` as registry:2 writes them."""
    upload = open_store().begin_upload(REPO, "sha256")
    upload.write([b"half"], 0)
    directory = root / "docker/registry/v2/repositories" / REPO / "_uploads" / upload.id
    assert {p.name for p in directory.iterdir()} == {"data", "startedat"}
    assert (directory / "data").read_bytes() == b"half"
    started = (directory / "startedat").read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", started)


@pytest.mark.parametrize("end", ["commit", "cancel", "wrong digest"])
def test_ended_session_leaves_nothing(root: Path, open_store: OpenStore, end: str) -> None:
    """However a session ends, no part of it stays on disk."""
    upload = open_store().begin_upload(REPO, "sha256")
    upload.write([b"bytes"], 0)
    match end:
        case "commit":
            upload.commit(digests.of(b"bytes"))
        case "cancel":
            upload.cancel()
        case _:
            with pytest.raises(DigestInvalid):
                upload.commit(digests.of(b"other"))
    assert not [p for p in _paths(root) if "_uploads" in p]
    assert not list((root / "docker/registry/v2").rglob("_uploads"))


def test_deleting_everything_leaves_no_repository(root: Path, open_store: OpenStore) -> None:
    """Once the last link is gone the repository is, from the catalog and from the disk."""
    store = open_store()
    _, digest = put_image(store, REPO, "v1")
    store.delete_manifest(REPO, digest)
    store.delete_blob(REPO, digests.of(b"{}"))
    assert store.repositories("", 10) == []
    assert list((root / "docker/registry/v2/repositories").iterdir()) == []


def test_purge_ends_only_old_sessions(root: Path, open_store: OpenStore) -> None:
    """Sessions without a write for long are dropped, also those of which only a part is left."""
    store = open_store()
    assert isinstance(store, DistributionStore)
    fresh, old = (store.begin_upload(name, "sha256") for name in ("fresh/one", "old/one"))
    uploads = root / "docker/registry/v2/repositories/old/one/_uploads"
    torn = uploads / "2f1c9a52-6a3c-4a53-9a38-0a2fd5a4a9ad"
    torn.mkdir()
    (torn / "startedat").write_text("2020-01-01T00:00:00Z")
    for path in (uploads / old.id / "data", uploads / old.id, torn):
        os.utime(path, (0, 0))
    assert store.purge_uploads(3600) == 2
    assert fresh.offset == 0
    assert not [p for p in _paths(root) if "old/one" in p]
    with pytest.raises(UploadUnknown):
        store.upload("old/one", old.id)


def test_pushing_again_mends_a_damaged_blob(open_store: OpenStore) -> None:
    """A blob that something outside damaged is whole again after the next push."""
    store = open_store()
    digest = push(store, REPO, b"whole")
    data = file_of(store.blob(REPO, digest))
    data.write_bytes(b"dam")
    push(store, REPO, b"whole")
    assert data.read_bytes() == b"whole"


def test_pushing_again_renews_the_age(open_store: OpenStore) -> None:
    """A blob pushed again is young: a collector that spares the young spares it."""
    store = open_store()
    digest = push(store, REPO, b"aged")
    path = file_of(store.blob(REPO, digest))
    os.utime(path, (0, 0))
    push(store, REPO, b"aged")
    assert path.stat().st_mtime > 0
    body = image_body(b"aged")
    _, manifest = put(store, REPO, body)
    path = file_of(store.manifest(REPO, manifest))
    os.utime(path, (0, 0))
    put(store, REPO, body)
    assert path.stat().st_mtime > 0


def test_upload_that_nobody_is_told_of(root: Path, open_store: OpenStore) -> None:
    """It is pushed as any other, cannot be found, and lies where the next start tidies up."""
    store = open_store()
    upload = store.begin_upload(REPO, "sha512", resumable=False)
    upload.write([b"whole"], 0)
    with pytest.raises(UploadUnknown):
        store.upload(REPO, upload.id)
    assert [p for p in _paths(root) if not p.startswith("_mayfly/scratch/")] == []
    digest = digests.of(b"whole", "sha512")
    upload.commit(digest)
    assert read(store.blob(REPO, digest)) == b"whole"
    assert not [p for p in _paths(root) if p.startswith("_mayfly/scratch/")]


def test_upload_that_nobody_is_told_of_ends(root: Path, open_store: OpenStore) -> None:
    """Names are checked before anything is written; a cancelled or wrong one leaves nothing."""
    store = open_store()
    for repository, algorithm in [("Not/Valid", "sha256"), (REPO, "md5")]:
        with pytest.raises(StorageError):
            store.begin_upload(repository, algorithm, resumable=False)
    store.begin_upload(REPO, "sha256", resumable=False).cancel()
    with pytest.raises(DigestInvalid):
        store.begin_upload(REPO, "sha256", resumable=False).commit(digests.of(b"other"))
    assert _paths(root) == set()
    put_image(store, REPO)
