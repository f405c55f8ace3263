"""What is synced, and in which order: a blob that was answered with 201 outlives a power cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.directory.publish import Publisher
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.interface import Store
from tests.storage.contract import OpenStore
from tests.storage.disk import Disk, Step
from tests.support.images import image_body, put, put_image

REPO = "team/app"


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """A publisher over an empty tree."""
    made = Publisher(tmp_path / "tree", tmp_path / "tree/_scratch")
    made.open()
    return made


def test_write(publisher: Publisher, tmp_path: Path, disk: Disk) -> None:
    """Temporary file, sync, directories each synced into its parent, rename, sync directory."""
    tree = tmp_path / "tree"
    with disk.watch():
        publisher.write(tree / "a/b/file", b"content")
    temporary = disk.steps[0].path
    assert temporary.is_relative_to(tree / "_scratch")
    assert disk.steps == [
        Step("create", temporary),
        Step("write", temporary),
        Step("fsync", temporary),
        Step("mkdir", tree / "a"),
        Step("fsync", tree),
        Step("mkdir", tree / "a/b"),
        Step("fsync", tree / "a"),
        Step("rename", temporary, tree / "a/b/file"),
        Step("fsync", tree / "a/b"),
    ]
    assert (tree / "a/b/file").read_bytes() == b"content"


def test_write_over_another(publisher: Publisher, tmp_path: Path, disk: Disk) -> None:
    """The old content is replaced by rename, never written over."""
    target = tmp_path / "tree/a/file"
    publisher.write(target, b"old")
    with disk.watch():
        publisher.write(target, b"new")
    temporary = disk.steps[0].path
    assert disk.steps == [
        Step("create", temporary),
        Step("write", temporary),
        Step("fsync", temporary),
        Step("rename", temporary, target),
        Step("fsync", target.parent),
    ]


def test_adopt(publisher: Publisher, tmp_path: Path, disk: Disk) -> None:
    """A finished file is synced before it is renamed, its directory after."""
    source, target = tmp_path / "tree/source", tmp_path / "tree/a/file"
    source.write_bytes(b"content")
    with disk.watch():
        publisher.adopt(source, target)
    assert disk.steps == [
        Step("fsync", source),
        Step("mkdir", target.parent),
        Step("fsync", target.parent.parent),
        Step("rename", source, target),
        Step("fsync", target.parent),
    ]


def test_remove(publisher: Publisher, tmp_path: Path, disk: Disk) -> None:
    """A removed file stays removed: its directory is synced. What was absent costs nothing."""
    target = tmp_path / "tree/a/file"
    publisher.write(target, b"content")
    publisher.write(target.with_name("other"), b"keeps the directory")
    with disk.watch():
        assert publisher.remove(target)
        assert not publisher.remove(target)
    assert disk.steps[:2] == [Step("unlink", target), Step("fsync", target.parent)]
    assert target.parent.is_dir()


def test_remove_tree(publisher: Publisher, tmp_path: Path, disk: Disk) -> None:
    """A tree is gone by one rename, which is synced, whatever lies in it."""
    tree = tmp_path / "tree"
    for name in ("one", "two/three"):
        publisher.write(tree / "a/doomed" / name, b"x")
    with disk.watch():
        assert publisher.remove_tree(tree / "a/doomed")
        assert not publisher.remove_tree(tree / "a/doomed")
    first, second = disk.steps[:2]
    assert (first.kind, first.path) == ("rename", tree / "a/doomed")
    assert second == Step("fsync", tree / "a")
    assert [p for p in (tree / "_scratch").rglob("*") if p.is_file()] == []


def test_root_is_synced_into_its_parents(tmp_path: Path, disk: Disk) -> None:
    """On a new root the directories above the blobs are as durable as those below."""
    with disk.watch():
        DistributionStore(tmp_path / "root").close()
    made = [s.path for s in disk.steps if s.kind == "mkdir" and s.path.is_relative_to(tmp_path)]
    synced = {s.path for s in disk.steps if s.kind == "fsync"}
    base = tmp_path / "root/docker/registry/v2"
    assert base in made
    assert [d for d in made if base.is_relative_to(d) and d.parent not in synced] == []


def assert_durable(steps: list[Step]) -> None:
    """Every published file was whole before its rename, and the rename was synced at once."""
    renames = [n for n, s in enumerate(steps) if s.kind == "rename"]
    assert renames
    for number in renames:
        source, target = steps[number].path, steps[number].target
        assert target is not None
        before, after = steps[:number], steps[number + 1 :]
        if after and after[0].path.name.startswith("_mayfly_size_"):
            # The verified size: an empty file beside the bytes, made after them and synced with
            # them.
            assert target.name == "data" and after.pop(0).path.parent == target.parent
        written = [n for n, s in enumerate(before) if s.kind == "write" and s.path == source]
        synced = [n for n, s in enumerate(before) if s == Step("fsync", source)]
        assert synced and max(written, default=-1) < synced[-1], steps[number]
        assert after and after[0] == Step("fsync", target.parent), steps[number]
        for made in (s.path for s in before if s.kind == "mkdir"):
            if target.is_relative_to(made):
                assert Step("fsync", made.parent) in before[before.index(Step("mkdir", made)) :]


def _targets(disk: Disk) -> list[str]:
    return [str(s.target).partition("/registry/v2/")[2] for s in disk.steps if s.kind == "rename"]


def test_commit(open_store: OpenStore, disk: Disk) -> None:
    """A commit publishes the data before the link that makes it visible."""
    upload = open_store().begin_upload(REPO, "sha256")
    upload.write([b"x" * 10, b"y"], 0)
    digest = digests.of(b"x" * 10 + b"y")
    with disk.watch():
        upload.commit(digest)
    assert_durable(disk.steps)
    assert _targets(disk) == [
        f"blobs/sha256/{digest.hex[:2]}/{digest.hex}/data",
        f"repositories/{REPO}/_layers/sha256/{digest.hex}/link",
    ]


def test_put_manifest(open_store: OpenStore, disk: Disk) -> None:
    """Data, then revision, then each tag and its history: a tag never points at what could be lost,
    and only one that was there before can have a history without a link."""
    store: Store = open_store()
    put_image(store, REPO)
    body = image_body(annotations={"new": "one"})
    digest = digests.of(body)
    with disk.watch():
        put(store, REPO, body, "v1", "v2")
    assert_durable(disk.steps)
    manifests = f"repositories/{REPO}/_manifests"
    assert _targets(disk) == [
        f"blobs/sha256/{digest.hex[:2]}/{digest.hex}/data",
        f"{manifests}/revisions/sha256/{digest.hex}/link",
        f"{manifests}/tags/v1/current/link",
        f"{manifests}/tags/v1/index/sha256/{digest.hex}/link",
        f"{manifests}/tags/v2/current/link",
        f"{manifests}/tags/v2/index/sha256/{digest.hex}/link",
    ]


def test_mount(open_store: OpenStore, disk: Disk) -> None:
    """A mount is durable too."""
    store = open_store()
    put_image(store, REPO)
    with disk.watch():
        store.mount("copy", digests.of(b"{}"), REPO)
    assert_durable(disk.steps)


def test_second_instance_syncs_what_it_did_not_make(open_store: OpenStore, disk: Disk) -> None:
    """A directory that another process made, synced or not, is synced before it is relied on."""
    put_image(open_store(), REPO)
    store = open_store()
    body = image_body(annotations={"second": "instance"})
    with disk.watch():
        put(store, REPO, body)
    assert_durable(disk.steps)
    synced = [s.path.name for s in disk.steps if s.kind == "fsync"]
    assert {"revisions", "_manifests", "app", "team", "repositories"} <= set(synced)


def test_what_another_published_is_confirmed(root: Path, open_store: OpenStore, disk: Disk) -> None:
    """A manifest is not answered before what it names is durable, from any client; once."""
    _, digest = put_image(open_store(), REPO)
    store = open_store()
    config = digests.of(b"{}")
    base = root / "docker/registry/v2"
    data = base / f"blobs/sha256/{config.hex[:2]}/{config.hex}/data"
    link = base / f"repositories/{REPO}/_layers/sha256/{config.hex}/link"
    with disk.watch():
        put(store, REPO, image_body(), "v1")
    synced = [s.path for s in disk.steps if s.kind == "fsync"]
    revision = base / f"repositories/{REPO}/_manifests/revisions/sha256/{digest.hex}/link"
    for file in (data, link, revision):
        assert {file, file.parent, file.parent.parent} <= set(synced)
    with disk.watch():
        put(store, REPO, image_body(), "v1")
    synced = [s.path for s in disk.steps if s.kind == "fsync"]
    assert not {data, link, revision} & set(synced)


def test_absence_is_confirmed(publisher: Publisher, tmp_path: Path, disk: Disk) -> None:
    """Of what was removed already the nearest directory is synced, and empty ones are pruned."""
    tree = tmp_path / "tree"
    publisher.make_directory(tree / "a/empty")
    (tree / "a/file").write_bytes(b"keeps it")
    with disk.watch():
        publisher.confirm_absent(tree / "a/empty/gone")
        publisher.confirm_absent(tree / "a/b/c/gone")
    synced = [s.path for s in disk.steps if s.kind == "fsync"]
    assert synced == [tree / "a/empty", tree / "a"]
    assert not (tree / "a/empty").exists()
