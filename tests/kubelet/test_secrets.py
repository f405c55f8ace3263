"""imagePullSecrets: which pods get their image, and what those that do not are told."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kubelet.cluster import HOST, HUB_IMAGE, Cluster
from tests.kubelet.node import Node

REFUSED = "authorization failed|401"
NO_RIGHT = "authorization failed|403|401|insufficient"


@contextmanager
def account_with(cluster: Cluster, *secrets: str) -> Iterator[None]:
    """Meanwhile pods of namespace team have these Secrets by their ServiceAccount."""
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": "team"},
    }
    cluster.api.apply({**account, "imagePullSecrets": [{"name": name} for name in secrets]})
    yield
    cluster.api.apply(account)


def test_printed_secret_runs_a_pod(cluster: Cluster) -> None:
    """`mayfly credentials --format secret | kubectl apply -f -`, and the pod runs."""
    secret = cluster.secret("mayfly", "--hours", "2")
    cluster.pod(f"{HOST}/team/app:1", secret).runs().gone()


def test_service_account_names_the_secret(cluster: Cluster) -> None:
    """The pod itself names none."""
    with account_with(cluster, cluster.secret()):
        cluster.pod(f"{HOST}/team/app:2").runs().gone()


def test_image_by_digest(cluster: Cluster) -> None:
    """The container's imageID is that digest."""
    image = f"{HOST}/team/app@{cluster.digests[3]}"
    pod = cluster.pod(image, cluster.secret()).runs()
    assert pod.image_id == image
    pod.gone()


def test_no_secret_is_refused(cluster: Cluster) -> None:
    """As it is to anybody without credentials."""
    pod = cluster.pod(f"{HOST}/team/app:4")
    pod.fails(REFUSED)
    pod.gone()


def test_secret_of_another_namespace_is_refused(cluster: Cluster) -> None:
    """kubelet does not see it."""
    pod = cluster.pod(f"{HOST}/team/app:4", cluster.secret("only-default", namespace="default"))
    pod.fails(REFUSED)
    pod.gone()


def test_secret_for_other_repositories_is_refused(cluster: Cluster) -> None:
    """It says that it is no right."""
    secret = cluster.secret("elsewhere", "--repositories", "elsewhere/**", "--name", "elsewhere")
    pod = cluster.pod(f"{HOST}/team/app:4", secret)
    pod.fails(NO_RIGHT)
    pod.gone()


@pytest.mark.parametrize("policy", ["IfNotPresent", "Always"])
def test_missing_image_is_reported_as_missing(cluster: Cluster, policy: str) -> None:
    """Not as a certificate: containerd asks `server` last, and trusts it, too."""
    pod = cluster.pod(f"{HOST}/team/nothing:4", cluster.secret(), policy=policy)
    told = pod.fails("not found|NotFound")
    assert "x509" not in told
    pod.gone()


def test_second_of_two_secrets_fits(cluster: Cluster) -> None:
    """kubelet tries one after the other."""
    wrong = cluster.secret("elsewhere", "--repositories", "elsewhere/**", "--name", "elsewhere")
    with account_with(cluster, wrong, cluster.secret()):
        cluster.pod(f"{HOST}/team/app:4").runs().gone()


def test_expired_secret_is_refused_until_renewed(cluster: Cluster) -> None:
    """The same pod recovers by itself, once the Secret is made again under its name."""
    cluster.secret("short", "--hours", "0.0167", "--name", "short")
    time.sleep(63)
    pod = cluster.pod(f"{HOST}/team/app:5", "short")
    pod.fails("401|authorization failed|expired")
    cluster.secret("short", "--hours", "2", "--name", "short")
    pod.runs(330).gone()


def test_image_of_one_user_is_not_everybodys(cluster: Cluster, node: Node) -> None:
    """KubeletEnsureSecretPulledImages: a pod with other credentials needs a right of its own."""
    image = f"{HOST}/team/app:6"
    first, second = cluster.secret(), cluster.secret("second", "--name", "second")
    elsewhere = cluster.secret("elsewhere", "--repositories", "elsewhere/**", "--name", "elsewhere")
    cluster.pod(image, first).runs().gone()
    for secret in (elsewhere, ""):
        pod = cluster.pod(image, secret)
        pod.fails(NO_RIGHT)
        pod.gone()
    cluster.pod(image, second).runs().gone()
    node.remove_image(image)
    cluster.pod(image, second).runs().gone()
    cluster.pod(image, first, policy="Always").runs().gone()


def test_two_pods_and_two_nodes_at_once(cluster: Cluster, node: Node) -> None:
    """One image of two pods on one node and of one on another, over a slow line."""
    image = cluster.push_big("team/big:1")
    secret = cluster.secret()
    node.slow("400mbit")
    pods = [cluster.pod(image, secret), cluster.pod(image, secret), cluster.pod(image, secret, 2)]
    for pod in pods:
        pod.runs(120)
    for pod in pods:
        pod.gone()


def test_mirror_needs_a_secret_for_the_name_in_the_image(cluster: Cluster, node: Node) -> None:
    """A Secret for the registry's own name does not match docker.io, one for that does."""
    node.remove_image(HUB_IMAGE)
    pod = cluster.pod("hello:1", cluster.secret())
    pod.fails(REFUSED, 160)
    pod.gone()
    hub = cluster.secret("hub", "--host", "docker.io", "--name", "hub")
    data = cluster.api.get("Secret", hub, "team")["data"][".dockerconfigjson"]
    assert list(json.loads(base64.b64decode(data))["auths"]) == ["docker.io"]
    for image in ("hello:1", "docker.io/library/other:1"):
        cluster.pod(image, hub).runs().gone()
