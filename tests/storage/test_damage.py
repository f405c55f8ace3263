"""Damage of every kind is found, named with the images it hurts, and mended from a good copy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.bundle.diagnostics import Code
from mayfly.storage.digest import Digest
from mayfly.storage.directory.reader import DirectoryReader
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.directory.uploads import DirectoryUpload
from mayfly.storage.errors import ManifestUnknown
from mayfly.storage.interface import Extent
from mayfly.storage.manifest import parse
from mayfly.storage.survey import Damaged, tagged, untagged
from mayfly.storage.transfer import inventory
from mayfly.storage.upkeep.collect import collect
from mayfly.storage.upkeep.space import space
from mayfly.storage.upkeep.verify import Fault, Finding, repair, verify
from tests.support.commands import mayfly_here
from tests.support.images import (
    descriptor,
    image_body,
    index_body,
    push,
    put,
    read,
    subject_of,
)

REPO, OTHER = "team/app", "other/app"
CONFIG, LAYER = b'{"os":"linux"}', b"layer " * 500
IMAGE = image_body(CONFIG, [LAYER])
MANIFEST, CONFIG_DIGEST, LAYER_DIGEST = map(digests.of, (IMAGE, CONFIG, LAYER))


def _fill(root: Path) -> DistributionStore:
    """Two repositories that share an image, one kept by digest, and one of its own."""
    store = DistributionStore(root)
    for repository in (REPO, OTHER):
        for blob in (CONFIG, LAYER):
            push(store, repository, blob)
        put(store, repository, IMAGE, "v1")
    put(store, REPO, image_body(CONFIG, [LAYER], annotations={"kept": "by digest"}))
    return store


@pytest.fixture
def store(root: Path) -> DistributionStore:
    """The store that is damaged."""
    return _fill(root)


@pytest.fixture
def good(tmp_path: Path) -> DistributionStore:
    """Another with the same content."""
    return _fill(tmp_path / "good")


class _Paths:
    """Where things lie in a root, to be damaged."""

    def __init__(self, root: Path) -> None:
        self.base = root / "docker/registry/v2"
        self.repository = self.base / "repositories" / REPO

    def data(self, digest: Digest) -> Path:
        return self.base / "blobs/sha256" / digest.hex[:2] / digest.hex / "data"

    def layer(self, digest: Digest) -> Path:
        return self.repository / "_layers/sha256" / digest.hex / "link"

    def revision(self, digest: Digest) -> Path:
        return self.repository / "_manifests/revisions/sha256" / digest.hex / "link"

    @property
    def tag(self) -> Path:
        return self.repository / "_manifests/tags/v1/current/link"


def _cut(path: Path) -> None:
    os.truncate(path, 20)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _another(path: Path) -> None:
    path.write_bytes(image_body(b"another"))


def _gone(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@dataclass(frozen=True)
class Case:
    """A file, what is done to it, and what `verify` and `ls` say of it."""

    file: Callable[[_Paths], Path]
    damage: Callable[[Path], None]
    fault: Fault
    digest: Digest
    is_listed: bool = False


def _of_manifest(paths: _Paths) -> Path:
    return paths.data(MANIFEST)


def _of_layer(paths: _Paths) -> Path:
    return paths.data(LAYER_DIGEST)


CASES = {
    **{
        f"manifest {how.__name__[1:]}": Case(_of_manifest, how, Fault.CORRUPT, MANIFEST)
        for how in (_cut, _empty, _zeros, _another)
    },
    **{
        f"manifest {how.__name__[1:]}": Case(_of_manifest, how, Fault.MISSING, MANIFEST)
        for how in (_gone, _directory, _pipe, _dangling)
    },
    **{
        f"layer {how.__name__[1:]}": Case(
            _of_layer, how, Fault.CORRUPT, LAYER_DIGEST, is_listed=True
        )
        for how in (_cut, _empty, _zeros)
    },
    **{
        f"layer {how.__name__[1:]}": Case(
            _of_layer, how, Fault.MISSING, LAYER_DIGEST, is_listed=True
        )
        for how in (_gone, _directory, _pipe, _dangling)
    },
    **{
        f"layer's link {how.__name__[1:]}": Case(
            lambda p: p.layer(LAYER_DIGEST), how, Fault.UNLINKED, LAYER_DIGEST, is_listed=True
        )
        for how in (_empty, _zeros, _another, _gone, _directory, _dangling)
    },
    **{
        f"manifest's link {how.__name__[1:]}": Case(
            lambda p: p.revision(MANIFEST),
            how,
            Fault.UNLINKED,
            MANIFEST,
            is_listed=how in (_empty, _zeros, _another),
        )
        for how in (_empty, _zeros, _another, _gone, _directory, _dangling)
    },
    **{
        f"tag's link {how.__name__[1:]}": Case(lambda p: p.tag, how, Fault.TAG, MANIFEST)
        for how in (_empty, _zeros, _another, _gone, _directory, _dangling)
    },
}


def _fetch_from(good: DistributionStore) -> Callable[..., bool]:
    def fetch(_: str, digest: Digest, upload: DirectoryUpload, size: int | None = None) -> bool:
        found: list[Extent] = []
        for locate in (good.blob, good.manifest):
            try:
                found.append(locate(REPO, digest))
            except Exception:
                continue
        upload.copy(found[0])
        return True

    return fetch


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "of registry:2"])
@pytest.mark.parametrize("name", CASES)
def test_found_named_and_repaired(
    store: DistributionStore, good: DistributionStore, root: Path, name: str, recorded: bool
) -> None:
    """One damaged file: exactly it is found, other images are listed, and a good copy mends it."""
    case = CASES[name]
    if not recorded:
        for record in root.rglob("_mayfly_size_*"):
            record.unlink()
    path = case.file(_Paths(root))
    case.damage(path)
    again = DistributionStore(root)
    listed = {one.name: one for one in tagged(again)}
    assert set(listed) == {f"{REPO}:v1", f"{OTHER}:v1"}
    assert isinstance(listed[f"{REPO}:v1"], Damaged) is not case.is_listed
    found = [f for f in verify(again).findings if f.digest == case.digest]
    assert {f.fault for f in found} == {case.fault}
    assert found == list(verify(again).findings)
    hurt = {name for f in found for name in (f.image, *f.others)}
    assert f"{REPO}:v1" in hurt
    for finding in found:
        assert repair(again, finding, _fetch_from(good), good.tag)
    assert verify(again).findings == ()
    for repository in (REPO, OTHER):
        assert read(again.manifest(repository, again.tag(repository, "v1"))) == IMAGE
        assert read(again.blob(repository, LAYER_DIGEST)) == LAYER


def test_image_kept_by_digest_only(store: DistributionStore, root: Path) -> None:
    """An image without a tag that lacks a layer is found by its digest."""
    store.delete_tag(REPO, "v1")
    store.delete_manifest(OTHER, MANIFEST)
    _Paths(root).data(LAYER_DIGEST).unlink()
    (finding,) = verify(store).findings
    assert (finding.fault, finding.digest) == (Fault.MISSING, LAYER_DIGEST)
    assert f"{REPO}@{MANIFEST}" in (finding.image, *finding.others)


@pytest.mark.parametrize(
    ("damage", "code"), [(_zeros, Code.CONTENT_DAMAGED), (_gone, Code.MANIFEST_MISSING)]
)
def test_damaged_manifest_without_a_tag(
    store: DistributionStore, root: Path, damage: Callable[[Path], None], code: Code
) -> None:
    """It is named as damaged, as the image of a tag would be, and does not count as an image."""
    store.delete_tag(REPO, "v1")
    damage(_Paths(root).data(MANIFEST))
    found = [one for one in untagged(store) if one.name == f"{REPO}@{MANIFEST}"]
    assert [one.code for one in found if isinstance(one, Damaged)] == [code]
    assert len(found) == 1


@pytest.mark.parametrize("is_tagged", [True, False], ids=["tag", "no tag"])
@pytest.mark.parametrize("name", CASES)
def test_space_that_is_freed(
    store: DistributionStore, root: Path, name: str, is_tagged: bool
) -> None:
    """What counts as unused is what garbage collection frees; what it keeps is told apart."""
    case = CASES[name]
    for repository in (REPO, "empty"):
        push(store, repository, b"of nothing")
    store.delete_manifest(OTHER, MANIFEST)
    if not is_tagged and "tag" not in name:
        store.delete_tag(REPO, "v1")
    case.damage(case.file(_Paths(root)))
    again = DistributionStore(root)
    found = space(again)
    assert found.unused_size == collect(again, 0, dry_run=True).size
    if found.damaged:
        assert found.kept_size >= len(b"of nothing")


def test_space_beside_deletions(store: DistributionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob that is deleted while space is measured takes none."""
    push(store, REPO, b"unused")
    stored = [(digest, path) for digest, path in store.stored_blobs()]
    monkeypatch.setattr(store, "stored_blobs", lambda: stored)
    for _, path in stored:
        if path.read_bytes() == b"unused":
            path.unlink()
    assert space(store).unused_size == 0


@pytest.mark.parametrize("place", ["_manifests/tags", "_manifests"])
def test_file_in_the_place_of_tags(store: DistributionStore, root: Path, place: str) -> None:
    """The repository is named as damaged; garbage collection keeps its content and continues."""
    path = root / "docker/registry/v2/repositories" / OTHER / place
    shutil.rmtree(path)
    path.write_bytes(b"")
    push(store, OTHER, b"of a lost image")
    again = DistributionStore(root)
    assert [one.name for one in tagged(again) if isinstance(one, Damaged)] == [OTHER]
    listed = mayfly_here("ls", "--all", "--root", root)
    assert (listed.returncode, listed.stderr.count(f"{OTHER}: ")) == (4, 1)
    listed = mayfly_here("ls", "--all", "--root", root, "--json")
    assert [one["name"] for one in json.loads(listed.stdout)["damaged"]] == [OTHER]
    unused = push(again, REPO, b"of no image")
    found = collect(again, 0, untagged=True)
    assert [one.image for one in found.unread] == [OTHER]
    assert unused in found.blobs
    assert read(again.blob(OTHER, digests.of(b"of a lost image"))) == b"of a lost image"
    if again.is_linked(OTHER, MANIFEST):
        again.delete_manifest(OTHER, MANIFEST)
        assert not again.is_linked(OTHER, MANIFEST)


def test_size_in_a_manifest(store: DistributionStore, root: Path) -> None:
    """A manifest that gives another size than the blob has is named; nothing can mend it."""
    body = image_body(CONFIG, layers=[descriptor(LAYER, size=7)])
    digest = digests.of(body)
    push(store, REPO, body)
    paths = _Paths(root)
    paths.revision(digest).parent.mkdir()
    paths.revision(digest).write_text(str(digest))
    (finding,) = verify(store).findings
    assert finding == Finding(Fault.SIZE, LAYER_DIGEST, f"{REPO}@{digest}")
    assert "gives 7 bytes" in finding.detail
    assert not repair(store, finding, lambda *_: True)


def test_index_of_which_nothing_is_here(store: DistributionStore) -> None:
    """One platform may be left out; an index without any cannot be pulled."""
    sparse = DistributionStore(store.scratch.parents[5], allow_sparse=True)
    child = parse(image_body(b"nowhere"))
    put(sparse, REPO, index_body([child]), "multi")
    (finding,) = verify(sparse).findings
    assert finding == Finding(Fault.MISSING, digests.of(child.body), f"{REPO}:multi")


def test_unreadable_directory_hides_no_repository(
    store: DistributionStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that may not be listed is named; all other repositories are served."""
    secret = root / "docker/registry/v2/repositories/secret"
    secret.mkdir()
    real = os.scandir

    def scandir(path: object) -> object:
        if str(path) == str(secret):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    assert store.repositories("", 10) == [OTHER, REPO]
    denied = Damaged("secret", Code.UNREADABLE, "cannot be listed: Permission denied")
    assert denied in list(tagged(store))
    (finding,) = verify(store).findings
    assert (finding.fault, finding.image) == (Fault.UNREADABLE, "secret")


def test_verify_records_what_it_found(store: DistributionStore, root: Path) -> None:
    """A good blob of another writer gets its record, a bad one is unknown from then on."""
    paths = _Paths(root)
    for record in root.rglob("_mayfly_size_*"):
        record.unlink()
    _zeros(paths.data(LAYER_DIGEST))
    verify(store)
    assert paths.data(CONFIG_DIGEST).with_name(f"_mayfly_size_{len(CONFIG)}").exists()
    assert list(store.repositories_with(LAYER_DIGEST)) == []
    assert list(DistributionStore(root).repositories_with(LAYER_DIGEST)) == []


def test_deleting_what_is_damaged(store: DistributionStore, root: Path) -> None:
    """A tag without its link, and a manifest without its bytes, can be deleted."""
    paths = _Paths(root)
    _gone(paths.tag)
    store.delete_tag(REPO, "v1")
    assert not paths.tag.parent.parent.exists()
    with pytest.raises(ManifestUnknown):
        store.delete_tag(REPO, "v1")
    _empty(paths.data(MANIFEST))
    store.delete_manifest(REPO, MANIFEST)
    store.delete_manifest(OTHER, MANIFEST)
    assert verify(store).findings == (Finding(Fault.CORRUPT, MANIFEST),)


def _age_all(store: DistributionStore) -> None:
    for _, path in store.stored_blobs():
        os.utime(path, (1, 1))


def test_untagged_manifests_are_freed(root: Path) -> None:
    """What no tag leads to goes; children of a tagged index, and what refers to it, stay."""
    store = DistributionStore(root)
    for blob in (b"{}", b"child", b"sbom", b"old"):
        push(store, REPO, blob)
    child, child_digest = put(store, REPO, image_body(b"{}", [b"child"]))
    index, index_digest = put(store, REPO, index_body([child]), "multi")
    sbom, sbom_digest = put(store, REPO, image_body(b"{}", [b"sbom"], subject=subject_of(index)))
    _, of_sbom = put(store, REPO, image_body(b"{}", subject=subject_of(sbom)))
    _, old = put(store, REPO, image_body(b"{}", [b"old"]), "v1")
    store.delete_tag(REPO, "v1")
    assert collect(store, 60, untagged=True).manifests == ()  # too young
    assert [one.name for one in untagged(store)] == sorted(
        f"{REPO}@{d}" for d in (sbom_digest, of_sbom, old)
    )
    _age_all(store)
    planned = collect(store, 0, dry_run=True, untagged=True)
    found = collect(store, 0, untagged=True)
    assert planned == found
    assert found.manifests == ((REPO, old),)
    assert set(found.blobs) == {old, digests.of(b"old")}
    for kept in (child_digest, index_digest, sbom_digest, of_sbom):
        store.manifest(REPO, kept)
    assert verify(store).findings == ()
    _age_all(store)
    store.delete_tag(REPO, "multi")
    assert len(collect(store, 0, untagged=True).manifests) == 4
    assert list(store.stored_blobs()) == []


@pytest.mark.parametrize("damage", ["manifest", "tag", "tag and its history"])
def test_untagged_manifests_beside_damage_stay(
    store: DistributionStore, root: Path, damage: str
) -> None:
    """Where a tag or a manifest cannot be read, nobody knows what they lead to: all is kept."""
    paths = _Paths(root)
    if damage == "manifest":
        _zeros(paths.data(MANIFEST))
    else:
        _empty(paths.tag)
        if damage != "tag":
            shutil.rmtree(paths.tag.parents[1] / "index")
    before = set(store.revisions(REPO))
    _age_all(store)
    found = collect(store, 0, untagged=True)
    assert {digest for name, digest in found.manifests if name == REPO} <= before - {MANIFEST}
    assert MANIFEST in set(store.revisions(REPO))
    assert LAYER_DIGEST not in found.blobs
    if damage != "tag":
        assert set(store.revisions(REPO)) == before


@pytest.mark.parametrize(
    "look", [lambda store: list(tagged(store)), inventory.of], ids=["tagged", "inventory"]
)
def test_many_damaged_entries(
    root: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[DistributionStore], object]
) -> None:
    """Each is looked at by itself, not all of them again."""
    store, paths = DistributionStore(root), _Paths(root)
    push(store, REPO, b"{}")
    looks = 0

    def counted(method: Callable[..., object]) -> Callable[..., object]:
        def count(*arguments: object) -> object:
            nonlocal looks
            looks += 1
            return method(*arguments)

        return count

    for name in ("read_link", "is_linked"):
        monkeypatch.setattr(DirectoryReader, name, counted(getattr(DirectoryReader, name)))

    def damage_and_look(numbers: range) -> int:
        nonlocal looks
        for number in numbers:
            image = image_body(b"{}", annotations={"number": str(number)})
            _, digest = put(store, REPO, image)
            (paths.tag.parents[2] / digest.hex / "index/sha256" / digest.hex).mkdir(parents=True)
            paths.data(digest).unlink()
        looks = 0
        look(store)
        return looks

    few = damage_and_look(range(10))
    assert damage_and_look(range(10, 40)) <= 5 * few


def test_pipe_in_the_place_of_a_repository(tmp_path: Path) -> None:
    """A push to it is refused by the disk, and does not wait for ever."""
    store = DistributionStore(tmp_path)
    repositories = tmp_path / "docker/registry/v2/repositories"
    os.mkfifo(repositories / "pipe")
    with pytest.raises(OSError, match=r"Invalid argument|Not a directory"):
        push(store, "pipe", b"content")
    store.close()
