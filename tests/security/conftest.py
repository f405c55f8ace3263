"""Fixtures of the security tests."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.clients.images import Images, make_images
from tests.clients.programs import Client
from tests.security.node import Node, NodeMayfly
from tests.security.registries import Registry, registry
from tests.support.process import CACHE, need, need_root, remove_tree

MEMORY = Path("/dev/shm")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory whose fsyncs cost nothing, where the machine has one."""
    with tempfile.TemporaryDirectory(
        prefix="mayfly-", dir=MEMORY if MEMORY.is_dir() else None
    ) as made:
        yield Path(made)


@pytest.fixture
async def closed(memory: Path) -> AsyncIterator[Registry]:
    """A registry that gives nothing to callers without credentials."""
    async with registry(memory / "closed") as made:
        yield made


@pytest.fixture
async def opened(memory: Path) -> AsyncIterator[Registry]:
    """A registry that anyone may pull from."""
    async with registry(memory / "opened", anonymous=True) as made:
        yield made


@pytest.fixture(scope="session")
def images() -> Images:
    """Images of real files in an OCI layout."""
    need_root()
    need("debootstrap")
    return make_images(CACHE)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home for clients, with no credentials: podman wants the file it is told of to exist."""
    made = tmp_path / "home"
    made.mkdir()
    (made / "auth.json").write_text("{}")
    return made


@pytest.fixture(scope="module")
def node(workspace: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    """A machine of the module's own."""
    directory = Path(tempfile.mkdtemp(prefix="node-", dir=workspace))
    with Node(directory) as made:
        yield made
    remove_tree(directory)


@pytest.fixture(scope="module")
def secure(node: Node, workspace: Path) -> Iterator[NodeMayfly]:
    """Mayfly on the node's address, with no option for TLS or users given."""
    directory = Path(tempfile.mkdtemp(prefix="secure-", dir=workspace))
    with NodeMayfly(node, directory) as made:
        yield made
    remove_tree(directory)


@pytest.fixture
def archive(images: Images, home: Path, tmp_path: Path) -> Path:
    """The small image as ``docker load`` and ``podman load`` take it, named mayfly-test/small:1."""
    path = tmp_path / "small.tar"
    skopeo = Client("skopeo", home, "--insecure-policy")
    skopeo("copy", f"oci:{images.layout}:small", f"docker-archive:{path}:mayfly-test/small:1")
    return path
