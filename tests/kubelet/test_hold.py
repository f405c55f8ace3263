"""`mayfly wait --safe-to-stop --hold`: images stay on a node whose containerd knows no pins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kubelet.cluster import HOST, HUB_IMAGE, Cluster
from tests.kubelet.node import Node
from tests.kubelet.test_pins import THRESHOLDS
from tests.support.commands import mayfly, run_mayfly
from tests.support.process import poll, remove_tree

NUMBER = 7
LISTED = (f"{HOST}/team/app:7", HUB_IMAGE)
OTHER = f"{HOST}/team/app:8"
HOLDERS = "mayfly-hold"


@pytest.fixture
def old_node(served: Cluster) -> Iterator[Node]:
    """A node with Debian's containerd 1.6, whose images lie on a disk of their own."""
    node = served.add_node(NUMBER, disk=128 << 20)
    node.put_tools()
    yield node
    del served.nodes[NUMBER]
    node.stop()
    served.api.delete("Node", node.name)
    served.api.delete("Namespace", HOLDERS, grace=0)
    remove_tree(node.directory)


def _judge(cluster: Cluster, node: Node, *words: str) -> tuple[list[str], list[Any]]:
    """What is found, not seen, and held on a node; other tests leave pods on others."""
    options = ("--via", "kubernetes", "--kubeconfig", cluster.admin_kubeconfig, "--timeout", "60s")
    done = mayfly(
        *("wait", "--safe-to-stop", "--state-dir", cluster.state_dir, *options, "--json", *words),
        timeout=500,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)["safety"]
    codes = [one["code"] for one in found["findings"] if node.name in one["nodes"]]
    codes += [one["detail"] for one in found["unseen"] if one["node"] == node.name]
    return codes, found["held"]


def test_held_images_stay_and_others_go(served: Cluster, old_node: Node) -> None:
    """As long as their holder is there, on a disk that is never free enough."""
    listed, nodes = served.directory / "held-images", served.directory / "held-nodes"
    listed.write_text("".join(f"{one}\n" for one in LISTED))
    nodes.write_text(f"{old_node.name}\n")
    words = ("--until-pulled", str(listed), "--nodes", str(nodes), "--until", "stop")
    served.serve(*words, "--accept", "proven")
    script = run_mayfly(
        *("node", "script", "--node", old_node.name, "--runtime", "containerd"),
        *("--state-dir", served.state_dir),
    )
    assert "2 of 2 images are present; proof: sent" in old_node.run_script(script)

    def known() -> bool:
        """Whether the cluster knows that it is ready, and its images: pods need one."""
        status = served.api.get("Node", old_node.name)["status"]
        ready = {one["type"]: one["status"] for one in status["conditions"]}["Ready"]
        return ready == "True" and bool(status.get("images"))

    poll(known, old_node.kubelet.describe)

    assert _judge(served, old_node) == (["not_pinned"], [])
    held = [{"node": old_node.name, "images": sorted(LISTED)}]
    assert _judge(served, old_node, "--hold") == ([], held)
    # What holds them is seen the next time, too.
    assert _judge(served, old_node) == ([], held)

    old_node.crictl("pull", OTHER)
    old_node.restart_kubelet(**THRESHOLDS | {"evictionHard": {"imagefs.available": "99%"}})
    poll(lambda: not old_node.has_image(OTHER), old_node.kubelet.describe, seconds=180)
    assert all(map(old_node.has_image, LISTED))
    served.api.delete("Namespace", HOLDERS)
    poll(lambda: not any(map(old_node.has_image, LISTED)), old_node.kubelet.describe, seconds=180)
