"""Another registry's directory as a bundle: all of it, and not a byte written to it."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.bundle.errors import BundleConflict, BundleInvalid
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import BlobUnknown, ContentCorrupt, ManifestUnknown, NameUnknown
from mayfly.storage.images import images
from tests.bundle.builders import Layout, proof_of, read
from tests.bundle.conftest import OpenAll
from tests.support.images import files, push, put_image, subject_of

REPO = "team/app"
CONFIG = digests.of(b"{}")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What a registry left: an image, what refers to it, a blob of another repository."""
    root = tmp_path / "registry"
    store = DistributionStore(root)
    image, _ = put_image(store, REPO, "v1")
    put_image(store, REPO, subject=subject_of(image))
    push(store, "other", b"other")
    store.close()
    return root


def test_everything_is_read(directory: Path, open_all: OpenAll) -> None:
    """Under the names it has there; blobs with proofs."""
    layer = open_all(directory).layer
    assert layer.repositories("", 9) == ["other", REPO]
    assert layer.tags(REPO) == ["v1"]
    digest = layer.tag(REPO, "v1")
    assert digests.of(read(layer.manifest(REPO, digest))) == digest
    assert len(list(layer.referrers(REPO, digest))) == 1
    extent = layer.blob(REPO, CONFIG)
    proof_of(extent).establish()
    assert read(extent) == b"{}"
    assert list(layer.repositories_with(CONFIG)) == [REPO]
    for name, unknown in (("other", CONFIG), (REPO, digests.of(b"other"))):
        with pytest.raises(BlobUnknown):
            layer.blob(name, unknown)
    with pytest.raises(ManifestUnknown):
        layer.tag(REPO, "v2")
    with pytest.raises(NameUnknown):
        layer.tags("no/such")


def test_nothing_is_written(directory: Path, open_all: OpenAll) -> None:
    """It may lie on a medium that cannot be written to."""
    before = files(directory), set(directory.rglob("*"))
    for path in [directory, *directory.rglob("*")]:
        os.utime(path, (0, 0))
    layer = open_all(directory).layer
    layer.blob(REPO, CONFIG)
    list(layer.referrers(REPO, layer.tag(REPO, "v1")))
    assert (files(directory), set(directory.rglob("*"))) == before
    assert {p.stat().st_mtime for p in directory.rglob("*")} == {0}


def test_corrupt_blob(directory: Path, open_all: OpenAll) -> None:
    """Bit rot is found by the proof; mended content is served again."""
    layer = open_all(directory).layer
    extent = layer.blob(REPO, CONFIG)
    extent.path.write_bytes(b"[]")
    with pytest.raises(ContentCorrupt):
        proof_of(layer.blob(REPO, CONFIG)).establish()
    with pytest.raises(ContentCorrupt):
        layer.blob(REPO, CONFIG)
    extent.path.write_bytes(b"{}")
    proof_of(layer.blob(REPO, CONFIG)).establish()


def test_good_copy_in_another_bundle(tmp_path: Path, open_all: OpenAll) -> None:
    """Where one bundle's copy is corrupt, the next one's is served."""
    layout = Layout()
    layout.name(layout.image(b"shared layer"), "quay.io/a:1")
    root = tmp_path / "second"
    store = DistributionStore(root)
    digest = push(store, "a", b"shared layer")
    store.close()
    layer = open_all(root, layout.write_tar(tmp_path / "b.tar")).layer
    layer.blob("a", digest).path.write_bytes(b"damaged lay.")
    with pytest.raises(ContentCorrupt):
        proof_of(layer.blob("a", digest)).establish()
    extent = layer.blob("a", digest)
    proof_of(extent).establish()
    assert read(extent) == b"shared layer"


def test_disagreement_on_a_tag(directory: Path, tmp_path: Path, open_all: OpenAll) -> None:
    """A directory is not walked at start, so this shows when the tag is asked for."""
    layout = Layout()
    layout.name(layout.image(b"another"), f"docker.io/{REPO}:v1")
    layer = open_all(layout.write_tar(tmp_path / "b.tar"), directory).layer
    with pytest.raises(BundleConflict, match=r"team/app:v1"):
        layer.tag(REPO, "v1")
    assert layer.tags(REPO) == ["v1"]


def test_half_a_directory(tmp_path: Path, open_all: OpenAll) -> None:
    """The directory above or below the one that registry:2 is given is not taken for it."""
    (tmp_path / "r/docker/registry").mkdir(parents=True)
    with pytest.raises(BundleInvalid, match="no bundle"):
        open_all(tmp_path / "r")


def _listed(tmp_path: Path, count: int, open_all: OpenAll) -> Counter[str]:
    """Count the operations on paths while a tar with a number of repositories is listed."""
    root = tmp_path / str(count)
    store = DistributionStore(root)
    for number in range(count):
        put_image(store, f"team/app-{number}", "v1")
    store.close()
    with tarfile.open(tmp_path / f"{count}.tar", "w") as tar:
        tar.add(root, ".")
    opened = open_all(tmp_path / f"{count}.tar")
    counts: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        call = getattr(Path, name)

        def count_and_call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return call(*args, **kwargs)

        return count_and_call

    with pytest.MonkeyPatch.context() as patched:
        for name in ("__truediv__", "relative_to", "stat"):
            patched.setattr(Path, name, counted(name))
        assert len([one for one in images(opened.layer) if not one.missing]) == count
        assert opened.damaged_names() == []
    return counts


def test_what_listing_a_tar_costs(tmp_path: Path, open_all: OpenAll) -> None:
    """Operations on paths take most of the time: few for each repository, however many it has."""
    few, many = (_listed(tmp_path, count, open_all) for count in (10, 30))
    of_one = {name: (many[name] - few[name]) / 20 for name in many}
    assert of_one["__truediv__"] <= 16
    assert of_one["relative_to"] <= 2
    assert of_one["stat"] <= 2
