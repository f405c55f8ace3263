"""Attacks by what lies in a bundle that is a directory: links, pipes, trees without end."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from mayfly.storage.directory.layout import Layout as Paths
from mayfly.storage.directory.store import DistributionStore
from tests.bundle.builders import Layout, docker_archive, document, layers, write
from tests.hostile.harness import Hostile
from tests.support.client import get_cut
from tests.support.images import digest_of, put_image
from tests.support.process import Mayfly

SECRET = b"root:secret:of:the:host\n" * 100
REPO = "team/app"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the host."""
    path = tmp_path / "secret/data"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A registry's directory with one image."""
    root = tmp_path / "registry"
    store = DistributionStore(root)
    put_image(store, REPO, "good")
    store.close()
    return root


def test_links_to_the_host(hostile: Hostile, registry: Path, secret: Path) -> None:
    """Under blobs/, for a blob and for what it lies in: nothing of the host is sent."""
    paths = Paths(registry)
    blobs = [p for p in paths.blobs.rglob("data") if b"schemaVersion" not in p.read_bytes()]
    names = [f"sha256:{path.parent.name}" for path in blobs]
    blobs[0].unlink()
    blobs[0].symlink_to(secret)
    for path in blobs[1:]:
        shutil.rmtree(path.parent)
        path.parent.symlink_to(secret.parent)
    hostile.serve(str(registry))
    with hostile.attack("links under a bundle's blobs/", before="any file of the host") as under:
        while under.going():
            for name in names:
                status, body = get_cut(under.host, f"/v2/{REPO}/blobs/{name}")
                assert status == 500
                assert b"secret" not in body
                assert b"symbolic link" in body


def test_pipe_as_a_tag(hostile: Hostile, registry: Path) -> None:
    """It has no writer, and nobody waits for one; the other tags are served."""
    paths = Paths(registry)
    for tag in ("pipe", "linked"):
        shutil.copytree(paths.tag(REPO, "good"), paths.tag(REPO, tag))
        paths.tag_link(REPO, tag).unlink()
    os.mkfifo(paths.tag_link(REPO, "pipe"))
    paths.tag_link(REPO, "linked").symlink_to(paths.tag_link(REPO, "good"))
    hostile.serve(str(registry))
    with hostile.attack("a pipe as a tag", before="blocked the loop for ever") as under:
        while under.going():
            for tag in ("pipe", "linked"):
                assert get_cut(under.host, f"/v2/{REPO}/manifests/{tag}")[0] == 404
            assert get_cut(under.host, f"/v2/{REPO}/manifests/good")[0] == 200
            status, body = get_cut(under.host, f"/v2/{REPO}/tags/list")
            assert (status, b"pipe" in body, b"good" in body) == (200, False, True)


def _ladder(repositories: Path) -> None:
    """Each rung holds two links to the next: 2^30 ways down."""
    for rung in range(30):
        below = repositories / f"rung{rung + 1}"
        below.mkdir()
        for side in ("left", "right"):
            (repositories / f"rung{rung}").mkdir(exist_ok=True)
            (repositories / f"rung{rung}/{side}").symlink_to(f"../{below.name}")
    shutil.copytree(repositories / REPO, repositories / "rung30/end")


@pytest.mark.parametrize("role", ["bundle", "root"])
def test_ladder_of_links(hostile: Hostile, registry: Path, role: str) -> None:
    """A tree that is small on the disk has as few repositories, in a bundle and in a root."""
    repositories = Paths(registry).repositories
    _ladder(repositories)
    (repositories / "circle").symlink_to(".")
    (repositories / "up").symlink_to("../../..")
    if role == "bundle":
        hostile.serve(str(registry))
    else:
        hostile.serve(root=registry)
    with hostile.attack(f"a ladder of links, in a {role}", before="2^30 repositories") as under:
        while under.going():
            status, body = get_cut(under.host, "/v2/_catalog?n=1000")
            assert (status, body.split()) == (
                200,
                b'{"repositories": ["rung30/end", "team/app"]}'.split(),
            )


def test_deep_tree(hostile: Hostile, registry: Path) -> None:
    """Directories nested deeper than a name can be are not walked down."""
    descriptor = os.open(Paths(registry).repositories, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("a", dir_fd=descriptor)
        below = os.open("a", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.mkdir("_manifests", dir_fd=descriptor)
    os.close(descriptor)
    hostile.serve(str(registry))
    with hostile.attack("3,000 nested directories", before="a crash") as under:
        while under.going():
            assert get_cut(under.host, "/v2/_catalog")[0] == 200


@pytest.mark.parametrize("top", ["blobs", "blobs/sha256", "repositories"])
def test_link_at_the_top(hostile: Hostile, registry: Path, tmp_path: Path, top: str) -> None:
    """A registry's directory that is linked from elsewhere is refused at the start."""
    path = Paths(registry).base / top
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    done = hostile.command(
        f"a bundle's {top} is a link", "serve", "--listen", "127.0.0.1:0",
        "--root", tmp_path / "r", "--state-dir", tmp_path / "s", registry,
        before="followed",
    )  # fmt: skip
    assert done.returncode == 5
    assert f"file docker/registry/v2/{top} is a symbolic link" in done.stderr


@pytest.mark.parametrize("name", ["oci-layout", "index.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_odd_documents_of_a_layout(
    hostile: Hostile, tmp_path: Path, secret: Path, name: str, kind: str
) -> None:
    """Refused in one line, at once: no document is read through a link or from a pipe."""
    layout = Layout()
    layout.name(layout.image(*layers("one")), "quay.io/a:1")
    bundle = layout.write_directory(tmp_path / "layout")
    (bundle / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(bundle / name)
    else:
        (bundle / name).symlink_to(secret)
    done = hostile.command(
        f"{name} of a layout is a {kind}", "import", "--root", tmp_path / "r", bundle,
        before="" if kind == "link" else "waited for ever",
    )  # fmt: skip
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert f"file {name} is a {'named pipe' if kind == 'pipe' else 'symbolic link'}" in done.stderr


ODD_NAMES = {
    "a file of the host": "{secret}",
    "a file of the host, twice": "/{secret}",
    "its own file by its whole path": "{bundle}/{member}",
    "a file beside it": "../secret/data",
    "a name that cannot be encoded": "\ud800",
    "a name with a NUL": "a\0b",
    "a name of 300 characters": "x" * 300,
    "a path of 6,000 characters": "x/" * 3000 + "x",
}


@pytest.mark.parametrize("form", ["directory", "tar"])
@pytest.mark.parametrize("field", ["Config", "Layers"])
@pytest.mark.parametrize("what", ODD_NAMES)
def test_names_that_lead_elsewhere(
    hostile: Hostile, tmp_path: Path, secret: Path, what: str, field: str, form: str
) -> None:
    """A manifest.json of docker names files that a bundle cannot hold: refused in one line."""
    bundle = tmp_path / "bundle"
    files = docker_archive((["a:1"], layers("one")))
    entry = json.loads(files["manifest.json"])[0]
    member = entry["Config"] if field == "Config" else entry["Layers"][0]
    name = ODD_NAMES[what].format(secret=secret, bundle=bundle, member=member)
    entry[field] = name if field == "Config" else [name]
    files["manifest.json"] = document([entry])
    if form == "tar":
        write(bundle, files)
    else:
        for file, data in files.items():
            (bundle / file).parent.mkdir(parents=True, exist_ok=True)
            (bundle / file).write_bytes(data)
    done = hostile.command(
        f"{field} of a {form} is {what}", "import", "--root", tmp_path / "r", bundle,
        before="a traceback" if form == "directory" else "refused",
    )  # fmt: skip
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert "which is not there" in done.stderr
    assert "secret of" not in done.stderr


def test_bundle_that_is_a_pipe(hostile: Hostile, tmp_path: Path) -> None:
    """Named as a bundle, it is refused instead of waited for."""
    os.mkfifo(tmp_path / "bundle.tar")
    done = hostile.command(
        "the bundle is a pipe", "import", "--root", tmp_path / "r", tmp_path / "bundle.tar",
        before="refused",
    )  # fmt: skip
    assert done.returncode == 5
    assert "neither a file nor a directory" in done.stderr


def test_overwritten_with_its_time_set_back(tmp_path: Path) -> None:
    """Wrong bytes are never sent whole, by this server or by the next with the same proofs."""
    layer = layers("one")[0]
    layout = Layout()
    layout.name(layout.image(layer), "quay.io/a:1")
    bundle = layout.write_tar(tmp_path / "bundle.tar")
    blob = f"/v2/a/blobs/{digest_of(layer)}"
    state = tmp_path / "kept-state"
    server = Mayfly(tmp_path / "root", state, str(bundle))
    try:
        assert get_cut(server.host, blob) == (200, layer)
        before = bundle.stat()
        wrong = bundle.read_bytes().replace(layer, layer[::-1])
        with bundle.open("r+b") as file:
            file.write(wrong)
        os.utime(bundle, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert bundle.stat().st_ctime_ns != before.st_ctime_ns
        status, body = get_cut(server.host, blob)
        assert status == 500 or len(body) < len(layer)
    finally:
        server.stop()
    server = Mayfly(tmp_path / "root", state, str(bundle))
    try:
        status, body = get_cut(server.host, blob)
        assert status == 500 or len(body) < len(layer)
    finally:
        server.stop()
