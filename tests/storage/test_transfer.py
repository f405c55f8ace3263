"""Import and export: what travels, what does not, and what a broken or partial bundle does."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from mayfly.registry.cli.bundle_or_url import opened
from mayfly.storage import digest as digests
from mayfly.storage.bundle.compressed import expand
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.open import open_bundles
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import BlobUnknown, ContentCorrupt, DigestInvalid
from mayfly.storage.images import images
from mayfly.storage.manifest import OCI_ARTIFACT
from mayfly.storage.transfer import exporting, importing
from mayfly.storage.upkeep.collect import collect
from mayfly.storage.upkeep.verify import repair, verify
from tests.bundle.builders import LAYER_TYPE, Layout, blob_name
from tests.support.images import digest_of, image_body, index_body, push, put, read

CONFIG, BASE, ONE, TWO = b'{"os":"linux"}', b"base layer" * 100, b"layer one", b"layer two"
NOTHING = frozenset[Digest]()


@pytest.fixture
def source(tmp_path: Path) -> DistributionStore:
    """Two images on one base, the second behind an index."""
    store = DistributionStore(tmp_path / "source")
    for repository, layer in (("library/one", ONE), ("team/two", TWO)):
        for blob in (CONFIG, BASE, layer):
            push(store, repository, blob)
    put(store, "library/one", image_body(CONFIG, [BASE, ONE]), "v1")
    child, _ = put(store, "team/two", image_body(CONFIG, [BASE, TWO]))
    put(store, "team/two", index_body([child]), "v2", "latest")
    return store


def _export(store: DistributionStore, file: Path, have: frozenset[Digest] = NOTHING) -> int:
    """Export everything; how many bytes were left out."""
    chosen = [(image.name.rpartition(":")[0], image) for image in images(store)]
    carried = exporting.carried(store, chosen, referrers=True)
    planned = exporting.plan(store, carried, lambda _repository, digest: digest in have)
    with file.open("wb") as output:
        exporting.write(planned, output)
    return planned.left_out


def _import(file: Path, root: Path) -> tuple[DistributionStore, importing.ImportPlan, list[str]]:
    store = DistributionStore(root, allow_absent_platforms=True)
    bundles = open_bundles([file], root.parent / "state")
    planned = importing.plan(store, bundles.layer)
    names = [] if planned.incomplete else importing.carry_out(store, bundles.layer, planned).names
    bundles.close()
    return store, planned, names


def test_round_trip(source: DistributionStore, tmp_path: Path) -> None:
    """Everything that was exported is imported under its names, byte for byte and whole."""
    assert _export(source, tmp_path / "all.tar") == 0
    target, planned, names = _import(tmp_path / "all.tar", tmp_path / "target")
    assert sorted(names) == ["library/one:v1", "team/two:latest", "team/two:v2"]
    assert planned.size == sum(map(len, (CONFIG, BASE, ONE, TWO)))
    assert verify(target).findings == ()
    before = {image.name: (image.digest, image.blobs) for image in images(source)}
    assert {image.name: (image.digest, image.blobs) for image in images(target)} == before


def test_second_import_copies_nothing(source: DistributionStore, tmp_path: Path) -> None:
    """What is there is not copied again, so an import that was stopped continues."""
    _export(source, tmp_path / "all.tar")
    target, _, _ = _import(tmp_path / "all.tar", tmp_path / "target")
    target.delete_tag("library/one", "v1")
    again, planned, names = _import(tmp_path / "all.tar", tmp_path / "target")
    assert planned.copies == {}
    assert "library/one:v1" in names
    assert again.tag("library/one", "v1") == source.tag("library/one", "v1")


def test_difference_completes_the_target(source: DistributionStore, tmp_path: Path) -> None:
    """With what the target has left out, the archive is small, and the result is whole."""
    _export(source, tmp_path / "old.tar")
    new = b"a new layer"
    push(source, "library/one", new)
    put(source, "library/one", image_body(CONFIG, [BASE, new]), "v2")
    have = frozenset(digests.of(blob) for blob in (CONFIG, BASE, ONE, TWO))
    assert _export(source, tmp_path / "new.tar", have) > len(BASE)
    _import(tmp_path / "old.tar", tmp_path / "target")
    target, planned, names = _import(tmp_path / "new.tar", tmp_path / "target")
    assert planned.size == len(new)
    assert "library/one:v2" in names
    assert verify(target).findings == ()
    assert read(target.blob("library/one", digests.of(new))) == new


def test_difference_alone_is_refused(source: DistributionStore, tmp_path: Path) -> None:
    """Over a target that lacks what was left out, nothing is imported and what lacks is named."""
    _export(source, tmp_path / "new.tar", frozenset({digests.of(BASE)}))
    target, planned, _ = _import(tmp_path / "new.tar", tmp_path / "target")
    assert {digest for _, digest in planned.incomplete} == {digests.of(BASE)}
    assert target.repositories("", 10) == []


def test_corrupt_source_is_not_exported(source: DistributionStore, tmp_path: Path) -> None:
    """A blob that does not have its digest ends the export."""
    source.blob("library/one", digests.of(ONE)).path.write_bytes(ONE[:-1] + b"!")
    with pytest.raises(ContentCorrupt, match=str(digests.of(ONE))):
        _export(source, tmp_path / "all.tar")


def test_corrupt_bundle_is_not_imported(source: DistributionStore, tmp_path: Path) -> None:
    """A blob of a bundle that does not have its digest gets no name in the store."""
    _export(source, tmp_path / "all.tar")
    data = (tmp_path / "all.tar").read_bytes()
    (tmp_path / "all.tar").write_bytes(data.replace(ONE, ONE[:-1] + b"!", 1))
    message = rf"all\.tar: blob {digests.of(ONE)} cannot be copied: "
    with pytest.raises(BundleInvalid, match=message):
        _import(tmp_path / "all.tar", tmp_path / "target")
    target = DistributionStore(tmp_path / "target")
    assert [image.name for image in images(target)] == []
    assert verify(target).findings == ()


def test_digests_file(tmp_path: Path) -> None:
    """One digest a line; what follows it is passed over."""
    first, second = digests.of(b"1"), digests.of(b"2", "sha512")
    (tmp_path / "have").write_text(f"{first}  layer\n\n{second}\n")
    assert exporting.read_digests(tmp_path / "have") == {first, second}
    (tmp_path / "have").write_text("nonsense\n")
    with pytest.raises(DigestInvalid):
        exporting.read_digests(tmp_path / "have")


def test_repair_from_a_bundle(source: DistributionStore, tmp_path: Path) -> None:
    """A flipped byte and a missing blob are mended from a bundle that has them."""
    _export(source, tmp_path / "all.tar")
    source.blob("library/one", digests.of(ONE)).path.write_bytes(ONE[:-1] + b"!")
    source.blob("team/two", digests.of(TWO)).path.unlink()
    found = verify(source).findings
    assert {finding.digest for finding in found} == {digests.of(ONE), digests.of(TWO)}
    with opened(str(tmp_path / "all.tar")) as bundle:
        assert all(repair(source, finding, bundle.fetch) for finding in found)
    assert verify(source).findings == ()
    assert read(source.blob("library/one", digests.of(ONE))) == ONE


def test_repair_by_what_is_corrupt_too(source: DistributionStore, tmp_path: Path) -> None:
    """A source whose own copy is wrong mends nothing, and leaves no session behind."""
    _export(source, tmp_path / "all.tar")
    data = (tmp_path / "all.tar").read_bytes()
    (tmp_path / "all.tar").write_bytes(data.replace(ONE, ONE[:-1] + b"!", 1))
    source.blob("library/one", digests.of(ONE)).path.unlink()
    (finding,) = verify(source).findings
    with opened(str(tmp_path / "all.tar")) as bundle, pytest.raises(DigestInvalid):
        repair(source, finding, bundle.fetch)
    assert verify(source).findings == (finding,)
    assert not list((tmp_path / "source").rglob("_uploads/*"))


@pytest.mark.parametrize("name", ["a.gz", "a.xz", "a.bz2", "a.zst"])
def test_compressed(name: str, source: DistributionStore, tmp_path: Path) -> None:
    """However a bundle is compressed, it expands to what it was; a torn one is named."""
    _export(source, tmp_path / "all.tar")
    plain = (tmp_path / "all.tar").read_bytes()
    squeeze: dict[str, Callable[[bytes], bytes]] = {
        "a.gz": gzip.compress,
        "a.xz": lzma.compress,
        "a.bz2": bz2.compress,
        "a.zst": zstandard.compress,
    }
    packed = squeeze[name](plain)
    (tmp_path / name).write_bytes(packed)
    read_bytes: list[int] = []
    expand(tmp_path / name, tmp_path / "again.tar", read_bytes.append)
    assert (tmp_path / "again.tar").read_bytes() == plain
    assert sum(read_bytes) == len(packed)
    with pytest.raises(BundleInvalid, match="mayfly import"):
        open_bundles([tmp_path / name], tmp_path / "state")


@pytest.mark.parametrize("squeeze", [gzip.compress, lzma.compress, zstandard.compress])
def test_bomb(squeeze: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """A file that expands out of all proportion is not expanded to its end."""
    (tmp_path / "bomb").write_bytes(squeeze(bytes(80 * 2**20)))
    with pytest.raises(BundleInvalid, match="100 times"):
        expand(tmp_path / "bomb", tmp_path / "out", lambda size: None)
    assert (tmp_path / "out").stat().st_size <= 64 * 2**20


def _bundled(
    layout: Layout, file: Path, root: Path
) -> tuple[DistributionStore, importing.ImportPlan]:
    target, planned, _ = _import(layout.write_tar(file), root)
    return target, planned


def test_content_of_another_repository_is_not_given_away(tmp_path: Path) -> None:
    """A bundle that names a digest, or claims to have it, gets nothing of the store by that."""
    secret = DistributionStore(tmp_path / "target")
    push(secret, "secret/app", BASE)
    named, claimed = Layout(), Layout()
    for layout in (named, claimed):
        layout.name(layout.image(BASE), "quay.io/vendor/app:1")
    del named.files[blob_name(str(digests.of(BASE)))]
    claimed.files[blob_name(str(digests.of(BASE)))] = bytes(len(BASE))
    target, planned = _bundled(named, tmp_path / "named.tar", tmp_path / "target")
    assert planned.incomplete == (("vendor/app", digests.of(BASE)),)
    with pytest.raises(BundleInvalid, match=str(digests.of(BASE))):
        _bundled(claimed, tmp_path / "claimed.tar", tmp_path / "target")
    with pytest.raises(BlobUnknown):
        target.blob("vendor/app", digests.of(BASE))


def test_layer_with_urls_travels(tmp_path: Path) -> None:
    """`urls` excuses the absence of a layer; where it is present it is carried like any other."""
    layout = Layout()
    foreign = [layout.add(data, LAYER_TYPE) | {"urls": ["https://x/"]} for data in (ONE, TWO)]
    layout.name(layout.image(layers=foreign), "quay.io/team/app:1")
    del layout.files[blob_name(foreign[1]["digest"])]
    target, planned = _bundled(layout, tmp_path / "a.tar", tmp_path / "target")
    assert planned.incomplete == ()
    _export(target, tmp_path / "b.tar")
    second, _, _ = _import(tmp_path / "b.tar", tmp_path / "second")
    for store in (target, second):
        assert read(store.blob("team/app", digests.of(ONE))) == ONE
        assert verify(store).findings == ()
        with pytest.raises(BlobUnknown):
            store.blob("team/app", digests.of(TWO))


def test_what_no_push_may_bring_is_not_imported(tmp_path: Path) -> None:
    """An ambiguous manifest is left out by name; the rest is imported."""
    layout = Layout()
    layer = layout.add(BASE, LAYER_TYPE)
    odd = layout.image(layers=[layer | {"Digest": digest_of(ONE)}])
    layout.name(odd, "quay.io/team/odd:1")
    layout.name(layout.image(ONE), "quay.io/team/app:1")
    target, planned = _bundled(layout, tmp_path / "a.tar", tmp_path / "target")
    (refused,) = planned.refused
    assert (refused.repository, str(refused.digest)) == ("team/odd", odd["digest"])
    assert "must be spelled" in refused.reason
    assert [image.name for image in images(target)] == ["team/app:1"]


def test_index_of_blobs_and_artifact_manifest_travel(tmp_path: Path) -> None:
    """BuildKit's registry cache before 0.21, and the artifact manifest of 1.1's candidates."""
    layout = Layout()
    cache = layout.add(CONFIG, "application/vnd.buildkit.cacheconfig.v0")
    layout.name(layout.index(layout.add(ONE, LAYER_TYPE), cache), "quay.io/team/cache:1")
    artifact = {"mediaType": OCI_ARTIFACT, "artifactType": "x/y", "blobs": [layout.add(TWO, "x/y")]}
    layout.name(layout.add(json.dumps(artifact).encode(), OCI_ARTIFACT), "quay.io/team/art:1")
    target, planned = _bundled(layout, tmp_path / "a.tar", tmp_path / "target")
    assert (planned.refused, planned.incomplete) == ((), ())
    assert collect(target, 0).blobs == ()
    _export(target, tmp_path / "b.tar")
    second, _, names = _import(tmp_path / "b.tar", tmp_path / "second")
    assert sorted(names) == ["team/art:1", "team/cache:1"]
    for repository, blob in (("team/cache", ONE), ("team/cache", CONFIG), ("team/art", TWO)):
        assert read(second.blob(repository, digests.of(blob))) == blob
    assert verify(second).findings == ()


def test_what_the_target_has_elsewhere_is_not_left_out(tmp_path: Path) -> None:
    """A repository is not served another's content, so each has to get its own."""
    layout = Layout()
    layout.name(layout.image(BASE), "docker.io/library/one:0")
    with opened(str(layout.write_tar(tmp_path / "old.tar"))) as target:
        assert target.has("library/one", digests.of(BASE))
        assert not target.has("team/two", digests.of(BASE))
