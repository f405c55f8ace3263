"""What an import says it did: all of it, or by name what it left out, with exit code 5."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.bundle.open import open_bundles
from mayfly.storage.directory.layout import Layout as Paths
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.manifest import OCI_ARTIFACT, OCI_MANIFEST
from mayfly.storage.transfer.importing import _children_first
from tests.bundle.builders import Layout, document, layers
from tests.support.commands import mayfly_here
from tests.support.images import digest_of, index_body, put, put_image, subject_of

LAYER = layers("one")[0]


@pytest.fixture
def layout() -> Layout:
    """One good image."""
    made = Layout()
    made.name(made.image(LAYER), "quay.io/good:1")
    return made


def test_unparseable_manifest(layout: Layout, tmp_path: Path) -> None:
    """It is named with its reason; the good image is there."""
    layout.name(layout.add(document([1]), OCI_MANIFEST), "quay.io/bad:1")
    bundle = layout.write_tar(tmp_path / "b.tar")
    done = mayfly_here("import", "--root", tmp_path / "root", bundle)
    assert done.returncode == 5
    assert f"not imported: {bundle}: image quay.io/bad:1: manifest is not a JSON" in done.stderr
    assert "imported 1 image, " in done.stdout
    listed = mayfly_here("ls", bundle)
    assert listed.returncode == 5
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["good:1"]
    assert f"{bundle}: image quay.io/bad:1: manifest is not a JSON" in listed.stderr
    assert mayfly_here("ls", "--root", tmp_path / "root").stdout.startswith("good:1 ")
    done = mayfly_here("import", "--json", "--root", tmp_path / "root", bundle)
    (one,) = json.loads(done.stdout.splitlines()[-1])["not_imported"]
    detail = one.pop("detail")
    assert detail.startswith("manifest is not a JSON")
    assert one == {
        "code": "manifest_refused",
        "bundle": str(bundle),
        "image": "quay.io/bad:1",
        "digest": digest_of(document([1])),
        "count": 1,
    }
    listed_json = mayfly_here("ls", "--json", bundle)
    assert (listed_json.returncode, listed_json.stderr) == (5, "")
    assert json.loads(listed_json.stdout)["left_out"] == [{**one, "detail": detail}]


def test_artifact_manifest(layout: Layout, tmp_path: Path) -> None:
    """One of the image-spec's 1.1 candidates is an image as any."""
    blob = layout.add(b"sbom", "text/plain")
    body = {"mediaType": OCI_ARTIFACT, "artifactType": "text/x-sbom", "blobs": [blob]}
    layout.name(layout.add(document(body), OCI_ARTIFACT), "quay.io/sbom:1")
    done = mayfly_here("import", "--root", tmp_path / "root", layout.write_tar(tmp_path / "b.tar"))
    assert (done.returncode, done.stderr.count("not imported")) == (0, 0), done.stderr
    store = DistributionStore(tmp_path / "root")
    assert store.blob("sbom", digests.of(b"sbom")).size == 4
    store.close()


@pytest.mark.parametrize("kind", ["layout", "registry"])
def test_nothing_listed(tmp_path: Path, kind: str) -> None:
    """An empty bundle is a failed import."""
    if kind == "layout":
        bundle = Layout().write_directory(tmp_path / "b")
    else:
        bundle = tmp_path / "b"
        DistributionStore(bundle).close()
    done = mayfly_here("import", "--root", tmp_path / "root", bundle)
    assert done.returncode == 5
    assert "not imported: the bundles list no image" in done.stderr


def test_artifact_without_its_subject(layout: Layout, tmp_path: Path) -> None:
    """It has no name of its own, so it has no place."""
    subject = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"elsewhere"), "size": 9}
    layout.entries.append(layout.image(LAYER, subject=subject))
    done = mayfly_here("import", "--root", tmp_path / "root", layout.write_tar(tmp_path / "b.tar"))
    assert done.returncode == 5
    assert f"it refers to {digest_of(b'elsewhere')}, which is not in the bundle" in done.stderr


def test_damaged_manifest_of_a_registry(tmp_path: Path) -> None:
    """One bad entry of another registry's directory keeps no other from being imported."""
    store = DistributionStore(tmp_path / "b")
    put_image(store, "good", "1")
    _, bad = put_image(store, "bad", "1", subject=subject_of(put_image(store, "bad")[0]))
    store.close()
    Paths(tmp_path / "b").data(bad).write_bytes(b"")
    done = mayfly_here("import", "--root", tmp_path / "root", tmp_path / "b")
    assert done.returncode == 4
    assert f"bad:1@{bad}" in done.stderr
    assert mayfly_here("ls", "--root", tmp_path / "root").stdout.startswith("good:1 ")


def test_link_in_a_registry(tmp_path: Path) -> None:
    """A blob that is a link to elsewhere is the bundle's fault."""
    store = DistributionStore(tmp_path / "b")
    put_image(store, "good", "1")
    path = store.blob("good", digests.of(b"{}")).path
    store.close()
    path.unlink()
    path.symlink_to("/etc/passwd")
    done = mayfly_here("import", "--root", tmp_path / "root", tmp_path / "b")
    assert done.returncode == 4
    assert "is a symbolic link" in done.stderr


def test_good_copy_in_another_bundle(layout: Layout, tmp_path: Path) -> None:
    """A blob that one bundle has damaged is taken from the next that has it."""
    good = layout.write_directory(tmp_path / "good")
    bad = layout.write_directory(tmp_path / "bad")
    (bad / "blobs" / digest_of(LAYER).replace(":", "/")).write_bytes(bytes(len(LAYER)))
    done = mayfly_here("import", "--root", tmp_path / "root", bad, good)
    assert (done.returncode, done.stdout) == (0, done.stdout), done.stderr
    assert mayfly_here("verify", "--root", tmp_path / "root").returncode == 0


def test_index_with_a_damaged_platform(tmp_path: Path) -> None:
    """A tag that is there does not move to an index of which a part is damaged."""
    root = tmp_path / "root"
    store = DistributionStore(root)
    _, before = put_image(store, "app", "1")
    store.close()
    store = DistributionStore(tmp_path / "b")
    one, _ = put_image(store, "app", config=b'{"a": 1}')
    other, bad = put_image(store, "app", config=b'{"b": 1}')
    put(store, "app", index_body([one, other]), "1", "2")
    store.close()
    Paths(tmp_path / "b").data(digests.of(b'{"b": 1}')).write_bytes(b"?")
    done = mayfly_here("import", "--root", root, tmp_path / "b")
    assert done.returncode == 4, done.stderr
    assert f"app:1@{digests.of(index_body([one, other]))}: it names {bad}" in done.stderr
    store = DistributionStore(root)
    assert (store.tags("app"), store.tag("app", "1")) == (["1"], before)
    store.close()


def test_one_platform_of_an_index(layout: Layout, tmp_path: Path) -> None:
    """The others were left out on purpose: no fault, now or later."""
    one, other = layout.image(LAYER), layout.image(LAYER, architecture="arm64")
    index = layout.index(one, other)
    layout.name(index, "quay.io/both:1")
    del layout.files[f"blobs/{other['digest'].replace(':', '/')}"]
    done = mayfly_here("import", "--root", tmp_path / "root", layout.write_tar(tmp_path / "b.tar"))
    assert done.returncode == 0, done.stderr
    for _ in range(2):
        done = mayfly_here("verify", "--root", tmp_path / "root")
        assert (done.returncode, ": 0 faults" in done.stdout) == (0, True), done.stdout


def test_chain_of_indexes(tmp_path: Path) -> None:
    """However long a chain, each manifest comes once, after what it names."""
    layout = Layout()
    below = layout.image(LAYER)
    for _ in range(1000):
        below = layout.index(below, below)
    layout.name(below, "quay.io/deep:1")
    bundles = open_bundles([layout.write_tar(tmp_path / "b.tar")])
    order = list(_children_first(bundles.layer, "deep"))
    assert len(order) == 1001
    assert str(order[-1]) == below["digest"]
    bundles.close()
