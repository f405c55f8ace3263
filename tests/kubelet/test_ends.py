"""Mayfly dies, is restarted, drains, ends by coverage: what pods that pull then get."""

from __future__ import annotations

import time

import pytest

from tests.kubelet.cluster import HOST, HUB_IMAGE, Cluster
from tests.kubelet.node import Node
from tests.support.process import PATIENCE, Process, poll


def test_killed_in_the_middle_of_a_pull(served: Cluster, node: Node) -> None:
    """The run continues: the Secret stays good, and the pod recovers by itself."""
    secret = served.secret()
    image = served.push_big("team/big:killed")
    node.slow("100mbit")
    pod = served.pod(image, secret)
    _wait_for_bytes(served)
    served.mayfly.kill()
    pod.fails()
    node.fast()
    served.serve()
    pod.runs(330).gone()


@pytest.mark.parametrize("keep_key", [False, True])
def test_secret_outlives_a_crash_and_ends_with_the_run(
    served: Cluster, node: Node, keep_key: bool
) -> None:
    """With a key for each run, as by default, and with the operator's. Renewed, a Secret works."""
    image = f"{HOST}/team/app:7"
    served.serve(keep_key=keep_key)
    secret = served.secret()
    node.remove_image(image)
    served.mayfly.kill()
    served.serve(keep_key=keep_key)
    served.pod(image, secret).runs().gone()
    node.remove_image(image)
    served.mayfly.stop()
    served.serve(keep_key=keep_key)
    pod = served.pod(image, secret)
    pod.fails("401|authorization")
    served.secret()
    pod.runs(330).gone()


@pytest.fixture(scope="module")
def ended(cluster: Cluster) -> tuple[Cluster, str]:
    """Mayfly has drained and ended while node 1 pulled an image: that image's name."""
    node = cluster.nodes[1]
    secret = cluster.secret()
    image = cluster.push_big("team/big:drained")
    node.remove_image(f"{HOST}/team/app:7")
    node.slow("100mbit")
    pulling = cluster.pod(image, secret)
    _wait_for_bytes(cluster)
    cluster.mayfly.popen.terminate()
    poll(lambda: "stopping" in cluster.mayfly.output(), cluster.mayfly.describe)
    refused = cluster.pod(f"{HOST}/team/app:7", secret)
    refused.fails()
    pulling.runs(120)
    node.fast()
    refused.gone()
    pulling.gone()
    cluster.mayfly.popen.wait(PATIENCE)
    return cluster, image


def test_drain_lets_a_pull_end_and_refuses_new_ones(ended: tuple[Cluster, str]) -> None:
    """And then it has ended, with exit code 0."""
    cluster, _ = ended
    assert cluster.mayfly.popen.returncode == 0, cluster.mayfly.describe()


@pytest.mark.parametrize(
    ("case", "runs"),
    [
        ("same Secret", True),
        ("another Secret", False),
        ("no Secret", False),
        ("same Secret, Always", False),
        ("Secret made again", True),
        ("same Secret, other content", True),
        ("same content, other namespace", True),
        ("kubelet restarted", True),
    ],
)
def test_after_the_end(ended: tuple[Cluster, str], case: str, runs: bool) -> None:
    """What docs/kubernetes.md says of pods whose image is on the node."""
    cluster, image = ended
    secret, namespace, policy = "mayfly", "team", "IfNotPresent"
    kept = cluster.api.get("Secret", "mayfly", "team")
    for fact in ("uid", "resourceVersion", "creationTimestamp", "managedFields"):
        kept["metadata"].pop(fact, None)
    if case == "another Secret":
        secret = cluster.made_up_secret()
    elif case == "no Secret":
        secret = ""
    elif case == "same Secret, Always":
        policy = "Always"
    elif case == "Secret made again":
        cluster.api.delete("Secret", "mayfly", "team")
        cluster.api.apply(kept)
    elif case == "same Secret, other content":
        cluster.made_up_secret("mayfly")
    elif case == "same content, other namespace":
        namespace = "default"
        cluster.api.apply({**kept, "metadata": {"name": "mayfly", "namespace": "default"}})
    elif case == "kubelet restarted":
        cluster.nodes[1].restart_kubelet()
    pod = cluster.pod(image, secret, policy=policy, namespace=namespace)
    if runs:
        pod.runs(60)
    else:
        pod.fails()
    pod.gone()
    if case == "same Secret, other content":
        cluster.api.apply(kept)


def test_mayfly_again(ended: tuple[Cluster, str]) -> None:
    """Started again it serves the pods that failed meanwhile."""
    cluster, image = ended
    cluster.serve()
    cluster.pod(image, cluster.secret(), policy="Always").runs().gone()


def test_ends_by_coverage_of_two_kubelets(served: Cluster) -> None:
    """One Secret, three images, two nodes: not before the last image, and then by itself."""
    images = [f"{HOST}/team/app:1", f"{HOST}/team/app:8", HUB_IMAGE]
    listed = served.directory / "images.txt"
    listed.write_text("".join(f"{image}\n" for image in images))
    served.serve("--until-pulled", str(listed), "--nodes", "2")
    own, hub = served.secret(), served.secret("hub", "--host", "docker.io", "--name", "hub")
    for node in served.nodes.values():
        for image in images:
            node.remove_image(image)
    pods = [
        served.pod(image, hub if image == HUB_IMAGE else own, number)
        for image, number in [(i, n) for n in (1, 2) for i in images][:-1]
    ]
    for pod in pods:
        pod.runs()
    time.sleep(6)
    assert served.mayfly.running, served.mayfly.describe()
    pods.append(served.pod(HUB_IMAGE, hub, 2).runs())
    assert _exit_code(served.mayfly) == 0, served.mayfly.describe()
    for pod in pods:
        pod.gone()


def _exit_code(process: Process) -> int:
    poll(lambda: not process.running, process.describe)
    return int(process.popen.returncode)


def _wait_for_bytes(cluster: Cluster) -> None:
    """Wait until the node has begun to receive a layer: its sandbox runs by then."""
    received = _received(cluster)
    poll(lambda: _received(cluster) > received + 8 * 2**20, cluster.mayfly.describe)


def _received(cluster: Cluster) -> int:
    told = cluster.nodes[1].shell("cat /proc/net/dev")
    (line,) = (line for line in told.splitlines() if "eth0:" in line)
    return int(line.partition(":")[2].split()[0])
