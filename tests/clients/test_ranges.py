"""A download that breaks in the middle is continued by Range, not begun again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.images import Images
from tests.clients.programs import Client, Containerd, push_by_skopeo
from tests.clients.proxy import CuttingProxy
from tests.support.process import Mayfly

CUT_AFTER = 8 * 1024 * 1024


@pytest.fixture
def proxy(mayfly: Mayfly) -> Iterator[CuttingProxy]:
    """The server behind a proxy that cuts the first long answer."""
    with CuttingProxy(mayfly.host, CUT_AFTER) as proxy:
        yield proxy


@pytest.fixture
def reference(
    skopeo: Client, images: Images, mayfly: Mayfly, repository: str, proxy: CuttingProxy
) -> str:
    """An image in the server, by its name behind the proxy."""
    push_by_skopeo(skopeo, images.layout, "debian", f"{mayfly.host}/{repository}:debian")
    return f"{proxy.host}/{repository}:debian"


def assert_continued(proxy: CuttingProxy) -> None:
    """A connection was cut, and a later request asked for the rest of a blob."""
    assert proxy.cut
    assert [asked for asked in proxy.ranges if not asked.startswith("bytes=0-")], proxy.ranges


def test_docker_continues(
    docker: Client, images: Images, proxy: CuttingProxy, reference: str
) -> None:
    """docker's pull succeeds and its image is the pushed one."""
    docker("pull", reference)
    image_id = docker("image", "inspect", "--format={{.Id}}", reference).strip()
    docker("image", "rm", reference)
    assert image_id == images.manifest("debian")["config"]["digest"]
    assert_continued(proxy)


def test_containerd_continues(
    containerd: Containerd, images: Images, proxy: CuttingProxy, reference: str
) -> None:
    """What containerd holds after its fetch is what was pushed."""
    containerd.ctr("content", "fetch", "--plain-http", reference)
    for layer in images.manifest("debian")["layers"]:
        held = containerd.ctr.bytes("content", "get", layer["digest"])
        assert f"sha256:{hashlib.sha256(held).hexdigest()}" == layer["digest"]
    containerd.ctr("images", "rm", "--sync", reference)
    assert_continued(proxy)


def test_regctl_continues(home: Path, images: Images, proxy: CuttingProxy, reference: str) -> None:
    """A blob that regctl gets is whole."""
    regctl = Client("regctl", home, "--host", f"reg={proxy.host},tls=disabled")
    digest = images.manifest("debian")["layers"][0]["digest"]
    blob = regctl.bytes("blob", "get", reference.removesuffix(":debian"), digest)
    assert f"sha256:{hashlib.sha256(blob).hexdigest()}" == digest
    assert_continued(proxy)
