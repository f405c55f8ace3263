"""A push mends what is damaged: every client sends again what the server says it lacks."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.programs import Client, Containerd
from tests.support.commands import mayfly
from tests.support.process import Mayfly

OCI = "application/vnd.oci.image"
LAYER = os.urandom(200_000)

Push = Callable[[str], object]
"""Pushes the image under a reference."""


@pytest.fixture
def layout(scratch: Path) -> Path:
    """An OCI layout with one image, tagged 1."""
    directory = scratch / "layout"
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str, **fields: object) -> dict[str, object]:
        encoded = hashlib.sha256(data).hexdigest()
        (blobs / encoded).write_bytes(data)
        described = {"mediaType": media_type, "digest": f"sha256:{encoded}", "size": len(data)}
        return described | fields

    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        member = tarfile.TarInfo("content")
        member.size = len(LAYER)
        archive.addfile(member, io.BytesIO(LAYER))
    layer = blob(gzip.compress(plain.getvalue(), mtime=0), f"{OCI}.layer.v1.tar+gzip")
    diff_id = f"sha256:{hashlib.sha256(plain.getvalue()).hexdigest()}"
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), f"{OCI}.config.v1+json"),
        "layers": [layer],
    }
    name = {"org.opencontainers.image.ref.name": "1"}
    entry = blob(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json", annotations=name)
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


@pytest.fixture
def server(scratch: Path) -> Iterator[Mayfly]:
    """A server whose files are damaged while it runs."""
    with Mayfly(scratch / "root", scratch / "state") as started:
        yield started


@pytest.fixture(params=["skopeo", "crane", "oras", "regctl", "ctr", "docker"])
def push(
    request: pytest.FixtureRequest, layout: Path, home: Path, server: Mayfly, scratch: Path
) -> Push:
    """Pushes the image with one of the clients."""
    name = request.param
    if name == "regctl":
        regctl = Client("regctl", home, "--host", f"reg={server.host},tls=disabled")
        return lambda reference: regctl("image", "copy", f"ocidir://{layout}:1", reference)
    if name == "ctr":
        containerd: Containerd = request.getfixturevalue("containerd")
        archive = _archive(request.getfixturevalue("skopeo"), layout, scratch)

        def push_by_ctr(reference: str) -> None:
            containerd.ctr("images", "import", f"--index-name={reference}", archive)
            containerd.ctr("images", "push", "--plain-http", reference)
            containerd.ctr("images", "rm", "--sync", reference)

        return push_by_ctr
    if name == "docker":
        docker: Client = request.getfixturevalue("docker")
        skopeo: Client = request.getfixturevalue("skopeo")
        archive = scratch / "docker.tar"
        skopeo("copy", f"oci:{layout}:1", f"docker-archive:{archive}:heals/image:1")
        docker("load", "-i", archive)

        def push_by_docker(reference: str) -> None:
            docker("tag", "heals/image:1", reference)
            docker("push", reference)
            docker("image", "rm", reference)

        return push_by_docker
    client: Client = request.getfixturevalue(name)
    return {
        "skopeo": lambda reference: client(
            "copy",
            "--preserve-digests",
            "--dest-tls-verify=false",
            f"oci:{layout}:1",
            f"docker://{reference}",
        ),
        "crane": lambda reference: client("push", "--insecure", layout, reference),
        "oras": lambda reference: client(
            "cp", "--from-oci-layout", "--to-plain-http", f"{layout}:1", reference
        ),
    }[name]


def _archive(skopeo: Client, layout: Path, scratch: Path) -> Path:
    archive = scratch / "oci.tar"
    skopeo("copy", f"oci:{layout}:1", f"oci-archive:{archive}:1")
    return archive


def _cut(data: Path) -> None:
    os.truncate(data, data.stat().st_size // 2)


def _empty(data: Path) -> None:
    os.truncate(data, 0)


def _zeros(data: Path) -> None:
    data.write_bytes(bytes(data.stat().st_size))


@pytest.mark.parametrize("damage", [_cut, _empty, _zeros, Path.unlink])
def test_push_mends(push: Push, server: Mayfly, damage: Callable[[Path], None]) -> None:
    """Every file of an image is damaged; the same push again makes all of them whole.

    Zeros of the right length are seen once somebody hashed them, as `mayfly verify` does.
    """
    reference = f"{server.host}/heals/image:1"
    push(reference)
    stored = [data for data in server.root.rglob("data") if "_uploads" not in data.parts]
    before = {data: data.read_bytes() for data in stored}
    assert len(before) >= 3
    for data in stored:
        damage(data)
    assert mayfly("verify", "--root", server.root).returncode == 4
    push(reference)
    assert {data: data.read_bytes() for data in stored} == before
    assert mayfly("verify", "--root", server.root).returncode == 0


@pytest.mark.parametrize("damage", [_cut, _empty])
def test_push_mends_what_nobody_hashed(
    push: Push, server: Mayfly, damage: Callable[[Path], None]
) -> None:
    """The recorded sizes alone are enough where a file has another length."""
    reference = f"{server.host}/heals/image:1"
    push(reference)
    stored = [data for data in server.root.rglob("data") if "_uploads" not in data.parts]
    before = {data: data.read_bytes() for data in stored}
    for data in stored:
        damage(data)
    push(reference)
    assert {data: data.read_bytes() for data in stored} == before
