"""OCI layouts, as directory and as tar: names, reachability, and everything that can be wrong."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.bundle import graph
from mayfly.storage.bundle.errors import BundleChanged, BundleConflict, BundleInvalid
from mayfly.storage.bundle.open import open_bundles
from mayfly.storage.digest import Digest
from mayfly.storage.errors import BlobUnknown, ContentCorrupt, ManifestUnknown, NameUnknown
from mayfly.storage.manifest import OCI_MANIFEST
from tests.bundle.builders import (
    LAYER_TYPE,
    REF_NAME,
    Layout,
    blob_name,
    docker_archive,
    document,
    layers,
    proof_of,
    read,
    symlink,
    tar,
    tar_info,
    tar_of,
    write,
)
from tests.bundle.conftest import OpenAll
from tests.support.images import digest_of
from tests.support.process import descriptors

NOVA = "quay.io/kolla/nova:1"
BASE, ONE, TWO = layers("base", "one", "two")


@pytest.fixture
def layout() -> Layout:
    """Two images that share a layer."""
    made = Layout()
    made.name(made.image(BASE, ONE), NOVA)
    made.name(made.image(BASE, TWO), "docker.io/library/nginx:1.25")
    return made


@pytest.fixture(params=["directory", "tar", "gnu tar"])
def bundle(request: pytest.FixtureRequest, layout: Layout, tmp_path: Path) -> Path:
    """The layout on disk."""
    if request.param == "directory":
        return layout.write_directory(tmp_path / "layout")
    format = tarfile.GNU_FORMAT if request.param == "gnu tar" else tarfile.PAX_FORMAT
    return layout.write_tar(tmp_path / "layout.tar", format)


def test_everything_is_served(bundle: Path, layout: Layout, open_all: OpenAll) -> None:
    """Tags, manifests, configs and layers, byte for byte, under paths without the host."""
    layer = open_all(bundle).layer
    assert layer.repositories("", 10) == ["kolla/nova", "library/nginx"]
    assert layer.repositories("kolla/nova", 10) == ["library/nginx"]
    assert layer.repositories("", 1) == ["kolla/nova"]
    for repository, tag in (("kolla/nova", "1"), ("library/nginx", "1.25")):
        assert layer.tags(repository) == [tag]
        digest = layer.tag(repository, tag)
        body = read(layer.manifest(repository, digest))
        assert digests.of(body) == digest
        manifest = json.loads(body)
        for descriptor in [manifest["config"], *manifest["layers"]]:
            blob = digests.parse(descriptor["digest"])
            assert read(layer.blob(repository, blob)) == layout.files[blob_name(str(blob))]
            assert layer.blob(repository, blob).size == descriptor["size"]


def test_isolation(bundle: Path, open_all: OpenAll) -> None:
    """A blob is in the repositories whose images use it and in no other."""
    layer = open_all(bundle).layer
    shared, one = digests.of(BASE), digests.of(ONE)
    assert list(layer.repositories_with(shared)) == ["kolla/nova", "library/nginx"]
    assert list(layer.repositories_with(one)) == ["kolla/nova"]
    assert list(layer.repositories_with(digests.of(b"absent"))) == []
    with pytest.raises(BlobUnknown):
        layer.blob("library/nginx", one)
    with pytest.raises(ManifestUnknown):
        layer.manifest("library/nginx", layer.tag("kolla/nova", "1"))
    with pytest.raises(ManifestUnknown):
        layer.tag("library/nginx", "1")
    with pytest.raises(NameUnknown):
        layer.tags("kolla")


def test_only_indexes_and_manifests_are_read(
    layout: Layout, tmp_path: Path, open_all: OpenAll
) -> None:
    """Opening reads no layer: they may be corrupt, and nothing notices until one is sent."""
    layout.files[blob_name(digest_of(BASE))] = bytes(len(BASE))
    layer = open_all(layout.write_tar(tmp_path / "b.tar")).layer
    assert layer.blob("kolla/nova", digests.of(BASE)).size == len(BASE)


def test_index_with_absent_platforms(tmp_path: Path, open_all: OpenAll) -> None:
    """An index is served as it is; what it names but the bundle lacks is unknown."""
    layout = Layout()
    there = layout.image(*layers("amd64"))
    absent = Layout().image(*layers("arm64"), architecture="arm64")
    index = layout.name(layout.index(there, absent), NOVA)
    bundles = open_all(layout.write_tar(tmp_path / "b.tar"))
    layer = bundles.layer
    assert layer.tag("kolla/nova", "1") == index
    assert digest_of(read(layer.manifest("kolla/nova", index))) == str(index)
    assert layer.manifest("kolla/nova", digests.parse(there["digest"])).size == there["size"]
    with pytest.raises(ManifestUnknown):
        layer.manifest("kolla/nova", digests.parse(absent["digest"]))
    assert bundles.notices == []


def test_nested_and_circular_indexes(tmp_path: Path, open_all: OpenAll) -> None:
    """Every level is reachable, and the work grows with the manifests, not with the paths."""
    layout = Layout()
    level = layout.image(BASE)
    for depth in range(40):
        level = layout.index(level, level, annotations={"depth": str(depth)})
    layout.name(level, NOVA)
    layer = open_all(layout.write_tar(tmp_path / "b.tar")).layer
    assert read(layer.blob("kolla/nova", digests.of(BASE))) == BASE


def test_missing_blob_is_said_aloud(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """The image is served, since another bundle may have the blob; the operator is told."""
    del layout.files[blob_name(digest_of(ONE))]
    bundles = open_all(layout.write_tar(tmp_path / "b.tar"))
    assert bundles.notices == []
    (gap,) = bundles.lacking(lambda repository, digest: False)
    assert "b.tar: image quay.io/kolla/nova:1 cannot be pulled: 1 of its blobs is" in str(gap)
    assert str(gap.needs) == digest_of(ONE)
    with pytest.raises(BlobUnknown):
        bundles.layer.blob("kolla/nova", digests.of(ONE))
    assert list(bundles.layer.repositories_with(digests.of(ONE))) == []


def test_foreign_layer_is_not_missed(tmp_path: Path, open_all: OpenAll) -> None:
    """A layer that clients fetch from elsewhere is in no bundle."""
    layout = Layout()
    foreign = layout.add(BASE, LAYER_TYPE) | {"urls": ["https://example.com/layer"]}
    layout.name(layout.image(layers=[foreign]), NOVA)
    del layout.files[blob_name(foreign["digest"])]
    assert open_all(layout.write_tar(tmp_path / "b.tar")).notices == []


def test_difference_over_its_base(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """A bundle without the blobs that another has in its repositories is complete with it.

    What only another repository of the other bundle has is not given to it.
    """
    base = Layout()
    base.name(base.image(BASE), "quay.io/kolla/nova:0")
    base.name(base.image(ONE), "quay.io/kolla/other:1")
    for left_out in (BASE, ONE):
        del layout.files[blob_name(digest_of(left_out))]
    paths = layout.write_tar(tmp_path / "delta.tar"), base.write_tar(tmp_path / "base.tar")
    layer = open_all(*paths).layer
    assert read(layer.blob("kolla/nova", digests.of(BASE))) == BASE
    for repository, blob in (("kolla/nova", ONE), ("kolla/other", BASE)):
        with pytest.raises(BlobUnknown):
            layer.blob(repository, digests.of(blob))
    assert read(layer.blob("kolla/other", digests.of(ONE))) == ONE


def test_sha512(tmp_path: Path, open_all: OpenAll) -> None:
    """Content under the other registered algorithm."""
    layout = Layout()
    image = layout.image(BASE)
    body = layout.files[blob_name(image["digest"])]
    digest = digests.of(body, "sha512")
    layout.files[blob_name(str(digest))] = body
    layout.name(image | {"digest": str(digest)}, NOVA)
    layer = open_all(layout.write_tar(tmp_path / "b.tar")).layer
    assert layer.tag("kolla/nova", "1") == digest
    assert read(layer.manifest("kolla/nova", digest)) == body


def test_referrers_come_along(tmp_path: Path, open_all: OpenAll) -> None:
    """What refers to an image is in its repository, and what refers to that, in any order."""
    layout = Layout()
    image = layout.image(BASE)
    sbom = layout.image(*layers("sbom"), subject=image, artifactType="application/sbom")
    signature = layout.image(*layers("sig"), subject=sbom, annotations={"by": "me"})
    for entry in (signature, sbom):
        layout.name(entry)
    layout.name(image, NOVA)
    layout.name(image, "ghcr.io/copy/nova:2")
    bundles = open_all(layout.write_tar(tmp_path / "b.tar"))
    assert bundles.notices == []
    assert bundles.layer.repositories("", 9) == ["copy/nova", "kolla/nova"]
    for repository in ("kolla/nova", "copy/nova"):
        (found,) = list(bundles.layer.referrers(repository, digests.parse(image["digest"])))
        assert found["digest"] == sbom["digest"]
        assert found["artifactType"] == "application/sbom"
        (found,) = list(bundles.layer.referrers(repository, digests.parse(sbom["digest"])))
        assert found["annotations"] == {"by": "me"}
        assert read(bundles.layer.blob(repository, digests.of(layers("sig")[0])))
    assert list(bundles.layer.referrers("no/such", digests.parse(image["digest"]))) == []


# Names


def _names(open_all: OpenAll, path: Path) -> dict[str, list[str]]:
    layer = open_all(path).layer
    return {name: layer.tags(name) for name in layer.repositories("", 100)}


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({REF_NAME: "quay.io/a/b:1"}, {"a/b": ["1"]}),
        ({REF_NAME: "nginx:1"}, {"library/nginx": ["1"]}),
        ({REF_NAME: "quay.io/a/b"}, {"a/b": ["latest"]}),
        ({REF_NAME: "1.25"}, {"my-file-1-2": ["1.25"]}),
        ({}, {"my-file-1-2": ["latest"]}),
        ({REF_NAME: "not a+tag"}, {"my-file-1-2": ["latest"]}),
        ({REF_NAME: "Broken/Name:1"}, {"my-file-1-2": ["latest"]}),
        ({REF_NAME: f"quay.io/a/b@{digest_of(b'x')}"}, {"a/b": []}),
    ],
)
def test_names_without_containerds(
    tmp_path: Path, open_all: OpenAll, annotations: dict[str, str], expected: dict[str, list[str]]
) -> None:
    """A full ref name is the name; a tag alone is a tag in a repository called as the file."""
    layout = Layout()
    layout.name(layout.image(BASE), **annotations)
    assert _names(open_all, layout.write_tar(tmp_path / "My_file.1.2.oci.tar")) == expected


def test_several_without_names(tmp_path: Path, open_all: OpenAll) -> None:
    """Only one can be ``latest``: several are found by digest, and the operator is told."""
    layout = Layout()
    found = [layout.name(layout.image(layer)) for layer in (ONE, TWO)]
    bundles = open_all(layout.write_tar(tmp_path / "b.tar"))
    assert bundles.layer.tags("b") == []
    for digest in found:
        assert bundles.layer.manifest("b", digest).size > 0
        assert f"b@{digest}" in [notice.image for notice in bundles.notices]


def test_alone_but_for_what_refers_to_it(tmp_path: Path, open_all: OpenAll) -> None:
    """An image without a name beside its own signature is still the only one."""
    layout = Layout()
    image = layout.image(BASE)
    layout.name(layout.image(ONE, subject=image))
    layout.name(image)
    layer = open_all(layout.write_tar(tmp_path / "b.tar")).layer
    assert str(layer.tag("b", "latest")) == image["digest"]
    assert len(list(layer.referrers("b", digests.parse(image["digest"])))) == 1


def test_containerds_name_comes_first(tmp_path: Path, open_all: OpenAll) -> None:
    """As docker and containerd write it: the full name beside a ref name that is the tag."""
    layout = Layout()
    layout.name(layout.image(BASE), "docker.io/library/x:2", **{REF_NAME: "2"})
    assert _names(open_all, layout.write_tar(tmp_path / "b.tar")) == {"library/x": ["2"]}


def test_repo_tags_come_last(tmp_path: Path, open_all: OpenAll) -> None:
    """The names of docker's own index, found by config, also of the images of an index."""
    layout = Layout()
    image, platform = layout.image(ONE), layout.image(TWO)
    layout.name(image)
    layout.name(layout.index(platform))
    configs = [
        json.loads(layout.files[blob_name(i["digest"])])["config"] for i in (image, platform)
    ]
    entries = [
        {
            "Config": blob_name(configs[0]["digest"]),
            "RepoTags": ["x:1", "quay.io/y:2"],
            "Layers": [],
        },
        {"Config": blob_name(configs[1]["digest"]), "RepoTags": ["z"], "Layers": []},
        {"Config": "blobs/sha256/short", "RepoTags": ["broken"], "Layers": []},
    ]
    layout.files["manifest.json"] = document(entries)
    expected = {"library/x": ["1"], "y": ["2"], "library/z": ["latest"]}
    assert _names(open_all, layout.write_tar(tmp_path / "b.tar")) == expected


def test_one_image_under_two_names(tmp_path: Path, open_all: OpenAll) -> None:
    """Each name is a repository of its own with the same content."""
    layout = Layout()
    image = layout.image(BASE)
    layout.name(image, "quay.io/a:1")
    layout.name(image, "quay.io/a:2")
    layout.name(image, "quay.io/b:1")
    assert _names(open_all, layout.write_tar(tmp_path / "b.tar")) == {"a": ["1", "2"], "b": ["1"]}


def test_two_upstreams(tmp_path: Path, open_all: OpenAll) -> None:
    """The same path from two upstreams is served under full names, also across bundles."""
    for one, (host, layer) in zip("ab", (("quay.io", ONE), ("ghcr.io", TWO)), strict=True):
        layout = Layout()
        layout.name(layout.image(layer), f"{host}/team/app:1")
        layout.write_tar(tmp_path / f"{one}.tar")
    bundles = open_all(tmp_path / "a.tar", tmp_path / "b.tar")
    assert bundles.layer.repositories("", 10) == ["ghcr.io/team/app", "quay.io/team/app"]
    quay = bundles.names.resolve("team/app", "quay.io")
    assert read(bundles.layer.blob(quay, digests.of(ONE))) == ONE
    with pytest.raises(BlobUnknown):
        bundles.layer.blob(quay, digests.of(TWO))


def test_bundles_that_disagree_on_a_tag(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """An error that names both, unless they have the same image."""
    other = Layout()
    other.name(other.image(TWO), NOVA)
    one, two = layout.write_tar(tmp_path / "one.tar"), other.write_tar(tmp_path / "two.tar")
    with pytest.raises(BundleConflict) as caught:
        open_all(one, two)
    for word in (NOVA, "one.tar", "two.tar"):
        assert word in caught.value.message
    same = shutil.copy(one, tmp_path / "same.tar")
    assert open_all(one, same).layer.tags("kolla/nova") == ["1"]


def test_bundle_that_disagrees_with_itself(tmp_path: Path, open_all: OpenAll) -> None:
    """The same name listed for two images."""
    layout = Layout()
    layout.name(layout.image(ONE), NOVA)
    layout.name(layout.image(TWO), NOVA)
    with pytest.raises(BundleConflict, match=r"b.tar: quay.io/kolla/nova:1 is listed twice"):
        open_all(layout.write_tar(tmp_path / "b.tar"))


# What is wrong


def invalid(open_all: OpenAll, path: Path, *words: str) -> None:
    """The bundle is refused, with its path and all these words."""
    with pytest.raises(BundleInvalid) as caught:
        open_all(path)
    for word in (str(path), *words):
        assert word in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("index.json", b"{", ["index.json is not JSON"]),
        ("index.json", b"[" * 100_000, ["index.json is nested deeper than 64 levels"]),
        ("index.json", b'[{"":0}' + b',{"":0}' * 400_000, ["more than 500000 JSON values"]),
        ("index.json", b'{"\xff":0}', ["index.json is not JSON"]),
        ("index.json", b"[]", ["index.json is not a JSON object"]),
        ("index.json", b"{}", ["no list of manifests"]),
        ("index.json", b'{"manifests":[{}]}', ["manifests[0]", "not a digest"]),
        ("index.json", b'{"manifests":[7]}', ["manifests[0]"]),
        ("index.json", b'{"manifests":[{"digest":"sha256:../../etc"}]}', ["manifests[0]"]),
        ("index.json", b'{"manifests":[{"digest":"md5:ab"}]}', ["md5"]),
        ("index.json", bytes(17 * 1024 * 1024), ["index.json is 17825792 bytes long"]),
        ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}', ["version '2.0.0'", "1.0.0"]),
        ("oci-layout", b"nothing", ["oci-layout is not JSON"]),
        ("oci-layout", b'{"imagelayoutversion":"2.0.0"}', ["must be spelled imageLayoutVersion"]),
        ("index.json", b'{"manifests":[],"Manifests":[]}', ["'Manifests'", "spelled manifests"]),
        ("index.json", b'{"manife\xc5\xbfts":[]}', ["must be spelled manifests"]),
        ("index.json", b'{"manifests":[],"manifests":[]}', ["index.json has a field twice"]),
        (
            "index.json",
            b'{"manifests":[{"digest":"sha256:%s","Digest":"x"}]}' % (b"a" * 64),
            ["manifests[0]", "'Digest'", "must be spelled digest"],
        ),
        (
            "index.json",
            b'{"manifests":[{"annotations":{"a":"1","a":"2"}}]}',
            ["index.json has a field twice"],
        ),
        ("manifest.json", b'[{"Config":"a","config":"b"}]', ["must be spelled Config"]),
        ("manifest.json", b'[{"Config":"a","repotags":[]}]', ["must be spelled RepoTags"]),
        ("manifest.json", b'[{"Config":"a","Config":"b"}]', ["manifest.json has a field twice"]),
        ("manifest.json", b"{}", ["manifest.json is not a JSON list"]),
        ("manifest.json", b"[1]", ["image 0 has no Config"]),
    ],
)
def test_broken_documents(
    layout: Layout, tmp_path: Path, open_all: OpenAll, name: str, data: bytes, words: list[str]
) -> None:
    """Each broken document is told by name, in a directory and in a tar."""
    files = layout.all_files() | {name: data}
    invalid(open_all, write(tmp_path / "b.tar", files), *words)
    layout.write_directory(tmp_path / "layout")
    (tmp_path / "layout" / name).write_bytes(data)
    invalid(open_all, tmp_path / "layout", *words)


def test_listed_manifest_that_is_absent(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """What the list names must be there: this is how a bundle that was cut looks."""
    digest = layout.entries[0]["digest"]
    del layout.files[blob_name(digest)]
    invalid(open_all, layout.write_tar(tmp_path / "b.tar"), digest, "is listed, but is not there")


def test_corrupt_manifest(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """Manifests are verified when the bundle is opened: names and isolation rest on them."""
    digest = layout.entries[0]["digest"]
    body = layout.files[blob_name(digest)]
    layout.files[blob_name(digest)] = body.replace(b"2", b"3", 1)
    invalid(open_all, layout.write_tar(tmp_path / "b.tar"), f"manifest {digest} is corrupt")


def test_blob_of_another_size(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """A blob whose length contradicts its descriptor is seen without reading it."""
    layout.files[blob_name(digest_of(ONE))] = ONE[:-1]
    invalid(open_all, layout.write_tar(tmp_path / "b.tar"), digest_of(ONE), NOVA, "cut short")


@pytest.mark.parametrize("body", [b"not JSON", document({"schemaVersion": 1}), b"\xff"])
def test_manifest_of_another_kind(
    layout: Layout, tmp_path: Path, open_all: OpenAll, body: bytes
) -> None:
    """One image that cannot be served does not keep the others from it; it is said aloud."""
    layout.name(layout.add(body, "application/x"), "quay.io/odd:1")
    bundles = open_all(layout.write_tar(tmp_path / "b.tar"))
    assert bundles.layer.repositories("", 9) == ["kolla/nova", "library/nginx"]
    (notice,) = bundles.notices
    assert f"manifest {digest_of(body)} cannot be served" in str(notice)


def test_huge_manifest(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """What an index lists may be no manifest at all: over 4 MiB it is not read."""
    data = bytes(5 * 1024 * 1024)
    layout.name(layout.index(layout.add(data, OCI_MANIFEST)), "quay.io/cache:1")
    layout.files[blob_name(digest_of(data))] = data[:-1] + b"x"
    bundles = open_all(layout.write_tar(tmp_path / "b.tar"))
    assert bundles.layer.tags("cache") == ["1"]
    (notice,) = bundles.notices
    assert "5242880 bytes long" in notice.detail


def test_no_bundle(tmp_path: Path, open_all: OpenAll) -> None:
    """What is no bundle is told apart by what it is."""
    (tmp_path / "empty").mkdir()
    invalid(open_all, tmp_path / "empty", "no bundle", "index.json", "docker/registry/v2")
    invalid(open_all, tmp_path / "absent", "No such file")
    (tmp_path / "text").write_text("hello " * 200)
    invalid(open_all, tmp_path / "text", "not a tar")
    (tmp_path / "nothing").touch()
    invalid(open_all, tmp_path / "nothing", "the file is empty")
    invalid(open_all, write(tmp_path / "other.tar", {"a": b"b"}), "no bundle", "index.json")
    invalid(open_all, Path("/dev/null"), "neither a file nor a directory")
    invalid(open_all, write(tmp_path / "1.9.tar", {"repositories": b"{}"}), "before 1.10")


def test_layout_in_a_subdirectory(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """The tar of a directory instead of its content: the message has the command that mends it."""
    files = {f"out/{name}": data for name, data in layout.all_files().items()}
    invalid(open_all, write(tmp_path / "b.tar", files), "tar -C out/ -cf NEW.tar .")


@pytest.mark.parametrize(
    ("magic", "name", "command"),
    [
        (b"\x1f\x8b\x08\x00", "gzip", "gzip --decompress"),
        (b"\x28\xb5\x2f\xfd", "zstd", "zstd --decompress"),
        (b"\xfd7zXZ\x00", "xz", "xz --decompress"),
        (b"BZh9", "bzip2", "bzip2 --decompress"),
    ],
)
def test_compressed(
    tmp_path: Path, open_all: OpenAll, magic: bytes, name: str, command: str
) -> None:
    """Told by content whatever the name; the message has both ways out. Nothing is decompressed."""
    path = tmp_path / "bundle.tar"
    path.write_bytes(magic + bytes(1000))
    invalid(open_all, path, f"compressed with {name}", f"mayfly import {path}", command)


def test_truncated(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """Cut anywhere, a bundle is refused."""
    data = tar(layout.all_files())
    for length in range(0, len(data.rstrip(b"\0")), 641):
        path = tmp_path / "cut.tar"
        path.write_bytes(data[:length])
        with pytest.raises(BundleInvalid, match=r"cut.tar"):
            open_all(path)


def test_traversal_in_a_tar(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """A member that climbs out makes the whole bundle unsafe."""
    files = {"../../etc/cron.d/x": b"x", **layout.all_files()}
    invalid(open_all, write(tmp_path / "b.tar", files), "'../../etc/cron.d/x'", "outside")


def test_links_out_of_a_bundle(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """A blob that is a link to a file of the host is never looked at."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * len(ONE))
    directory = layout.write_directory(tmp_path / "layout")
    blob = directory / blob_name(digest_of(ONE))
    blob.unlink()
    blob.symlink_to(secret)
    invalid(open_all, directory, "symbolic link", digest_of(ONE).removeprefix("sha256:"))
    files = layout.all_files()
    name = blob_name(digest_of(ONE))
    del files[name]
    members = [(tar_info(n, d), d) for n, d in files.items()]
    path = tmp_path / "b.tar"
    path.write_bytes(tar_of(*members, symlink(name, str(secret))))
    invalid(open_all, path, "outside the archive")


def test_index_that_is_a_link(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """Neither is an index."""
    directory = layout.write_directory(tmp_path / "layout")
    (directory / "index.json").rename(tmp_path / "index.json")
    (directory / "index.json").symlink_to(tmp_path / "index.json")
    invalid(open_all, directory, "index.json is a symbolic link")


# Changes while it is served


def test_replaced_file_is_not_looked_at(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """What takes the bundle's name later changes nothing: the one opened is served to its end."""
    path = layout.write_tar(tmp_path / "b.tar")
    layer = open_all(path).layer
    other = tmp_path / "other.tar"
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)
    assert read(layer.blob("kolla/nova", digests.of(ONE))) == ONE
    path.unlink()
    assert read(layer.blob("kolla/nova", digests.of(BASE))) == BASE


@pytest.mark.parametrize("how", ["overwritten", "grown", "truncated"])
def test_file_changed_in_place(layout: Layout, tmp_path: Path, open_all: OpenAll, how: str) -> None:
    """Nothing of it is served any more."""
    path = layout.write_tar(tmp_path / "b.tar")
    layer = open_all(path).layer
    digest = layer.tag("kolla/nova", "1")
    match how:
        case "overwritten":
            with path.open("r+b") as file:
                file.write(b"x")
        case "grown":
            with path.open("ab") as file:
                file.write(b"x")
        case _:
            with path.open("r+b") as file:
                file.truncate(2048)
    for call in (
        lambda: layer.blob("kolla/nova", digests.of(ONE)),
        lambda: layer.manifest("kolla/nova", digest),
    ):
        with pytest.raises(BundleChanged, match="changed while it is served"):
            call()


def test_directory_changed(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """Each file is looked at as it is: corrupt, mended, absent."""
    directory = layout.write_directory(tmp_path / "layout")
    layer = open_all(directory).layer
    blob = directory / blob_name(digest_of(ONE))
    blob.write_bytes(ONE + b"x")
    with pytest.raises(ContentCorrupt):
        proof_of(layer.blob("kolla/nova", digests.of(ONE))).establish()
    with pytest.raises(ContentCorrupt):
        layer.blob("kolla/nova", digests.of(ONE))
    blob.write_bytes(ONE)
    proof_of(layer.blob("kolla/nova", digests.of(ONE))).establish()
    blob.unlink()
    with pytest.raises(BlobUnknown):
        layer.blob("kolla/nova", digests.of(ONE))


def test_no_descriptor_is_left(layout: Layout, tmp_path: Path, state: Path) -> None:
    """Closing, and failing to open, leave no file open."""
    good = layout.write_tar(tmp_path / "good.tar")
    bad = write(tmp_path / "bad.tar", layout.all_files() | {"index.json": b"{"})
    layout.files[blob_name(layout.entries[0]["digest"])] += b" "
    corrupt = layout.write_tar(tmp_path / "corrupt.tar")
    made = docker_archive((["a:1"], [ONE]), (["a:1"], [TWO]))
    conflict = write(tmp_path / "conflict.tar", made)
    before = descriptors()
    for paths in ([good], [bad], [good, bad], [good, good], [corrupt], [conflict]):
        with contextlib.suppress(BundleInvalid, BundleConflict):
            open_bundles(paths, state).close()
    assert descriptors() == before


def test_order_of_bundles_does_not_matter(tmp_path: Path, open_all: OpenAll) -> None:
    """Several bundles make one catalog, one list of tags and one of referrers."""
    image = Layout().image(BASE)
    parts: list[dict[str, Any]] = [
        {"name": "quay.io/a:1"},
        {"name": "quay.io/a:2"},
        {"name": "quay.io/b:1", "subject": image},
    ]
    paths = []
    for number, part in enumerate(parts):
        layout = Layout()
        name = part.pop("name")
        layout.name(layout.image(*layers(str(number)), **part), name)
        paths.append(layout.write_tar(tmp_path / f"{number}.tar"))
    for order in itertools.permutations(paths):
        layer = open_all(*order).layer
        assert layer.repositories("", 10) == ["a", "b"]
        assert layer.tags("a") == ["1", "2"]
        assert len(list(layer.referrers("b", digests.parse(image["digest"])))) == 1


def test_referrers_in_reverse_order(
    tmp_path: Path, open_all: OpenAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each artifact is added once, also where every one refers to the next in the list."""
    added: list[object] = []
    add = graph.Graph._add

    def counted(self: graph.Graph, repository: graph.Repository, root: Digest) -> list[Digest]:
        added.append(root)
        return add(self, repository, root)

    monkeypatch.setattr(graph.Graph, "_add", counted)
    layout = Layout()
    image = layout.image(BASE)
    artifacts = [image]
    for number in range(500):
        artifacts.append(layout.image(subject=artifacts[-1], annotations={"n": str(number)}))
    for artifact in reversed(artifacts[1:]):
        layout.entries.append(artifact)
    layout.name(image, NOVA)
    layer = open_all(layout.write_tar(tmp_path / "b.tar")).layer
    assert len(list(layer.revisions("kolla/nova"))) == 501
    assert len(added) == 501
    (found,) = layer.referrers("kolla/nova", digests.parse(artifacts[-2]["digest"]))
    assert found["digest"] == artifacts[-1]["digest"]


def test_too_many_different_blobs(
    tmp_path: Path, open_all: OpenAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the manifests of a bundle name is held in memory, so it has a limit; sharing is free."""
    monkeypatch.setattr(graph, "_MAX_NAMED", 50)
    layout = Layout()
    shared = layout.add(BASE, LAYER_TYPE)
    for number in range(48):
        layout.name(
            layout.image(layers=[shared], annotations={"n": str(number)}), f"{NOVA}{number}"
        )
    open_all(layout.write_tar(tmp_path / "b.tar"))
    layout.name(layout.image(*layers(*map(str, range(60)))), "quay.io/many:1")
    invalid(open_all, layout.write_tar(tmp_path / "c.tar"), "more than 50 blobs")
