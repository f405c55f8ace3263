"""What kubelet does every five minutes: run with MAYFLY_SOAK=1."""

from __future__ import annotations

from tests.kubelet.cluster import HOST, Cluster
from tests.kubelet.node import Node
from tests.kubelet.test_pins import THRESHOLDS, pinned_stay
from tests.support.process import poll


def test_collected_image_is_pulled_again(cluster: Cluster, other_node: Node) -> None:
    """kubelet looks every five minutes for images that no pod uses."""
    image = f"{HOST}/team/app:3"
    other_node.restart_kubelet(imageMaximumGCAge="60s")
    secret = cluster.secret()
    cluster.pod(image, secret, 2).runs().gone()
    poll(lambda: not other_node.has_image(image), seconds=660)
    # containerd 1.6 does not pin the sandbox's image, so that went, too.
    other_node.import_images(cluster.sandbox)
    cluster.pod(image, secret, 2).runs().gone()
    other_node.restart_kubelet()


def test_pinned_images_stay_above_the_threshold(cluster: Cluster, pinning_node: Node) -> None:
    """kubelet looks every five minutes whether its disk is fuller than the threshold."""
    pinned_stay(cluster, pinning_node, THRESHOLDS, 660)


def test_kubelet_reads_its_file_again(kubelets: Cluster, node: Node) -> None:
    """A config.json that appears while kubelet runs is seen within five minutes."""
    image = f"{HOST}/team/app:9"
    pod = kubelets.pod(image)
    pod.fails()
    pod.gone()
    made = kubelets.credentials("docker", "--node", node.name, "--name", node.name)
    node.shell('umask 077; printf %s "$1" > /var/lib/kubelet/config.json', made)
    kubelets.pod(image).runs(660).gone()
