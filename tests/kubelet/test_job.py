"""deploy/kubernetes/mayfly.yaml under a real kubelet: its Job's pod, its Secrets, its end.

There is no controller manager: the pod of the Job's template is made directly, bound to a node and
on that node's network.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import signal
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clients.layout import Layout
from tests.kubelet.api import Object, eventually
from tests.kubelet.cluster import Cluster, Pod
from tests.kubelet.images import add_mayfly
from tests.kubelet.namespace import output
from tests.kubelet.node import Node
from tests.kubelet.pki import Authority
from tests.support.commands import run_mayfly
from tests.support.process import REPO

IMAGE = "docker.io/library/mayfly:0.1.0"
PORT = 5000
SHELL = ("/bin/busybox", "sh", "-c")
NGINX = "library/nginx:1.27"
DEPLOYED = list(yaml.safe_load_all((REPO / "deploy/kubernetes/mayfly.yaml").read_text()))


@pytest.fixture(scope="module")
def archive(cluster: Cluster) -> Path:
    """The image of Mayfly, which both nodes then have."""
    layout = Layout(cluster.directory / "mayfly-image")
    add_mayfly(layout, IMAGE)
    made = layout.archive()
    for node in cluster.nodes.values():
        node.import_images(made)
    return made


class Deployed:
    """Mayfly in a pod on node 1."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self.node = node
        self.host = f"{node.address}:{PORT}"
        self._cluster = cluster
        for value in DEPLOYED:
            if value["kind"] == "ConfigMap":
                cluster.api.apply(value)
        cluster.api.apply(pod_of("mayfly", node))
        self.pod = Pod(cluster.api, "default", "mayfly")
        self.wait_until_ready()
        self.ca = cluster.directory / f"job-{time.monotonic_ns()}.crt"
        self.ca.write_text(self.run(*SHELL, 'cat "$MAYFLY_STATE_DIR/ca.crt"'))

    def wait_until_ready(self) -> None:
        """Its readiness probe answers."""
        eventually(lambda: self.pod.ready, 120, self.describe)

    def describe(self) -> str:
        """The pod and its log."""
        return f"{self.pod.describe()}\n{self.log()}"

    def log(self) -> str:
        """Of all its containers so far."""
        return self.node.shell("cat /var/log/pods/default_mayfly*/mayfly/*.log")

    def run(self, *words: str) -> str:
        """Run a command in its container, as `kubectl exec` does."""
        endpoint = f"--runtime-endpoint=unix://{self.node.socket}"
        # containerd has the words come over a port that only the node sees.
        return output(*self.node.inside("crictl", endpoint, "exec", self._container(), *words))

    def secret(self, name: str, *options: str) -> str:
        """A Secret that it prints, applied in namespace team; its name."""
        words = ("--format", "secret", "--secret-name", name, "--namespace", "team", *options)
        self._cluster.api.apply(json.loads(self.run("mayfly", "credentials", *words)))
        return name

    def pusher(self) -> str:
        """NAME:PASSWORD of one who may push."""
        words = ("mayfly", "credentials", "--push", "--hours", "1", "--format", "docker")
        (entry,) = json.loads(self.run(*words))["auths"].values()
        return base64.b64decode(entry["auth"]).decode()

    def kill(self) -> None:
        """SIGKILL to Mayfly in its container."""
        container = self._container()
        os.kill(json.loads(self.node.crictl("inspect", container))["info"]["pid"], signal.SIGKILL)
        eventually(lambda: self._container() not in ("", container), 60, self.describe)

    def _container(self) -> str:
        return self.node.crictl("ps", "--quiet", "--name", "mayfly").strip()


def pod_of(name: str, node: Node, **changes: Any) -> Object:
    """A pod of the Job's template."""
    (job,) = (value for value in DEPLOYED if value["kind"] == "Job")
    template = copy.deepcopy(job["spec"]["template"])
    spec = {**template["spec"], "nodeName": node.name, "hostNetwork": True, **changes}
    spec["containers"][0]["imagePullPolicy"] = "IfNotPresent"
    labels = template["metadata"]["labels"]
    metadata = {"name": name, "namespace": "default", "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.fixture
def deployed(cluster: Cluster, node: Node, archive: Path) -> Iterator[Deployed]:
    """The Job's pod; both nodes trust it meanwhile, in place of the other Mayfly."""
    made = Deployed(cluster, node)
    for one in cluster.nodes.values():
        one.trust("--registry", made.host, "--ca", made.ca, "--force")
    yield made
    made.pod.gone()
    for one in cluster.nodes.values():
        cluster.trust(one)


def test_job_serves_two_nodes_and_ends(cluster: Cluster, deployed: Deployed) -> None:
    """Pushed with `credentials --push`, pulled by both nodes, killed in between, Succeeded."""
    where = {"host": deployed.host, "ca": deployed.ca, "login": deployed.pusher()}
    cluster.push(cluster.apps, "app:1", NGINX, **where)
    image = f"{deployed.host}/{NGINX}"
    secrets = [
        deployed.secret(f"job-{name}", "--node", name, "--name", name)
        for name in ("node-1", "node-2")
    ]
    for node in cluster.nodes.values():
        node.remove_image(image)
    cluster.pod(image, secrets[0]).runs().gone()
    deployed.kill()
    deployed.wait_until_ready()
    # The Secret was given by the container that was killed.
    cluster.pod(image, secrets[1], 2).runs().gone()
    eventually(lambda: deployed.pod.phase == "Succeeded", 60, deployed.describe)
    (status,) = deployed.pod.read()["status"]["containerStatuses"]
    assert status["restartCount"] == 1


def test_deleted_pod_lets_a_pull_end(
    cluster: Cluster, deployed: Deployed, other_node: Node
) -> None:
    """preStop waits for it, within the time that Kubernetes gives."""
    where = {"host": deployed.host, "ca": deployed.ca, "login": deployed.pusher()}
    image = cluster.push_big("team/big:p", **where)
    secret = deployed.secret("job")
    other_node.slow("100mbit")
    pulling = cluster.pod(image, secret, 2)
    received = _received(other_node)
    eventually(lambda: _received(other_node) > received + 8 * 2**20, 60, pulling.describe)
    cluster.api.delete("Pod", "mayfly", grace=90)
    pulling.runs(90)
    eventually(lambda: not cluster.api.exists("Pod", "mayfly"), 120, deployed.describe)
    pulling.gone()


def _received(node: Node) -> int:
    told = node.shell("cat /proc/net/dev")
    (line,) = (line for line in told.splitlines() if "eth0:" in line)
    return int(line.partition(":")[2].split()[0])


@pytest.fixture(scope="module")
def keys(cluster: Cluster, archive: Path, workspace: Path) -> Iterator[Path]:
    """Secrets with keys and users, as files from which they were made."""
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
    made = pod_of(name, other_node, restartPolicy="Never")
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

    eventually(lambda: _answer(f"{where}/readyz") == 200, 60, told)
    if secret == "users":
        login = f"{where}/auth/token?service=x"
        assert _answer(login, "alice:password-1") == 200
        _add_user(cluster, keys, "bob", "password-2")
        eventually(lambda: _answer(login, "bob:password-2") == 200, 180, told)
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


def _answer(url: str, login: str = "") -> int | None:
    """The status of a GET; None while nothing answers."""
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    unverified = ssl._create_unverified_context()
    try:
        with urllib.request.urlopen(request, timeout=10, context=unverified) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
