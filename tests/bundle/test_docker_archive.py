"""Docker archives: manifests made anew, links between layers, layers that must be hashed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.bundle import docker_archive as docker_archive_module
from mayfly.storage.bundle import files as files_module
from mayfly.storage.bundle.diagnostics import Code
from mayfly.storage.bundle.errors import BundleConflict, BundleInvalid, NotReady
from mayfly.storage.bundle.open import open_bundles
from mayfly.storage.bundle.verified import Piece
from mayfly.storage.manifest import DOCKER_MANIFEST
from tests.bundle.builders import (
    docker_archive,
    document,
    hard_link,
    layers,
    proof_of,
    read,
    symlink,
    tar_info,
    tar_of,
    write,
)
from tests.bundle.conftest import OpenAll
from tests.bundle.test_layout import invalid
from tests.support.images import digest_of

PLAIN = "application/vnd.docker.image.rootfs.diff.tar"
BASE, ONE, TWO = layers("base", "one", "two")


def manifest_of(layer: Any, repository: str, tag: str) -> dict[str, Any]:
    """The manifest served for a tag."""
    return dict(json.loads(read(layer.manifest(repository, layer.tag(repository, tag)))))


def test_manifests_are_made(tmp_path: Path, open_all: OpenAll) -> None:
    """From the config and its diff ids, without reading a layer; the operator is told."""
    files = docker_archive((["app:1", "quay.io/team/app:2"], [BASE, ONE]), (["b:1"], [BASE, TWO]))
    bundles = open_all(write(tmp_path / "b.tar", files))
    layer = bundles.layer
    assert layer.repositories("", 9) == ["library/app", "library/b", "team/app"]
    made = manifest_of(layer, "library/app", "1")
    assert made["mediaType"] == DOCKER_MANIFEST
    assert made["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    assert [one["digest"] for one in made["layers"]] == [digest_of(BASE), digest_of(ONE)]
    assert {one["mediaType"] for one in made["layers"]} == {PLAIN}
    for descriptor in [made["config"], *made["layers"]]:
        extent = layer.blob("library/app", digests.parse(descriptor["digest"]))
        assert digest_of(read(extent)) == descriptor["digest"]
        assert extent.size == descriptor["size"]
        proof_of(extent).establish()
    assert layer.tag("team/app", "2") == layer.tag("library/app", "1")
    (notice,) = bundles.notices
    assert notice.code is Code.DIGESTS_MADE
    assert bundles.unhashed == 0


def test_digest_is_the_same_after_a_restart(tmp_path: Path, open_all: OpenAll) -> None:
    """A node that pulled by tag yesterday finds the digest it has."""
    path = write(tmp_path / "b.tar", docker_archive((["app:1"], [BASE, ONE])))
    found = {open_all(path).layer.tag("library/app", "1") for _ in range(3)}
    assert len(found) == 1


def test_links_between_layers(tmp_path: Path, open_all: OpenAll) -> None:
    """A layer may be a link to that of another image, symbolic or hard."""
    files = docker_archive(
        (["a:1"], [BASE]),
        (["b:1"], [BASE, ONE]),
        name_layer=lambda data: digest_of(data)[7:] + "/l.tar",
    )
    target = digest_of(BASE)[7:] + "/l.tar"
    index = json.loads(files["manifest.json"])
    index[1]["Layers"][0] = "linked/layer.tar"
    index.append(index[1] | {"RepoTags": ["c:1"], "Layers": ["hard.tar", *index[1]["Layers"][1:]]})
    members = [(tar_info(n, d), d) for n, d in files.items() if n != "manifest.json"]
    body = document(index)
    path = tmp_path / "b.tar"
    path.write_bytes(
        tar_of(
            symlink("linked/layer.tar", f"../{target}"),
            *members,
            hard_link("hard.tar", target),
            (tar_info("manifest.json", body), body),
        )
    )
    layer = open_all(path).layer
    for name in "abc":
        assert read(layer.blob(f"library/{name}", digests.of(BASE))) == BASE


@pytest.mark.parametrize("link", ["../../../etc/passwd", "/etc/passwd"])
def test_layer_that_links_to_the_host(tmp_path: Path, open_all: OpenAll, link: str) -> None:
    """A layer is never a file of the host."""
    files = docker_archive((["a:1"], [BASE]), name_layer=lambda data: "x/layer.tar")
    del files["x/layer.tar"]
    members = [(tar_info(n, d), d) for n, d in files.items()]
    path = tmp_path / "b.tar"
    path.write_bytes(tar_of(symlink("x/layer.tar", link), *members))
    invalid(open_all, path, "'x/layer.tar' links outside")


def test_untagged_image(tmp_path: Path, open_all: OpenAll) -> None:
    """An image saved by id has no name: it is called as the file."""
    bundles = open_all(write(tmp_path / "Saved.tar", docker_archive(([], [BASE]))))
    assert bundles.layer.tags("saved") == ["latest"]
    assert "saved:latest" in [notice.image for notice in bundles.notices]


def test_image_without_layers(tmp_path: Path, open_all: OpenAll) -> None:
    """An image of nothing but a config."""
    layer = open_all(write(tmp_path / "b.tar", docker_archive((["a:1"], [])))).layer
    assert manifest_of(layer, "library/a", "1")["layers"] == []


def test_compressed_layers_named_by_digest(tmp_path: Path, open_all: OpenAll) -> None:
    """As crane and Jib write them: nothing has to be hashed, and the type says gzip."""
    files = docker_archive(
        (["a:1"], [BASE, ONE]),
        compress=True,
        name_layer=lambda data: digest_of(data)[7:] + ".tar.gz",
    )
    bundles = open_all(write(tmp_path / "b.tar", files))
    assert bundles.unhashed == 0
    made = manifest_of(bundles.layer, "library/a", "1")
    assert {one["mediaType"] for one in made["layers"]} == {f"{PLAIN}.gzip"}
    extent = bundles.layer.blob("library/a", digests.parse(made["layers"][1]["digest"]))
    assert gzip.decompress(read(extent)) == ONE
    proof_of(extent).establish()


def test_compressed_layers_of_unknown_digest(tmp_path: Path, state: Path) -> None:
    """The images wait for their layers to be hashed, everything else does not; once is enough."""
    unknown = docker_archive((["a:1"], [BASE, ONE]), (["b:1"], [BASE]), compress=True)
    known = docker_archive((["c:1"], [TWO]))
    index = [json.loads(files["manifest.json"]) for files in (unknown, known)]
    files = unknown | known | {"manifest.json": document(index[0] + index[1])}
    zipped = [len(gzip.compress(layer, mtime=0)) for layer in (BASE, ONE)]
    path = write(tmp_path / "b.tar", files)
    bundles = open_bundles([path], state)
    layer = bundles.layer
    assert bundles.unhashed == sum(zipped)
    assert layer.tags("library/a") == ["1"]
    with pytest.raises(NotReady, match="try again"):
        layer.tag("library/a", "1")
    assert manifest_of(layer, "library/c", "1")["layers"][0]["digest"] == digest_of(TWO)
    before = layer.manifest("library/c", layer.tag("library/c", "1"))
    steps: list[int] = []
    bundles.hash(steps.append)
    assert sum(steps) == sum(zipped)
    assert bundles.unhashed == 0
    made = manifest_of(layer, "library/a", "1")
    assert [one["digest"] for one in made["layers"]] == [
        digest_of(gzip.compress(data, mtime=0)) for data in (BASE, ONE)
    ]
    assert read(before) == read(layer.manifest("library/c", layer.tag("library/c", "1")))
    bundles.close()
    again = open_bundles([path], state)
    assert again.unhashed == 0
    assert manifest_of(again.layer, "library/a", "1") == made
    again.close()


def test_conflict_that_shows_after_hashing(tmp_path: Path, open_all: OpenAll) -> None:
    """Two archives that turn out to disagree: an error then, and no pick before or after."""
    one, two = (
        write(tmp_path / f"{n}.tar", docker_archive((["a:1"], [data]), compress=True))
        for n, data in enumerate((ONE, TWO))
    )
    bundles = open_all(one, two)
    with pytest.raises(BundleConflict, match=r"library/a:1"):
        bundles.hash(lambda count: None)
    with pytest.raises(BundleConflict):
        bundles.layer.tag("library/a", "1")


@pytest.mark.parametrize("config", [{}, {"rootfs": {"type": "layers"}}, {"rootfs": None}])
def test_config_without_diff_ids(
    tmp_path: Path, state: Path, open_all: OpenAll, config: dict[str, Any]
) -> None:
    """Its layers are hashed, once; then the image is served as any."""
    files = docker_archive((["a:1"], [ONE, TWO]))
    files[json.loads(files["manifest.json"])[0]["Config"]] = document(config)
    path = write(tmp_path / "b.tar", files)
    bundles = open_all(path)
    assert bundles.unhashed == len(ONE) + len(TWO)
    with pytest.raises(NotReady):
        bundles.layer.tag("library/a", "1")
    bundles.hash(lambda count: None)
    made = manifest_of(bundles.layer, "library/a", "1")
    assert [layer["digest"] for layer in made["layers"]] == [digest_of(ONE), digest_of(TWO)]
    assert open_bundles([path], state).unhashed == 0


@pytest.mark.parametrize("listed", [{"Layers": None}, {"Layers": []}, {}])
def test_image_without_a_list_of_layers(
    tmp_path: Path, open_all: OpenAll, listed: dict[str, Any]
) -> None:
    """A config alone is an image, too."""
    entry = {"Config": "c.json", "RepoTags": ["a:1"]} | listed
    files = {"c.json": document({"os": "linux"}), "manifest.json": document([entry])}
    layer = open_all(write(tmp_path / "b.tar", files)).layer
    assert manifest_of(layer, "library/a", "1")["layers"] == []


def test_same_layer_twice(tmp_path: Path, open_all: OpenAll) -> None:
    """Named twice by an image, and stored twice by a tool that does not look: it is one layer."""
    files = docker_archive((["a:1"], [ONE, TWO, ONE]), name_layer=lambda data: digest_of(data)[7:])
    members = [(tar_info(name, data), data) for name, data in files.items()]
    path = tmp_path / "b.tar"
    path.write_bytes(tar_of(*members, *members))
    made = manifest_of(open_all(path).layer, "library/a", "1")
    assert [layer["digest"] for layer in made["layers"]] == [*map(digest_of, (ONE, TWO, ONE))]


def test_each_config_and_layer_is_read_once(
    tmp_path: Path, open_all: OpenAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many images name it, under its own name or through links."""
    files = docker_archive((["a:1"], [ONE]))
    entry = json.loads(files["manifest.json"])[0]
    links = [hard_link(f"c{n}.json", entry["Config"]) for n in range(50)]
    entries = [entry | {"Config": link.name, "RepoTags": None} for link in links]
    files["manifest.json"] = document([entry] * 50 + entries)
    members = [(tar_info(name, data), data) for name, data in files.items()]
    path = tmp_path / "b.tar"
    path.write_bytes(tar_of(*members, *links))
    real, names = files_module.read, list[str]()

    def count(piece: Piece, name: str, limit: int = 2**24) -> bytes:
        names.append(name)
        return real(piece, name, limit)

    monkeypatch.setattr(docker_archive_module, "read", count)
    assert len(open_all(path).layer.tags("library/a")) == 1
    assert names == [entry["Config"], entry["Layers"][0]]


@pytest.mark.parametrize("images", [1, 3])
def test_too_many_layers(
    tmp_path: Path, open_all: OpenAll, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    """One layer that an image names very often, or many images do, fills no memory."""
    monkeypatch.setattr(docker_archive_module, "_MAX_LAYERS", 60)
    files = docker_archive((["a:1"], [ONE]))
    entry = json.loads(files["manifest.json"])[0]
    files[entry["Config"]] = document({})
    many = [entry | {"Layers": entry["Layers"] * (60 // images + n)} for n in range(1, images + 1)]
    files["manifest.json"] = document(many)
    invalid(open_all, write(tmp_path / "b.tar", files), "more than 60 layers", "several bundles")


def test_layer_whose_name_lies(tmp_path: Path, open_all: OpenAll) -> None:
    """A digest taken from a file's name is proven like any other before it is sent whole."""
    files = docker_archive(
        (["a:1"], [ONE]), compress=True, name_layer=lambda _: "ab" * 32 + ".tar.gz"
    )
    layer = open_all(write(tmp_path / "b.tar", files)).layer
    extent = layer.blob("library/a", digests.parse("sha256:" + "ab" * 32))
    with pytest.raises(Exception, match="corrupt"):
        proof_of(extent).establish()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, i: f.pop(i["Config"]), ["manifest.json names", ".json", "not there"]),
        (lambda f, i: f.pop(i["Layers"][0]), ["manifest.json names", "layer.tar", "not there"]),
        (lambda f, i: f.update({i["Config"]: b'{"rootfs":{"diff_ids":7}}'}), ["not a list"]),
        (lambda f, i: f.update({i["Config"]: b"?"}), ["not JSON"]),
        (lambda f, i: f.update({i["Config"]: b'{"rootfs":{},"RootFS":{}}'}), ["spelled rootfs"]),
        (lambda f, i: f.update({i["Config"]: b'{"rootfs":{"Diff_IDs":[]}}'}), ["spelled diff_ids"]),
        (lambda f, i: f.update({i["Config"]: b'{"rootfs":{},"rootfs":{}}'}), ["field twice"]),
        (
            lambda f, i: f.update({i["Config"]: document({"rootfs": {"diff_ids": ["x", "y"]}})}),
            ["has 2 layers", "gives it 1"],
        ),
        (lambda f, i: f.update({i["Config"]: b'{"rootfs":{"diff_ids":["x"]}}'}), ["not a digest"]),
        (lambda f, i: f.update({i["Layers"][0]: b"BZh9123456"}), ["import it"]),
    ],
)
def test_broken_archives(tmp_path: Path, open_all: OpenAll, change: Any, words: list[str]) -> None:
    """Each is told by member."""
    files = docker_archive((["a:1"], [BASE]))
    change(files, json.loads(files["manifest.json"])[0])
    invalid(open_all, write(tmp_path / "b.tar", files), *words)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"Config": 1},
        {"Config": "c.json", "Layers": "x"},
        {"Config": "c.json", "Layers": [1]},
        {"Config": "c.json", "Layers": [], "RepoTags": [7]},
        {"Config": "../../etc/passwd", "Layers": []},
        {"Config": "/etc/passwd", "Layers": []},
    ],
)
def test_broken_index(tmp_path: Path, open_all: OpenAll, entry: dict[str, Any]) -> None:
    """Shapes that are none, and names that lead elsewhere."""
    files = {"c.json": document({"rootfs": {"diff_ids": []}}), "manifest.json": document([entry])}
    with pytest.raises(BundleInvalid, match=r"manifest.json"):
        open_all(write(tmp_path / "b.tar", files))
