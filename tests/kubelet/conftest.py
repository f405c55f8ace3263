"""The cluster, made once: it takes a minute to come up."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.registry.version import VERSION
from tests.clients.layout import Layout
from tests.kubelet.cluster import Cluster
from tests.kubelet.images import add_mayfly
from tests.kubelet.namespace import own_network
from tests.kubelet.node import Node
from tests.kubelet.release import BUNDLES
from tests.support.process import need_root, remove_tree
from tests.support.programs import versions


@pytest.fixture(scope="session")
def cluster(workspace: Path) -> Iterator[Cluster]:
    """An API server, two nodes and Mayfly, in a network of their own."""
    need_root()
    home = workspace / "home"
    home.mkdir()
    directory = Path(tempfile.mkdtemp(prefix="cluster-", dir=workspace))
    with own_network():
        made = Cluster(directory, home)
        yield made
        made.stop()
    remove_tree(directory)


@pytest.fixture(scope="session")
def archive(cluster: Cluster) -> Path:
    """The image of Mayfly, which both nodes then have; node 1 has the bundle, too."""
    layout = Layout(cluster.directory / "mayfly-image")
    add_mayfly(layout, f"localhost/mayfly:{VERSION}")
    made = layout.archive()
    for node in cluster.nodes.values():
        node.import_images(made)
    cluster.nodes[1].shell('mkdir -p "$1" && cp "$2" "$1/bundle.tar"', BUNDLES, cluster.bundle)
    return made


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Node]:
    """The first node; its line is as fast as ever afterwards."""
    yield cluster.nodes[1]
    cluster.nodes[1].fast()


@pytest.fixture
def other_node(cluster: Cluster) -> Iterator[Node]:
    """The second one."""
    yield cluster.nodes[2]
    cluster.nodes[2].fast()


@pytest.fixture
def pinning_node(cluster: Cluster) -> Iterator[Node]:
    """A third one, whose images lie on a disk of their own.

    Its containerd knows pins; Debian's 1.6.20 does not.
    """
    node = cluster.add_node(3, versions("containerd")[-1], 128 << 20)
    yield node
    del cluster.nodes[3]
    node.stop()
    remove_tree(node.directory)


@pytest.fixture
def served(cluster: Cluster) -> Iterator[Cluster]:
    """For a test that ends or restarts Mayfly: one with the usual options runs afterwards."""
    yield cluster
    cluster.serve()


@pytest.fixture
def trusting(cluster: Cluster) -> Iterator[None]:
    """For a test that changes or takes back settings of nodes: they trust Mayfly afterwards."""
    yield
    for node in cluster.nodes.values():
        cluster.trust(node)


@pytest.fixture
def kubelets(served: Cluster) -> Iterator[Cluster]:
    """Both kubelets are as they were, afterwards."""
    yield served
    for node in served.nodes.values():
        node.shell("rm -f /var/lib/kubelet/config.json /etc/mayfly/credential.json")
        node.restart_kubelet()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what waits for kubelet's own periods, unless MAYFLY_SOAK=1; pytest counts it."""
    if os.environ.get("MAYFLY_SOAK"):
        return
    waiting = [item for item in items if item.path.name == "test_periods.py"]
    config.hook.pytest_deselected(items=waiting)
    items[:] = [item for item in items if item not in waiting]
