"""What kubelet's garbage collection takes from a node, and what the pins of its script keep."""

from __future__ import annotations

from typing import Any

from tests.kubelet.cluster import HOST, HUB_IMAGE, Cluster
from tests.kubelet.node import Node
from tests.support.commands import run_mayfly
from tests.support.process import poll

PINNED = (f"{HOST}/team/app:4", HUB_IMAGE)
UNPINNED = f"{HOST}/team/app:5"

THRESHOLDS: dict[str, Any] = {
    # Without it kubelet does not look at disks.
    "localStorageCapacityIsolation": True,
    "imageGCHighThresholdPercent": 1,
    "imageGCLowThresholdPercent": 0,
    "imageMinimumGCAge": "1ms",
}


def pinned_stay(cluster: Cluster, node: Node, settings: dict[str, Any], seconds: float) -> None:
    """Have kubelet collect what is not pinned, and once nothing is pinned the rest.

    Args:
        settings: of a kubelet that collects what it can.
        seconds: within which it does.
    """
    listed = cluster.directory / "pinned-images"
    listed.write_text("".join(f"{image}\n" for image in PINNED))
    words = ("--node", node.name, "--runtime", "containerd", "--images", listed)
    script = run_mayfly("node", "script", *words, "--state-dir", cluster.state_dir)
    told = node.run_script(script)
    for image in PINNED:
        assert f"pinned,   present  {image}" in told
    node.crictl("pull", UNPINNED)
    assert all(map(node.has_image, (*PINNED, UNPINNED)))
    node.restart_kubelet(**settings)
    poll(lambda: not node.has_image(UNPINNED), node.kubelet.describe, seconds=seconds)
    assert all(map(node.has_image, PINNED))
    node.run_script(script, "unpin")
    poll(lambda: not any(map(node.has_image, PINNED)), node.kubelet.describe, seconds=seconds)


def test_pinned_images_stay_and_others_go(cluster: Cluster, pinning_node: Node) -> None:
    """On a disk that is never free enough kubelet collects every ten seconds."""
    full = THRESHOLDS | {"evictionHard": {"imagefs.available": "99%"}}
    pinned_stay(cluster, pinning_node, full, 120)
