"""The cluster, made once: it takes a minute to come up."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubelet.cluster import Cluster
from tests.kubelet.namespace import own_network
from tests.kubelet.node import Node
from tests.process import need_root, remove_tree


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
def served(cluster: Cluster) -> Iterator[Cluster]:
    """For a test that ends or restarts Mayfly: one with the usual options runs afterwards."""
    yield cluster
    cluster.serve()
