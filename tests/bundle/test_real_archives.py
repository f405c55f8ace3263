"""Archives written by the tools that operators use, each served whole and right."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import ManifestUnknown
from mayfly.storage.interface import LowerStore
from tests.bundle.builders import REF_NAME, Layout, blob_name, layers, proof_of, read
from tests.bundle.conftest import OpenAll
from tests.clients.programs import Client, Containerd, Dockerd, push_by_skopeo
from tests.support.images import digest_of
from tests.support.process import Mayfly, find_program, need, need_root, remove_tree

NAME = "quay.io/acme/one:1"
BASE, ONE, TWO = layers("base", "one", "two")


@pytest.fixture(scope="module")
def place(workspace: Path) -> Iterator[Path]:
    """Where this module's archives and daemons are."""
    path = Path(tempfile.mkdtemp(prefix="archives-", dir=workspace))
    (path / "auth.json").write_text("{}")
    yield path
    remove_tree(path)


@pytest.fixture(scope="module")
def layout(place: Path) -> Path:
    """Two images that share a layer, and an index of two platforms."""
    made = Layout()
    # Compressed, or skopeo would compress them on the way and change the digests.
    made.name(made.image(BASE, ONE, compress=True), **{REF_NAME: "one"})
    made.name(made.image(BASE, TWO, compress=True), **{REF_NAME: "two"})
    other = made.image(BASE, TWO, architecture="arm64", compress=True)
    platforms = [
        made.image(BASE, ONE, compress=True)
        | {"platform": {"os": "linux", "architecture": "amd64"}},
        other | {"platform": {"os": "linux", "architecture": "arm64"}},
    ]
    made.name(made.index(*platforms), **{REF_NAME: "multi"})
    return made.write_directory(place / "layout")


@pytest.fixture(scope="module")
def skopeo(place: Path) -> Client:
    """skopeo, with no signature policy."""
    return Client("skopeo", place, "--insecure-policy")


@pytest.fixture(scope="module")
def podman(place: Path) -> Iterator[Client]:
    """podman with a storage of its own, holding both images."""
    need_root()
    need("podman", "runc")
    storage = place / "podman"
    yield Client(
        "podman",
        place,
        f"--root={storage}/root",
        f"--runroot={storage}/run",
        f"--runtime={find_program('runc')}",
        "--cgroup-manager=cgroupfs",
        "--events-backend=file",
        "--storage-driver=vfs",
    )


def check(layer: LowerStore, repository: str, tag: str, *contents: bytes) -> Digest:
    """Everything of an image is served, proven and exact; the digest of its manifest."""
    digest = layer.tag(repository, tag)
    body = read(layer.manifest(repository, digest))
    assert digests.of(body) == digest
    manifest = json.loads(body)
    found = []
    for descriptor in [manifest["config"], *manifest["layers"]]:
        extent = layer.blob(repository, digests.parse(descriptor["digest"]))
        proof_of(extent).establish()
        assert extent.size == descriptor["size"]
        found.append(read(extent))
    config = json.loads(found[0])
    assert config["rootfs"]["diff_ids"] == [digest_of(content) for content in contents]
    if contents and "gzip" not in manifest["layers"][0]["mediaType"]:
        assert found[1:] == list(contents)
    return digest


def stored(layout: Path, name: str) -> Digest:
    """The digest of an image in the layout."""
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    (found,) = (e["digest"] for e in entries if e["annotations"][REF_NAME] == name)
    return digests.parse(found)


@pytest.mark.parametrize("target", ["oci-archive", "oci"])
def test_skopeo_oci(
    skopeo: Client, layout: Path, place: Path, open_all: OpenAll, target: str
) -> None:
    """``skopeo copy`` to an OCI layout, as tar and directory: the image keeps its digest."""
    path = place / f"skopeo-{target}"
    skopeo("copy", f"oci:{layout}:one", f"{target}:{path}:{NAME}")
    assert check(open_all(path).layer, "acme/one", "1", BASE, ONE) == stored(layout, "one")


def test_skopeo_oci_without_a_name(
    skopeo: Client, layout: Path, place: Path, open_all: OpenAll
) -> None:
    """Without a reference skopeo writes none; the file's name takes its place."""
    path = place / "no-name.tar"
    skopeo("copy", f"oci:{layout}:one", f"oci-archive:{path}")
    assert check(open_all(path).layer, "no-name", "latest", BASE, ONE) == stored(layout, "one")


def test_skopeo_index(skopeo: Client, layout: Path, place: Path, open_all: OpenAll) -> None:
    """An index with all of its platforms."""
    path = place / "index.tar"
    skopeo("copy", "--all", f"oci:{layout}:multi", f"oci-archive:{path}:{NAME}")
    layer = open_all(path).layer
    digest = layer.tag("acme/one", "1")
    assert digest == stored(layout, "multi")
    for child in json.loads(read(layer.manifest("acme/one", digest)))["manifests"]:
        assert digest_of(read(layer.manifest("acme/one", digests.parse(child["digest"]))))


def test_skopeo_docker_archive(
    skopeo: Client, layout: Path, place: Path, open_all: OpenAll
) -> None:
    """Two images in one docker archive; nothing has to be hashed to begin."""
    path = place / "docker-archive.tar"
    skopeo("copy", f"oci:{layout}:one", f"docker-archive:{path}:{NAME}")
    bundles = open_all(path)
    assert bundles.unhashed == 0
    check(bundles.layer, "acme/one", "1", BASE, ONE)


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir"])
def test_podman_save(
    podman: Client, skopeo: Client, layout: Path, place: Path, open_all: OpenAll, form: str
) -> None:
    """``podman save`` in its three forms that are a bundle."""
    source, path = place / f"for-{form}.tar", place / f"podman-{form}"
    skopeo("copy", f"oci:{layout}:one", f"docker-archive:{source}:{NAME}")
    podman("load", f"--input={source}")
    podman("save", f"--format={form}", f"--output={path}", NAME)
    check(open_all(path).layer, "acme/one", "1", BASE, ONE)


def test_podman_save_of_several(
    podman: Client, skopeo: Client, layout: Path, place: Path, open_all: OpenAll
) -> None:
    """Several images in one archive, their shared layer once; a local name too."""
    for name in ("one", "two"):
        source = place / f"several-{name}.tar"
        skopeo("copy", f"oci:{layout}:{name}", f"docker-archive:{source}:localhost/{name}:1")
        podman("load", f"--input={source}")
    path = place / "several.tar"
    podman(
        "save", "--multi-image-archive", f"--output={path}", "localhost/one:1", "localhost/two:1"
    )
    layer = open_all(path).layer
    check(layer, "one", "1", BASE, ONE)
    check(layer, "two", "1", BASE, TWO)
    assert list(layer.repositories_with(digests.of(BASE))) == ["one", "two"]


@pytest.mark.parametrize("form", ["oci", "tarball", "legacy"])
def test_crane_pull(
    skopeo: Client, layout: Path, place: Path, mayfly: Mayfly, open_all: OpenAll, form: str
) -> None:
    """``crane pull`` in all its forms."""
    need("crane")
    crane = Client("crane", place)
    reference = f"{mayfly.host}/bundle/crane-{form}:1"
    push_by_skopeo(skopeo, layout, "one", reference)
    path = place / f"crane-{form}"
    crane("pull", f"--format={form}", "--annotate-ref", reference, path)
    bundles = open_all(path)
    bundles.hash(lambda count: None)
    digest = check(bundles.layer, f"bundle/crane-{form}", "1", BASE, ONE)
    if form == "oci":
        assert str(digest) == crane("digest", reference).strip()


def test_docker_save(skopeo: Client, layout: Path, place: Path, open_all: OpenAll) -> None:
    """``docker save`` of two images by the daemon that is installed, whichever form it writes."""
    need_root()
    archives = []
    for name in ("one", "two"):
        archives.append(place / f"docker-{name}.tar")
        skopeo("copy", f"oci:{layout}:{name}", f"docker-archive:{archives[-1]}:acme/{name}:1")
    path = place / "docker-save.tar"
    daemon = Dockerd(place / "dockerd", place)
    try:
        for archive in archives:
            daemon.docker("load", f"--input={archive}")
        daemon.docker("save", f"--output={path}", "acme/one:1", "acme/two:1")
    finally:
        daemon.stop()
    bundles = open_all(path)
    assert bundles.unhashed == 0
    check(bundles.layer, "acme/one", "1", BASE, ONE)
    check(bundles.layer, "acme/two", "1", BASE, TWO)
    assert list(bundles.layer.repositories_with(digests.of(BASE))) == ["acme/one", "acme/two"]


def test_containerd(skopeo: Client, layout: Path, place: Path, open_all: OpenAll) -> None:
    """Both directions: what containerd exports is served, with the platforms it left out unknown;
    and of a docker archive, the manifest made here is the one that containerd makes.
    """
    need_root()
    index, archive = place / "for-ctr.tar", place / "for-ctr-docker.tar"
    skopeo("copy", "--all", f"oci:{layout}:multi", f"oci-archive:{index}:docker.io/acme/multi:1")
    skopeo("copy", f"oci:{layout}:two", f"docker-archive:{archive}:docker.io/acme/two:1")
    path = place / "exported.tar"
    daemon = Containerd(place / "containerd", place)
    try:
        ctr = daemon.ctr
        # First, while it knows no compressed form of these layers to put in their place.
        ctr("images", "import", archive)
        listed = ctr("images", "ls", "name==docker.io/acme/two:1")
        ctr("images", "import", "--platform=linux/amd64", index)
        ctr("images", "export", "--platform=linux/amd64", path, "docker.io/acme/multi:1")
    finally:
        daemon.stop()
    assert str(open_all(archive).layer.tag("acme/two", "1")) in listed
    layer = open_all(path).layer
    digest = layer.tag("acme/multi", "1")
    assert digest == stored(layout, "multi")
    body = json.loads(read(layer.manifest("acme/multi", digest)))
    amd64, arm64 = (digests.parse(child["digest"]) for child in body["manifests"])
    assert (layout / blob_name(str(amd64))).read_bytes() == read(
        layer.manifest("acme/multi", amd64)
    )
    with pytest.raises(ManifestUnknown):
        layer.manifest("acme/multi", arm64)
