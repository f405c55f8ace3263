"""A release of the chart of deploy/helm in the cluster."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.kubelet.api import Object, Refused
from tests.kubelet.cluster import Cluster, Pod
from tests.kubelet.namespace import output
from tests.kubelet.node import Node, end
from tests.support.chart import rendered
from tests.support.process import poll

PORT = 5000
SHELL = ("/bin/busybox", "sh", "-c")
BUNDLES = "/var/lib/mayfly-upgrade"
VALUES: Object = {
    "node": "node-1",
    "bundle": {"hostPath": BUNDLES, "files": ["bundle.tar"]},
    "nodes": ["node-1", "node-2"],
}


class Deployed:
    """A release of the chart: Mayfly in a pod on node 1, made by the Job controller."""

    def __init__(self, cluster: Cluster, node: Node, values: Object, port: int) -> None:
        self.node = node
        self.host = f"{node.address}:{port}"
        self._cluster = cluster
        self._objects = list(rendered(cluster.directory, values).values())
        for value in self._objects:
            cluster.api.apply(value)
        self.find_pod()
        self.ca = cluster.directory / f"job-{time.monotonic_ns()}.crt"
        self.ca.write_text(self.run(*SHELL, 'cat "$MAYFLY_STATE_DIR/ca.crt"'))

    def find_pod(self) -> None:
        """Wait until the Job has a pod that is not ending, and the pod is ready."""
        name = poll(self._pod_name, self._job)
        self.pod = Pod(self._cluster.api, "default", name)
        self.wait_until_ready()

    def uninstall(self) -> None:
        """Remove every object of the release."""
        for value in self._objects:
            self._cluster.api.delete(value["kind"], value["metadata"]["name"])
        self.pod.gone()
        poll(lambda: not self._cluster.api.exists("Job", "mayfly"))

    @property
    def conditions(self) -> set[str]:
        """The conditions of the Job that are true."""
        found = self._job()["status"].get("conditions", [])
        return {one["type"] for one in found if one["status"] == "True"}

    def _job(self) -> Object:
        return self._cluster.api.get("Job", "mayfly")

    def _pod_name(self) -> str | None:
        where = "/api/v1/namespaces/default/pods?labelSelector=batch.kubernetes.io%2Fjob-name%3D"
        found = self._cluster.api.request("GET", f"{where}mayfly")["items"]
        alive = [one["metadata"] for one in found if "deletionTimestamp" not in one["metadata"]]
        return alive[0]["name"] if alive else None

    def wait_until_ready(self) -> None:
        """Its readiness probe answers."""
        poll(lambda: self.pod.ready, self.describe)

    def describe(self) -> str:
        """The pod and its log."""
        return f"{self.pod.describe()}\n{self.log()}"

    def log(self) -> str:
        """The log of all its containers so far."""
        return self.node.shell("cat /var/log/pods/default_$1_*/mayfly/*.log", self.pod.name)

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
        """The login NAME:PASSWORD of a new credential for pushes."""
        words = ("mayfly", "credentials", "--push", "--hours", "1", "--format", "docker")
        (entry,) = json.loads(self.run(*words))["auths"].values()
        return base64.b64decode(entry["auth"]).decode()

    def kill(self) -> None:
        """SIGKILL to Mayfly in its container."""
        container = self._container()
        os.kill(json.loads(self.node.crictl("inspect", container))["info"]["pid"], signal.SIGKILL)
        poll(lambda: self._container() not in ("", container), self.describe)

    def lose_power(self) -> None:
        """The node fails and starts again: kubelet finds none of its containers."""
        self._fail()
        self.node.start_kubelet()
        poll(self._container, self.describe)

    def lose_pod(self) -> None:
        """The node fails, and its pod is given up: the Job makes another one."""
        self._fail()
        self._cluster.api.delete("Pod", self.pod.name)
        self.node.start_kubelet()
        self.find_pod()

    def _fail(self) -> None:
        end(self.node.kubelet)
        pid = json.loads(self.node.crictl("inspect", self._container()))["info"]["pid"]
        os.kill(pid, signal.SIGKILL)
        # containerd 1.6 cannot remove the sandbox of a container that is just ending.
        poll(lambda: not self._container(), self.describe)
        for sandbox in self.node.crictl("pods", "--quiet", "--name", self.pod.name).split():
            self.node.crictl("rmp", "--force", sandbox)

    def evict(self) -> str:
        """Ask to evict the pod, as `kubectl drain` does; why that is refused."""
        metadata = {"name": self.pod.name, "namespace": "default"}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        where = f"/api/v1/namespaces/default/pods/{self.pod.name}/eviction"
        with pytest.raises(Refused) as refused:
            self._cluster.api.request("POST", where, eviction)
        return str(refused.value)

    def _container(self) -> str:
        return self.node.crictl("ps", "--quiet", "--name", "mayfly").strip()


@contextmanager
def released(cluster: Cluster, port: int = PORT, **values: Any) -> Iterator[Deployed]:
    """A release meanwhile, with these values beside VALUES; nodes reach it at a port of node 1."""
    node = cluster.nodes[1]
    made = Deployed(cluster, node, VALUES | values, port)
    try:
        yield made
    finally:
        if not node.kubelet.running:  # the test ended between the node's failure and its start
            node.start_kubelet()
        made.uninstall()
