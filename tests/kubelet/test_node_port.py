"""The chart on a NodePort, with volumes of claims: its addresses, and a pod that is made anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubelet.cluster import HUB_IMAGE, Cluster
from tests.kubelet.node import end
from tests.kubelet.release import BUNDLES, released
from tests.support.process import poll

NODE_PORT = 30500
USER = 65532
DATA = "/var/lib/mayfly-data"


@pytest.fixture
def proxies(cluster: Cluster) -> Iterator[None]:
    """kube-proxy on both nodes."""
    started = [node.start_proxy(cluster.admin_kubeconfig) for node in cluster.nodes.values()]
    yield
    for proxy in started:
        end(proxy)


@pytest.fixture
def claims(cluster: Cluster, archive: Path) -> None:
    """Two claims, bound to directories of node 1: the bundle's, and one that is Mayfly's user's."""
    cluster.nodes[1].shell('mkdir -p "$1" && chown "$2" "$1"', DATA, f"{USER}:{USER}")
    for name, path in (("bundle", BUNDLES), ("data", DATA)):
        _claim(cluster, name, path)


def _claim(cluster: Cluster, name: str, path: str) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": spec["accessModes"],
            "hostPath": {"path": path},
            "claimRef": {"namespace": "default", "name": name},
        },
    }
    cluster.api.apply(volume)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {**spec, "resources": {"requests": {"storage": "1Gi"}}},
    }
    cluster.api.apply(claim)

    def bound() -> bool:
        return bool(cluster.api.get("PersistentVolumeClaim", name)["status"]["phase"] == "Bound")

    poll(bound)


def test_nodes_pull_from_a_node_port(
    cluster: Cluster, proxies: None, claims: None, trusting: None
) -> None:
    """Both prove what they have; the pod is lost with its node, and its successor continues."""
    one, two = cluster.nodes[1], cluster.nodes[2]
    for node in (one, two):
        node.remove_image(HUB_IMAGE)
    values = {
        "bundle": {"claim": "bundle", "files": ["bundle.tar"]},
        "data": {"claim": "data"},
        "network": {"mode": "nodePort", "nodePort": NODE_PORT},
        "accept": "proven",
    }
    with released(cluster, NODE_PORT, **values) as release:
        address = f"https://{one.address}:{NODE_PORT}"
        assert address in release.log()
        scripts = {
            node.name: release.run("mayfly", "node", "script", "--node", node.name)
            for node in (two, one)
        }
        two.run_script(scripts[two.name])
        # Its own node, of all, kube-proxy gives another address: that of the bridge of its pods.
        for node in (one, two):
            node.shell('curl --silent "$1" || true', address)

        def told() -> bool:
            log = release.log()
            return all(f"{seen} does not trust" in log for seen in (two.address, "10.78.1.1"))

        poll(told, release.log)
        release.lose_pod()
        assert "resuming the run of" in release.log()
        one.run_script(scripts[one.name])
        poll(lambda: "Complete" in release.conditions, release.describe)
        assert "coverage: 2 of 2 nodes" in release.log()
        for node in (one, two):
            node.run_script(scripts[node.name], "revert")
            assert node.has_image(HUB_IMAGE)
