"""The chart of deploy/helm on two kubelets: its Job, its Secrets, its end, what nodes keep."""

from __future__ import annotations

import base64
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubelet.api import Object
from tests.kubelet.cluster import HUB_IMAGE, Cluster, Pod
from tests.kubelet.node import Node
from tests.kubelet.pki import Authority
from tests.kubelet.release import Deployed, released
from tests.support.chart import rendered
from tests.support.client import basic
from tests.support.commands import run_mayfly
from tests.support.process import poll

NGINX = "library/nginx:1.27"


def pod_of(name: str, node: Node, directory: Path, **changes: Any) -> Object:
    """A pod of the Job's template, on another node."""
    template = rendered(directory, {})["Job/mayfly"]["spec"]["template"]
    spec = {**template["spec"], "nodeName": node.name, **changes}
    labels = template["metadata"]["labels"]
    metadata = {"name": name, "namespace": "default", "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.fixture
def trusted(cluster: Cluster, archive: Path, trusting: None) -> Iterator[Deployed]:
    """A release for nginx, which is to be pushed. Both nodes trust it, not the other Mayfly."""
    with released(cluster, images=[NGINX]) as made:
        for node in cluster.nodes.values():
            node.trust("--registry", made.host, "--ca", made.ca, "--force")
        yield made


@pytest.fixture
def untouched(cluster: Cluster, trusting: None) -> dict[str, str]:
    """What each node's containerd is told of registries where no Mayfly has been."""
    for node in cluster.nodes.values():
        node.mayfly("node-config", "revert", "--runtime", "containerd")
        node.remove_image(HUB_IMAGE)
        node.forget_pulls()
    return {node.name: _settings(node) for node in cluster.nodes.values()}


def _settings(node: Node) -> str:
    """Every file of Mayfly's and of containerd's configuration, with its content's hash."""
    places = "/etc/containerd /etc/mayfly /var/lib/mayfly-node-config"
    return node.shell(f"find {places} -type f -exec sha256sum {{}} + 2>/dev/null | sort")


def test_release_prepares_two_nodes_and_completes(
    cluster: Cluster, archive: Path, untouched: dict[str, str]
) -> None:
    """From a bundle of the node's, by the script of nodes; its node loses power in between."""
    one, two = cluster.nodes[1], cluster.nodes[2]
    with released(cluster, accept="proven") as release:
        scripts = {
            node.name: release.run("mayfly", "node", "script", "--node", node.name)
            for node in (one, two)
        }
        one.run_script(scripts[one.name])
        release.lose_power()
        release.wait_until_ready()
        # The run continued: script and trust are still good. A drain would wait.
        assert "disruption budget" in release.evict()
        two.run_script(scripts[two.name])
        poll(lambda: "Complete" in release.conditions, release.describe)
        assert "coverage: 2 of 2 nodes" in release.log()
        assert "resuming the run of" in release.log()
        # Mayfly has ended; kubelet needs no registry, nor a Secret.
        for number in (1, 2):
            cluster.pod("hello:1", node=number).runs().gone()
        for node in (one, two):
            node.run_script(scripts[node.name], "revert")
            assert _settings(node) == untouched[node.name]
            assert node.has_image(HUB_IMAGE)


def test_secrets_of_nodes_are_told_apart(cluster: Cluster, trusted: Deployed) -> None:
    """Pushed with `credentials --push`, pulled by both nodes, killed in between, Complete."""
    where = {"host": trusted.host, "ca": trusted.ca, "login": trusted.pusher()}
    cluster.push(cluster.apps, "app:1", NGINX, **where)
    image = f"{trusted.host}/{NGINX}"
    secrets = [
        trusted.secret(f"job-{name}", "--node", name, "--name", name)
        for name in ("node-1", "node-2")
    ]
    for node in cluster.nodes.values():
        node.remove_image(image)
    cluster.pod(image, secrets[0]).runs().gone()
    poll(lambda: "node-1: 1 of 1 image" in trusted.log(), trusted.log)
    trusted.kill()
    trusted.wait_until_ready()
    # The Secret was given by the container that was killed.
    cluster.pod(image, secrets[1], 2).runs().gone()
    poll(lambda: "Complete" in trusted.conditions, trusted.describe)
    (status,) = trusted.pod.read()["status"]["containerStatuses"]
    assert status["restartCount"] == 1


def test_uninstalled_release_lets_a_pull_end(
    cluster: Cluster, trusted: Deployed, other_node: Node
) -> None:
    """preStop waits for it, within the time that Kubernetes gives."""
    deployed = trusted
    where = {"host": deployed.host, "ca": deployed.ca, "login": deployed.pusher()}
    image = cluster.push_big("team/big:p", **where)
    secret = deployed.secret("job")
    other_node.slow("100mbit")
    pulling = cluster.pod(image, secret, 2)
    received = _received(other_node)
    poll(lambda: _received(other_node) > received + 8 * 2**20, pulling.describe)
    cluster.api.delete("Job", "mayfly")
    cluster.api.delete("Pod", deployed.pod.name, grace=90)
    pulling.runs(90)
    poll(lambda: not cluster.api.exists("Pod", deployed.pod.name), pulling.describe)
    pulling.gone()


def _received(node: Node) -> int:
    told = node.shell("cat /proc/net/dev")
    (line,) = (line for line in told.splitlines() if "eth0:" in line)
    return int(line.partition(":")[2].split()[0])


@pytest.fixture(scope="module")
def keys(cluster: Cluster, archive: Path, workspace: Path) -> Iterator[Path]:
    """Secrets with keys and users, as files from which they were made; and the pod's lists."""
    cluster.api.apply(rendered(cluster.directory, {})["ConfigMap/mayfly"])
    directory = workspace / "keys"
    directory.mkdir()
    (directory / "signing.key").write_text(base64.b64encode(os.urandom(48)).decode())
    pair = Authority(directory / "pki").issue("tls", hosts=(cluster.nodes[2].address,))
    (directory / "tls.crt").write_bytes(pair.certificate.read_bytes())
    (directory / "tls.key").write_bytes(pair.key.read_bytes())
    _secret_of(cluster, "keys", [directory / n for n in ("signing.key", "tls.crt", "tls.key")])
    _add_user(cluster, directory, "alice", "password-1")
    yield directory


@pytest.mark.parametrize(
    ("variable", "value", "secret", "port"),
    [
        ("MAYFLY_SIGNING_KEY", "/keys/signing.key", "keys", 5011),
        ("MAYFLY_TLS", "/keys/tls.crt,/keys/tls.key", "keys", 5012),
        ("MAYFLY_AUTH", "/keys", "users", 5013),
    ],
)
def test_keys_from_a_secret_volume(
    cluster: Cluster,
    other_node: Node,
    keys: Path,
    variable: str,
    value: str,
    secret: str,
    port: int,
) -> None:
    """defaultMode 0400, which fsGroup makes 0440 for a pod that is not root's."""
    name = f"keys-{port}"
    made = pod_of(name, other_node, cluster.directory, restartPolicy="Never")
    (container,) = made["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe", "ports", "lifecycle"):
        container.pop(probe, None)
    container["env"] = [
        {"name": "MAYFLY_LISTEN", "value": f"0.0.0.0:{port}"},
        {"name": variable, "value": value},
    ]
    mount = {"name": "keys", "mountPath": "/keys", "readOnly": True}
    container["volumeMounts"].append(mount)
    volume = {"name": "keys", "secret": {"secretName": secret, "defaultMode": 0o400}}
    made["spec"]["volumes"].append(volume)
    cluster.api.apply(made)
    pod = Pod(cluster.api, "default", name)
    where = f"https://{other_node.address}:{port}"

    def told() -> str:
        return other_node.shell(f"cat /var/log/pods/default_{name}_*/mayfly/*.log")

    poll(lambda: _answer(f"{where}/readyz") == 200, told)
    if secret == "users":
        login = f"{where}/auth/token?service=x"
        assert _answer(login, "alice", "password-1") == 200
        _add_user(cluster, keys, "bob", "password-2")
        poll(lambda: _answer(login, "bob", "password-2") == 200, told, seconds=180)
    pod.gone()


def _add_user(cluster: Cluster, directory: Path, name: str, password: str) -> None:
    words = ("user", "add", name, "--password-stdin", "--auth", directory)
    run_mayfly(*words, stdin=f"{password}\n")
    grants = directory / "grants.toml"
    grants.write_text('[[grant]]\nuser = "alice"\nrole = "admin"\nrepositories = "**"\n')
    _secret_of(cluster, "users", [directory / "htpasswd", grants])


def _secret_of(cluster: Cluster, name: str, files: list[Path]) -> None:
    data = {file.name: base64.b64encode(file.read_bytes()).decode() for file in files}
    metadata = {"name": name, "namespace": "default"}
    cluster.api.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})


def _answer(url: str, *login: str) -> int | None:
    """The status of a GET, with a user and password or none; None while nothing answers."""
    request = urllib.request.Request(url, headers=dict([basic(*login)] if login else []))
    unverified = ssl._create_unverified_context()
    try:
        with urllib.request.urlopen(request, timeout=10, context=unverified) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
