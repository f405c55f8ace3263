"""Every maker's bundle by one contract: named, served whole, isolated, and safe when damaged."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from mayfly.storage import digest as digests
from mayfly.storage.bundle import documents
from mayfly.storage.bundle.diagnostics import Code
from mayfly.storage.bundle.errors import BundleConflict, BundleInvalid
from mayfly.storage.bundle.files import Files as BundleFiles
from mayfly.storage.bundle.open import Bundles
from mayfly.storage.errors import BlobUnknown, ContentCorrupt, StorageError
from mayfly.storage.reading import repositories
from tests.bundle.builders import (
    LAYER_TYPE,
    Object,
    docker_archive,
    document,
    layers,
    proof_of,
    read,
    symlink,
    tar,
    tar_of,
)
from tests.bundle.conftest import OpenAll
from tests.bundle.makers import (
    MAKERS,
    Content,
    Files,
    Maker,
    content,
    kubekey,
    oc_mirror,
    pack,
    talos,
    write,
    zarf,
    zarf_documents,
)
from tests.support.commands import mayfly_here

SERVED = {"team/app": "1", "library/base": "2", "tool": "3"}
"""Repository → tag of the images that every bundle has."""


@pytest.fixture
def made() -> Content:
    """The images."""
    return content()


@pytest.fixture(params=MAKERS)
def maker(request: pytest.FixtureRequest) -> Maker:
    """Each maker's bundle."""
    return MAKERS[request.param]


@pytest.fixture
def paths(maker: Maker, made: Content, tmp_path: Path) -> list[Path]:
    """It as files."""
    return write(maker, maker.make(made), tmp_path)


def _image(made: Content, repository: str) -> dict[str, object]:
    return next(image for name, image in made.images.items() if f"/{repository}:" in name)


def check_whole(bundles: Bundles, made: Content) -> None:
    """Every image under its name, and every byte proven."""
    layer = bundles.layer
    for repository, tag in SERVED.items():
        image = _image(made, repository)
        assert str(layer.tag(repository, tag)) == image["digest"]
        for one in made.manifests(image):
            body = read(layer.manifest(repository, digests.parse(one["digest"])))
            assert body == made.data(one["digest"])
        for blob in made.blobs(image):
            extent = layer.blob(repository, digests.parse(blob["digest"]))
            proof_of(extent).establish()
            assert read(extent) == made.data(blob["digest"])


def test_served(maker: Maker, made: Content, paths: list[Path], open_all: OpenAll) -> None:
    """All images under their names, told apart by content alone; the maker is named."""
    bundles = open_all(*paths)
    check_whole(bundles, made)
    assert set(SERVED) <= set(repositories(bundles.layer))
    for repository in SERVED:
        own = {str(one["digest"]) for one in made.manifests(_image(made, repository))}
        assert own <= {*map(str, bundles.layer.revisions(repository))}
        assert not list(bundles.layer.referrers(repository, digests.of(b"none")))
    (notice,) = [one for one in bundles.notices if one.code is Code.MADE_BY]
    assert (notice.maker, str(notice)) == (
        maker.name,
        f"{', '.join(map(str, paths))}: it was made by {maker.name}",
    )
    assert not bundles.left_out
    assert not bundles.damaged_names()
    assert not bundles.lacking(bundles.has)


def test_names(maker: Maker, paths: list[Path], open_all: OpenAll) -> None:
    """By its upstream's name, too, where the maker records hosts; else for every upstream."""
    names = open_all(*paths).names
    assert names.resolve("team/app", "quay.example") == "team/app"
    assert names.resolve("library/base", "docker.io") == "library/base"
    assert names.resolve("tool", "registry.example:5000") == "tool"
    other = names.resolve("team/app", "other.example")
    assert other == ("other.example/team/app" if maker.hosts else "team/app")


def test_isolated(made: Content, paths: list[Path], open_all: OpenAll) -> None:
    """A blob is served only in the repositories whose images need it."""
    layer = open_all(*paths).layer
    for repository in SERVED:
        own = {blob["digest"] for blob in made.blobs(_image(made, repository))}
        for digest in made.all_blobs().keys() - own:
            with pytest.raises(BlobUnknown):
                layer.blob(repository, digests.parse(digest))


COMMANDS = (
    ("ls",),
    ("ls", "--json"),
    ("du",),
    ("verify",),
    ("inventory",),
)


def test_commands(maker: Maker, paths: list[Path], tmp_path: Path) -> None:
    """``ls``, ``du``, ``verify``, ``inventory``, ``inspect``, ``diff``, ``import``, ``export``."""
    for words in COMMANDS:
        done = mayfly_here(*words, *paths)
        assert done.returncode == 0, (words, done.stderr)
    done = mayfly_here("ls", *paths)
    for repository, tag in SERVED.items():
        assert f"{repository}:{tag} " in done.stdout
    assert f"it was made by {maker.name}" in done.stderr
    done = mayfly_here("inspect", "team/app:1", *paths)
    assert done.returncode == 0, done.stderr
    assert f"it was made by {maker.name}" in done.stderr
    root = tmp_path / "root"
    done = mayfly_here("import", "--root", root, *paths)
    assert done.returncode == 0, done.stderr
    exported = tmp_path / "exported.tar"
    done = mayfly_here("export", "--all", "-o", exported, "--root", root)
    assert done.returncode == 0, done.stderr
    if len(paths) == 1:
        done = mayfly_here("diff", "--json", paths[0], exported)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"images": [], "fetch": 0, "damaged": []}


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _file_of(files: tuple[Files, ...], data: bytes) -> tuple[Files, str]:
    """The file with these bytes."""
    return next((part, name) for part in files for name, body in part.items() if body == data)


def _damaged_layer(made: Content) -> tuple[str, bytes]:
    """A layer that only team/app has."""
    others = {
        blob["digest"]
        for name in ("library/base", "tool")
        for blob in made.blobs(_image(made, name))
    }
    own = [blob for blob in made.blobs(_image(made, "team/app")) if blob["digest"] not in others]
    (layer,) = [blob for blob in own if blob["mediaType"].startswith(LAYER_TYPE)]
    return layer["digest"], made.data(layer["digest"])


def _nothing_wrong(bundles: Bundles, made: Content) -> list[str]:
    """Read everything that is served; what cannot be read is an error in words, which is kept."""
    layer = bundles.layer
    errors: list[str] = []
    good = {**made.all_blobs()}
    for name in made.layout.files:
        if name.startswith("blobs/sha256/"):
            good[name.removeprefix("blobs/").replace("/", ":")] = made.layout.files[name]
    for repository in repositories(layer):
        for digest in (*layer.revisions(repository), *map(digests.parse, good)):
            for find in (layer.manifest, layer.blob):
                try:
                    extent = find(repository, digest)
                    proof_of(extent).establish()
                except StorageError as error:
                    assert "\n" not in error.message
                    errors.append(error.message)
                else:
                    assert digests.of(read(extent), digest.algorithm) == digest
    return errors


def test_flipped_blob(maker: Maker, made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """It is cut at its first transfer and refused from then on; the other images are served."""
    files = maker.make(made)
    digest, data = _damaged_layer(made)
    part, name = _file_of(files, data)
    part[name] = _flip(data)
    files = _with_sums(maker, files, keep=True)
    bundles = open_all(*write(maker, files, tmp_path))
    faults: list[str] = []
    bundles.watch(lambda fault, names, images: faults.extend([str(fault.digest), *images]))
    extent = bundles.layer.blob("team/app", digests.parse(digest))
    with pytest.raises(ContentCorrupt, match=digest):
        proof_of(extent).establish()
    assert faults == [digest, "team/app:1"]
    with pytest.raises(ContentCorrupt):
        bundles.layer.blob("team/app", digests.parse(digest))
    _nothing_wrong(bundles, made)
    done = mayfly_here("import", "--root", tmp_path / "root", *_paths(maker, tmp_path))
    assert done.returncode in (4, 5)
    assert digest in done.stderr


def _paths(maker: Maker, place: Path) -> list[Path]:
    return sorted(place.glob("mirror_*.tar")) or [place / f"bundle.{maker.form}"]


def _with_sums(maker: Maker, files: tuple[Files, ...], keep: bool = False) -> tuple[Files, ...]:
    """A zarf package with sums that are right again, of an attacker who made all of it."""
    if maker.name != "zarf" or keep:
        return files
    (package,) = files
    others = {k: v for k, v in package.items() if k not in ("checksums.txt", "zarf.yaml")}
    return ({**others, **zarf_documents(others)},)


def test_missing_blob(maker: Maker, made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """It is a 404 and named; import refuses the image; the others are served."""
    files = maker.make(made)
    digest, data = _damaged_layer(made)
    part, name = _file_of(files, data)
    del part[name]
    files = _with_sums(maker, files)
    bundles = open_all(*write(maker, files, tmp_path))
    with pytest.raises(BlobUnknown):
        bundles.layer.blob("team/app", digests.parse(digest))
    _nothing_wrong(bundles, made)
    tag = bundles.layer.tag("tool", "3")
    assert read(bundles.layer.manifest("tool", tag))
    done = mayfly_here("import", "--root", tmp_path / "root", *_paths(maker, tmp_path))
    assert done.returncode in (4, 5)
    assert digest in done.stderr


def test_lying_index(maker: Maker, made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """An entry under the name of another image's manifest is refused, or never proven."""
    files = maker.make(made)
    image, other = _image(made, "team/app"), _image(made, "tool")
    good, bad = made.data(str(image["digest"])), made.data(str(other["digest"]))
    replaced = 0
    for part in files:
        for name, body in part.items():
            if body == good:
                part[name] = bad
                replaced += 1
            elif name == "manifest.json" and document(good.decode()) in body:
                part[name] = body.replace(document(good.decode()), document(bad.decode()))
                replaced += 1
    assert replaced
    files = _with_sums(maker, files)
    paths = write(maker, files, tmp_path)
    try:
        bundles = open_all(*paths)
    except BundleInvalid as error:
        assert re.search(r"corrupt|damaged|is listed with another digest", error.message)
        assert str(paths[0]) in error.message
        return
    errors = _nothing_wrong(bundles, made)
    assert any(str(image["digest"]) in error for error in errors)


def test_truncated(maker: Maker, made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """A tar that was cut is refused; in a directory it is a blob that is too short."""
    paths = write(maker, maker.make(made), tmp_path)
    digest, data = _damaged_layer(made)
    if maker.form != "directory":
        os.truncate(paths[0], paths[0].stat().st_size // 2)
        try:
            # Cut between two members, it may lack nothing but blobs.
            assert open_all(*paths).lacking(lambda name, digest: False)
        except BundleInvalid as error:
            assert str(paths[0]) in error.message
        return
    (file,) = [p for p in paths[0].rglob("*") if p.is_file() and p.read_bytes() == data]
    os.truncate(file, len(data) // 2)
    try:
        bundles = open_all(*paths)
    except BundleInvalid as error:
        assert digest in error.message
        return
    with pytest.raises(ContentCorrupt, match=digest):
        proof_of(bundles.layer.blob("team/app", digests.parse(digest))).establish()


def test_hostile_link(maker: Maker, made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """A link to a file of the host in the place of a blob is never followed."""
    secret = tmp_path / "secret"
    digest, data = _damaged_layer(made)
    secret.write_bytes(data)
    place = tmp_path / "bundle"
    place.mkdir()
    files = maker.make(made)
    part, name = _file_of(files, data)
    if maker.form == "directory":
        paths = write(maker, files, place)
        (paths[0] / name).unlink()
        (paths[0] / name).symlink_to(secret)
    else:
        del part[name]
        paths = write(maker, _with_sums(maker, files), place)
        number = next(n for n, one in enumerate(files) if one is part)
        packed = tar(part)
        end = len(packed) - len(packed.rstrip(b"\0"))
        body = packed[: -(end // 512 * 512)]
        hostile = tar_of(symlink(name, str(secret)))
        paths[number].write_bytes(pack(maker, body + hostile))
    try:
        bundles = open_all(*paths)
        with pytest.raises(StorageError):
            bundles.layer.blob("team/app", digests.parse(digest))
        _nothing_wrong(bundles, made)
    except BundleInvalid as error:
        assert name in error.message
        assert "symbolic link" in error.message or "outside" in error.message


@pytest.mark.parametrize("name", ["UPPER", "a" * 300, "x\x1b[31m", "-bad"])
@pytest.mark.parametrize("make", [talos, kubekey])
def test_hostile_names(
    make: Callable[[Content], Files], name: str, made: Content, tmp_path: Path, open_all: OpenAll
) -> None:
    """A repository or tag outside the grammar is passed over in words; the others are served."""
    files = make(made)
    odd: Files = {}
    for file, data in files.items():
        odd[file] = data
        if "team/app" in file and "/" not in name:
            odd[file.replace("team/app", f"team/{name}")] = data
    path = tmp_path / "bundle.tar"
    path.write_bytes(tar(odd))
    bundles = open_all(path)
    check_whole(bundles, made)
    assert all("\x1b" not in one for one in repositories(bundles.layer))


def test_parts_that_differ(made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """Two oc-mirror archives that disagree on a tag: that tag is a conflict, all else is served."""
    first, second, third = oc_mirror(made)
    link = next(name for name in first if "team/app/_manifests/tags/1/current" in name)
    second = second | {link: str(_image(made, "tool")["digest"]).encode()}
    bundles = open_all(*write(MAKERS["oc-mirror"], (first, second, third), tmp_path))
    with pytest.raises(BundleConflict, match=r"mirror_000001.tar and .*mirror_000002.tar"):
        bundles.layer.tag("team/app", "1")
    assert str(bundles.layer.tag("tool", "3")) == _image(made, "tool")["digest"]
    (told,) = bundles.damaged_names()
    assert "differs between" in told.text


def test_absent_part(made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """An oc-mirror archive that the numbers show to be missing is named."""
    first, second, last = write(MAKERS["oc-mirror"], oc_mirror(made), tmp_path)
    bundles = open_all(first, last)
    (told,) = [one for one in bundles.notices if one.code is Code.VOLUME_MISSING]
    assert told.file == second.name


def test_sets_stay_apart(made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """The archives of two directories are two bundles: a link of one gives no blob of the other."""
    first, second, third = oc_mirror(made)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    links, _, _ = write(MAKERS["oc-mirror"], (first, {}, {}), tmp_path / "one")
    blobs = tmp_path / "two" / "mirror_000001.tar"
    blobs.write_bytes(tar(second | third))
    layer = open_all(links, blobs).layer
    for file in second:
        digest = digests.parse(f"sha256:{file.split('/')[-2]}")
        for repository in SERVED:
            with pytest.raises(BlobUnknown):
                layer.blob(repository, digest)


def test_hauler_extras(made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """hauler's signatures get cosign's tags, its referrers their subject, its charts a name."""
    bundles = open_all(*write(MAKERS["hauler-tar"], MAKERS["hauler-tar"].make(made), tmp_path))
    layer, image = bundles.layer, _image(made, "team/app")
    encoded = str(image["digest"]).removeprefix("sha256:")
    assert layer.tags("team/app") == ["1", f"sha256-{encoded}.sig"]
    assert len(list(layer.referrers("team/app", digests.parse(str(image["digest"]))))) == 1
    assert layer.tags("hauler/chart") == ["1.2.3"]


@pytest.mark.parametrize("what", ["sums", "index", "blob"])
def test_zarf_sums(what: str, made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """checksums.txt is held to zarf.yaml, the layout's documents and the names of blobs to it."""
    files = zarf(made)
    if what == "sums":
        files["checksums.txt"] += b"\n"
        wanted = "checksums.txt does not have the digest that zarf.yaml gives it"
    elif what == "index":
        files["images/index.json"] += b" "
        wanted = "images/index.json does not have the digest that checksums.txt gives it"
    else:
        others = {k: v for k, v in files.items() if k not in ("checksums.txt", "zarf.yaml")}
        name = next(name for name in others if "/blobs/" in name)
        files |= zarf_documents(others | {name: b"other"})
        wanted = "is listed with another digest"
    path = tmp_path / "bundle.tar"
    path.write_bytes(tar(files))
    with pytest.raises(BundleInvalid, match=f"{re.escape(str(path))}: .*{wanted}"):
        open_all(path)


def test_zarf_without_images(tmp_path: Path, open_all: OpenAll) -> None:
    """A package of files alone is refused in words."""
    files = {"components/one.tar": b""}
    path = tmp_path / "bundle.tar"
    path.write_bytes(tar(files | zarf_documents(files)))
    with pytest.raises(BundleInvalid, match="the package has no images"):
        open_all(path)


def test_talos_tag_of_nothing(made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """A tag's copy of the manifest that is none of those filed by digest is damaged."""
    files = talos(made)
    name = next(name for name in files if "/reference/" in name)
    files[name] = files[name].replace(b"linux", b"linuX").replace(b"application", b"applicatiOn")
    path = tmp_path / "bundle.tar"
    path.write_bytes(tar(files))
    with pytest.raises(BundleInvalid, match=f"file {re.escape(name)} is none of the manifests"):
        open_all(path)


@pytest.mark.parametrize("kind", ["levels", "neither", "raw"])
def test_imgpkg_documents(kind: str, made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """A list that is nested too deeply, of neither kind, or with another text is refused."""
    (files,) = MAKERS["imgpkg"].make(made)
    entries = json.loads(files["manifest.json"])
    if kind == "levels":
        nested: Object = {"Refs": [], "Raw": "{}", "Digest": str(digests.of(b"{}"))}
        for _ in range(20):
            nested = {"Refs": [], "Indexes": [nested]}
        entries = [{"ImageIndex": nested, "Image": None}]
        wanted = "indexes within indexes"
    elif kind == "neither":
        entries.append({"ImageIndex": None, "Image": None})
        wanted = "is neither an image nor an index"
    else:
        entries[0]["Image"]["Config"]["Raw"] += " "
        wanted = "Config: .* is corrupt"
    path = tmp_path / "bundle.tar"
    path.write_bytes(tar(files | {"manifest.json": document(entries)}))
    with pytest.raises(BundleInvalid, match=wanted):
        open_all(path)


DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    ("name", "images"),
    [("imgpkg", ("library/base:2",)), ("Talos", ("library/base:2", "team/app:1", "tool:3"))],
)
def test_real_output(name: str, images: tuple[str, ...], made: Content, open_all: OpenAll) -> None:
    """What imgpkg and Talos' code made of the images in these tests is served byte for byte."""
    bundles = open_all(DATA / f"{name.lower()}.tar")
    assert [one.maker for one in bundles.makers] == [name]
    for image in images:
        repository, _, tag = image.partition(":")
        assert str(bundles.layer.tag(repository, tag)) == _image(made, repository)["digest"]
        for blob in made.blobs(_image(made, repository)):
            extent = bundles.layer.blob(repository, digests.parse(blob["digest"]))
            proof_of(extent).establish()
            assert read(extent) == made.data(blob["digest"])


@pytest.mark.parametrize("first", ["sealos-tar", "oc-mirror", "hauler-tar"])
@pytest.mark.parametrize("second", ["sealos-tar", "oc-mirror", "hauler-tar"])
def test_order(first: str, second: str, made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """Of equal content, the bundle's that the operator named first is served."""
    paths = []
    for number, name in enumerate((first, second)):
        (place := tmp_path / str(number)).mkdir()
        paths += write(MAKERS[name], MAKERS[name].make(made), place)
    bundles = open_all(*paths)
    assert [one.maker for one in bundles.makers] == [MAKERS[first].name, MAKERS[second].name]
    for blob in made.blobs(_image(made, "team/app")):
        path = bundles.layer.blob("team/app", digests.parse(blob["digest"])).path
        assert path.resolve().parent == tmp_path / "0"


def test_order_of_a_set(made: Content, tmp_path: Path, open_all: OpenAll) -> None:
    """A set of oc-mirror has the place of its first archive, wherever the others are named."""
    haul = write(MAKERS["hauler-tar"], MAKERS["hauler-tar"].make(made), tmp_path)
    parts = write(MAKERS["oc-mirror"], MAKERS["oc-mirror"].make(made), tmp_path)
    bundles = open_all(parts[2], *haul, *parts[:2])
    assert [one.maker for one in bundles.makers] == ["oc-mirror", "hauler"]
    check_whole(bundles, made)


def test_manifest_json_is_parsed_once(
    tmp_path: Path, open_all: OpenAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of a docker archive may have many megabytes."""
    (tmp_path / "b.tar").write_bytes(tar(docker_archive((["a:1"], layers("one")))))
    parsed: list[str] = []
    read_list = documents.read_list

    def counted(files: BundleFiles, name: str) -> list[object]:
        parsed.append(name)
        return read_list(files, name)

    monkeypatch.setattr(documents, "read_list", counted)
    assert open_all(tmp_path / "b.tar").tagged_names() == ["docker.io/library/a:1"]
    assert parsed == ["manifest.json"]


@pytest.mark.parametrize("compression", ["zst", "gz"])
def test_compressed(compression: str, made: Content, tmp_path: Path) -> None:
    """A package as its maker compresses it: refused in one line by serve, taken by import."""
    (path,) = write(MAKERS["zarf"], MAKERS["zarf"].make(made), tmp_path)
    packed = path.with_name(f"package.tar.{compression}")
    data = path.read_bytes()
    packed.write_bytes(gzip.compress(data) if compression == "gz" else zstandard.compress(data))
    done = mayfly_here("ls", packed)
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert f"mayfly import {packed}" in done.stderr
    done = mayfly_here("import", "--root", tmp_path / "root", packed)
    assert done.returncode == 0, done.stderr
    assert f"{packed}: it was made by zarf" in done.stderr
