"""`mayfly wait --safe-to-stop`: what it predicts of pods, against what they do without a registry.

Two nodes prove and pin every image, kubelet collects what is not pinned, the judgement is made,
Mayfly ends, and every pod is made anew. Then kubelet gets the lines that were printed for it.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clients.layout import Layout
from tests.kubelet.api import Object
from tests.kubelet.cluster import ERRORS, HOST, HUB_IMAGE, Cluster
from tests.kubelet.images import SLEEP, busybox
from tests.kubelet.node import Node
from tests.kubelet.test_pins import THRESHOLDS
from tests.support.commands import mayfly, run_mayfly
from tests.support.process import find_program, poll, remove_tree
from tests.support.programs import versions

FIRST, SECOND = 5, 6
LISTED = ("app:1", "app:2", "app:3", "app:4", "app:5", "app:latest")
OWN = "mayfly"
ALWAYS = "Always"
REFUSED = "other_credentials"
FAILED = frozenset({*ERRORS, "ErrImageNeverPull"})

SSH = """#!/bin/sh
# ssh to a node of the tests: a shell in its namespaces.
while [ "$1" != -- ]; do shift; done
case $2 in
    {cases}
esac
exec nsenter --target="$pid" --net --mount -- env CONTAINERD_ADDRESS="$socket" sh -c "$3"
"""


PREFERENCES = """\
apiVersion: kubectl.config.k8s.io/v1beta1
kind: Preference
defaults:
- command: get
  options:
  - {name: selector, default: only=these}
- command: delete
  options:
  - {name: interactive, default: "true"}
"""
"""By these kubectl would show no object, and delete none."""


def image(name: str) -> str:
    """The full name of an image of the tests."""
    return f"{HOST}/team/{name}"


def records_of(node: Node) -> int:
    """How many images kubelet remembers to have pulled."""
    return int(node.shell("ls /var/lib/kubelet/image_manager/pulled | wc -l"))


@dataclass(frozen=True)
class Shape:
    """A pod, or the template of a CronJob.

    Attributes:
        runs: whether its pod starts once Mayfly has ended.
        policy: None for Kubernetes' default.
        template: whether it is in a CronJob, of which nothing runs before.
    """

    runs: bool
    image: str
    policy: str | None = "IfNotPresent"
    secret: str = ""
    namespace: str = "team"
    node: int = FIRST
    template: bool = False
    more: Object = field(default_factory=dict)

    def spec(self, *, bound: bool) -> Object:
        """The spec of its pod; bound to its node, or sent there by a label."""
        container = {"name": "c", "image": self.image}
        if self.policy is not None:
            container["imagePullPolicy"] = self.policy
        where: Object = {"nodeSelector": {"kubernetes.io/hostname": f"node-{self.node}"}}
        if bound:
            where = {"nodeName": f"node-{self.node}"}
        return {
            **where,
            "hostNetwork": True,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
            "imagePullSecrets": [{"name": self.secret}] if self.secret else [],
            "containers": [container],
            **self.more,
        }


def _init(policy: str) -> Object:
    one = {"name": "i", "image": image("app:3"), "imagePullPolicy": policy}
    return {"initContainers": [{**one, "command": ["/bin/busybox", "true"]}]}


def _volume(policy: str, *, mounted: bool = True) -> Object:
    volume = {"name": "v", "image": {"reference": image("app:4"), "pullPolicy": policy}}
    container = {"name": "c", "image": image("app:1"), "imagePullPolicy": "IfNotPresent"}
    mounts = [{"name": "v", "mountPath": "/v"}] if mounted else []
    return {"volumes": [volume], "containers": [{**container, "volumeMounts": mounts}]}


SHAPES = {
    "preloaded": Shape(True, image("app:1")),
    "always": Shape(False, image("app:1"), "Always"),
    "never": Shape(True, image("app:1"), "Never"),
    "latest-without-policy": Shape(False, image("app:latest"), None),
    "hub-short-name": Shape(True, "hello:1", node=SECOND),
    "own-secret": Shape(True, image("app:5"), secret=OWN),
    "other-namespace-same-content": Shape(True, image("app:5"), secret=OWN, namespace="default"),
    # Started before, kubelet would pull for it by the node's credential, and note that for all.
    "other-secret": Shape(False, image("app:5"), secret="made-up", template=True),
    "no-secret": Shape(False, image("app:5"), template=True),
    "never-without-secret": Shape(False, image("app:5"), "Never", template=True),
    "preloaded-other-secret": Shape(True, image("app:2"), secret="made-up", node=SECOND),
    "init-container": Shape(True, image("app:1"), more=_init("IfNotPresent")),
    "init-container-always": Shape(False, image("app:1"), more=_init("Always")),
    "image-volume": Shape(True, image("app:1"), more=_volume("IfNotPresent")),
    "image-volume-always": Shape(False, image("app:1"), more=_volume("Always"), node=SECOND),
    # Started before, its pull would take the pin from the image.
    "image-volume-not-mounted": Shape(
        True, image("app:1"), more=_volume("Always", mounted=False), template=True
    ),
    "cron-job": Shape(True, image("app:2"), template=True, node=SECOND),
    "cron-job-always": Shape(False, image("app:2"), "Always", template=True),
    "not-in-the-list": Shape(False, image("app:9"), template=True),
    "node-without-image": Shape(False, image("app:2"), template=True, node=1),
}
"""By name; images by digest, and static pods, whose names are known later, come to them."""


class Judged:
    """Two prepared nodes, and pods of every shape."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes: list[Node] = []
        self.shapes = dict(SHAPES)
        self.static: dict[str, str] = {}

    def prepare(self) -> None:
        """Pull one image by kubelet, the others by the node script; have kubelet collect."""
        cluster = self.cluster
        for number in (FIRST, SECOND):
            self.nodes.append(cluster.add_node(number, versions("containerd")[-1], 256 << 20))
        for node in cluster.nodes.values():
            node.put_tools()
        layout = Layout(cluster.directory / "latest")
        layout.add("app:latest", busybox("latest"), Cmd=list(SLEEP))
        cluster.push(layout, "app:latest", "team/app:latest")
        listed, nodes = cluster.directory / "safe-images", cluster.directory / "safe-nodes"
        listed.write_text("".join(f"{one}\n" for one in (*map(image, LISTED), HUB_IMAGE)))
        nodes.write_text("".join(f"{node.name}\n" for node in self.nodes))
        words = ("--until-pulled", str(listed), "--nodes", str(nodes), "--until", "stop")
        cluster.serve(*words, "--accept", "proven")
        cluster.secret(OWN)
        cluster.made_up_secret()
        kept = cluster.api.get("Secret", OWN, "team")
        cluster.api.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": OWN, "namespace": "default"},
                "type": kept["type"],
                "data": kept["data"],
            }
        )
        first = self.nodes[0]
        cluster.trust(first)
        cluster.pod(image("app:5"), OWN, FIRST).runs().gone()
        assert records_of(first) == 1
        for node in self.nodes:
            self.run_script(node)
            node.crictl("pull", image("app:6"))
            self.collect(node)
        # While a dead container holds the snapshot, a pull leaves out the layer's content.
        poll(lambda: not first.crictl("ps", "--all", "--quiet").strip())
        first.remove_image(image("app:5"))
        cluster.pod(image("app:5"), OWN, FIRST).runs().gone()
        self.run_script(first)
        assert records_of(first) == 1
        digest = self.cluster.digests[3]
        self.shapes["digest"] = Shape(True, f"{HOST}/team/app@{digest}", node=SECOND)
        self.shapes["other-digest"] = Shape(
            False, f"{HOST}/team/app@{self.cluster.digests[8]}", template=True
        )

    def run_script(self, node: Node) -> None:
        """Have a node pull, pin and prove every image."""
        words = ("--node", node.name, "--runtime", "containerd")
        script = run_mayfly("node", "script", *words, "--state-dir", self.cluster.state_dir)
        assert "7 of 7 images are present; proof: sent" in node.run_script(script)

    def collect(self, node: Node) -> None:
        """Have kubelet collect all that is not pinned."""
        full = THRESHOLDS | {"evictionHard": {"imagefs.available": "99%"}}
        node.restart_kubelet(**full)
        poll(lambda: not node.has_image(image("app:6")), node.kubelet.describe, seconds=180)
        # It also forgets how pinned images were pulled.
        poll(lambda: records_of(node) == 0, node.kubelet.describe)
        # What has a loop device for its images has little room.
        node.restart_kubelet(staticPodPath=str(self.manifests(node)))
        node.import_images(self.cluster.sandbox)
        assert all(node.has_image(image(one)) for one in LISTED)

    def manifests(self, node: Node) -> Path:
        """The directory of a node's static pods."""
        directory = node.directory / "manifests"
        directory.mkdir(exist_ok=True)
        return directory

    def apply(self, name: str) -> None:
        """Make the pod or CronJob of a shape."""
        shape = self.shapes[name]
        metadata = {"name": name, "namespace": shape.namespace}
        if not shape.template:
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
            self.cluster.api.apply({**pod, "spec": shape.spec(bound=True)})
            return
        spec = {**shape.spec(bound=False), "restartPolicy": "Never"}
        job = {"spec": {"template": {"spec": spec}}}
        cron = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata}
        self.cluster.api.apply({**cron, "spec": {"schedule": "0 3 * * *", "jobTemplate": job}})

    def apply_static(self, name: str, policy: str) -> None:
        """Give the second node a static pod."""
        shape = Shape(policy != ALWAYS, image("app:2"), policy)
        spec = {k: v for k, v in shape.spec(bound=True).items() if k != "nodeName"}
        metadata = {"name": name, "namespace": "default"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        (self.manifests(self.nodes[1]) / f"{name}.json").write_text(json.dumps(pod))
        self.static[name] = policy

    def remove_static(self) -> None:
        """Take the static pods away."""
        for name in self.static:
            (self.manifests(self.nodes[1]) / f"{name}.json").unlink(missing_ok=True)

    def ssh(self) -> Path:
        """A directory with an `ssh` that reaches the nodes."""
        directory = self.cluster.directory / "ssh"
        directory.mkdir(exist_ok=True)
        cases = []
        for node in self.cluster.nodes.values():
            socket = shlex.quote(str(node.socket))
            cases.append(f"{node.name}) pid={node.pid} socket={socket} ;;")
        (directory / "ssh").write_text(SSH.format(cases="\n    ".join(cases)))
        (directory / "ssh").chmod(0o755)
        return directory

    def ask(self, *words: str, via: str = "ssh") -> tuple[int, str]:
        """Ask whether Mayfly may end: exit code and output."""
        tools = find_program("crictl")
        assert tools is not None
        path = os.pathsep.join([str(self.ssh()), str(Path(tools).parent), os.environ["PATH"]])
        options = ("--state-dir", self.cluster.state_dir, "--via", via, "--timeout", "60s")
        kubeconfig = self.cluster.admin_kubeconfig
        home = self.cluster.directory / "home"
        (home / ".kube").mkdir(parents=True, exist_ok=True)
        (home / ".kube/kuberc").write_text(PREFERENCES)
        done = mayfly(
            *("wait", "--safe-to-stop", *options, "--kubeconfig", kubeconfig, *words),
            env={"PATH": path, "HOME": str(home)},
        )
        assert done.stdout, done.stderr
        assert "may still be in the cluster" not in done.stderr
        return done.returncode, done.stdout

    def judge(self) -> tuple[int, Any]:
        """Ask whether Mayfly may end: exit code and judgement, the same over ssh and by pods."""
        code, answer = self.ask("--json")
        found = json.loads(answer)["safety"]
        code_by_pods, answer = self.ask("--json", via="kubernetes")
        assert (code_by_pods, json.loads(answer)["safety"]) == (code, found)
        return code, found

    def printed_configuration(self, node: Node) -> Object:
        """The lines for a node's kubelet that the command prints, read as YAML."""
        _, answer = self.ask()
        _, begin, after = answer.partition(f"# {node.name}: in kubelet's configuration")
        assert begin, answer
        lines = after.splitlines()[1:]
        end = next((n for n, line in enumerate(lines) if line.startswith("#")), len(lines))
        return dict(yaml.safe_load("\n".join(lines[:end])))

    def wait_for_pods(self, names: Iterable[str]) -> None:
        """Wait until the pods of these shapes run."""
        for name in names:
            if not self.shapes[name].template:
                assert self.outcome(self.shapes[name].namespace, name), name

    def delete(self, name: str) -> str:
        """Delete the pod of a shape, if there is one; the name."""
        api, namespace = self.cluster.api, self.shapes[name].namespace
        api.delete("Pod", name, namespace)
        poll(lambda: not api.exists("Pod", name, namespace))
        return name

    def make_anew(self, names: Iterable[str]) -> dict[str, bool]:
        """Make pods of these shapes in place of those that are there: whether each runs."""
        shapes = {self.delete(name): self.shapes[name] for name in names}
        for name, shape in shapes.items():
            metadata = {"name": name, "namespace": shape.namespace}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
            self.cluster.api.apply({**pod, "spec": shape.spec(bound=True)})
        return {name: self.outcome(shape.namespace, name) for name, shape in shapes.items()}

    def make_static_anew(self) -> dict[str, bool]:
        """Take the static pods away and put them back: whether each runs, by its mirror pod."""
        self.remove_static()
        mirrors = [f"{name}-node-{SECOND}" for name in self.static]
        for mirror in mirrors:
            poll(lambda m=mirror: not self.cluster.api.exists("Pod", m))
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        for name, policy in self.static.items():
            self.apply_static(name, policy)
        return {mirror: self.outcome("default", mirror, since) for mirror in mirrors}

    def outcome(self, namespace: str, name: str, since: str = "") -> bool:
        """Wait until a pod runs, or cannot: whether it runs.

        Args:
            since: time from which on it may have started; kubelet shows a static pod's last status
                until it has looked again.
        """

        def found() -> str | None:
            if not self.cluster.api.exists("Pod", name, namespace):
                return None
            status = self.cluster.api.get("Pod", name, namespace)["status"]
            kinds = ("containerStatuses", "initContainerStatuses")
            states = [one for kind in kinds for one in status.get(kind, [])]
            if any(one["state"].get("waiting", {}).get("reason") in FAILED for one in states):
                return "fails"
            started = (one["state"].get("running", {}).get("startedAt", "") for one in states)
            if since and not all(at >= since for at in started):
                return None
            return "runs" if status.get("phase") in ("Running", "Succeeded") else None

        def describe() -> str:
            events = self.cluster.api.events(namespace, name)
            return json.dumps([self.cluster.api.get("Pod", name, namespace)["status"], events])

        return poll(found, describe) == "runs"


@pytest.fixture(scope="module")
def judged(cluster: Cluster) -> Iterator[Judged]:
    """The nodes are taken away afterwards, and the usual Mayfly runs."""
    made = Judged(cluster)
    try:
        made.prepare()
        yield made
    finally:
        made.remove_static()
        for name, shape in made.shapes.items():
            cluster.api.delete("Pod", name, shape.namespace)
            cluster.api.delete("CronJob", name, shape.namespace)
        for node in made.nodes:
            del cluster.nodes[node.number]
            node.stop()
            cluster.api.delete("Node", node.name)
            remove_tree(node.directory)
        cluster.serve()


def test_predictions(judged: Judged) -> None:
    """Pods that would run are safe alone; all do as predicted once Mayfly has ended."""
    good = [name for name, shape in judged.shapes.items() if shape.runs]
    for name in good:
        judged.apply(name)
    judged.apply_static("static", "IfNotPresent")
    judged.wait_for_pods(good)
    assert judged.outcome("default", "static-node-6")
    code, found = judged.judge()
    assert (found["findings"], found["unseen"]) == ([], [])
    assert (code, found["safe"]) == (0, True)

    for name in judged.shapes:
        judged.apply(name)
    judged.wait_for_pods(judged.shapes)
    judged.apply_static("static-always", ALWAYS)
    assert judged.outcome("default", "static-always-node-6")
    code, found = judged.judge()
    assert code == 3
    assert found["unseen"] == []
    of_nodes = [one for one in found["findings"] if one["workload"] is None]
    # A pull by kubelet takes the pin away that the node script has set.
    assert {one["code"] for one in of_nodes} == {"not_pinned"}
    predicted = {one["workload"]["name"] for one in found["findings"] if one["workload"]}
    expected = {name for name, shape in judged.shapes.items() if not shape.runs}
    assert predicted == {*expected, "static-always-node-6"}

    # kubelet pulls a volume that is always pulled again and again, and takes the pin each time.
    predicted_now = predicted - {judged.delete("image-volume-always")}
    # As the answer says; else kubelet would collect them once their pods are deleted.
    for node in judged.nodes:
        judged.run_script(node)
    code, found = judged.judge()
    assert code == 3
    assert [one for one in found["findings"] if not one["workload"]] == []
    assert {one["workload"]["name"] for one in found["findings"]} == predicted_now
    lines = judged.printed_configuration(judged.nodes[0])
    assert mayfly("stop", "--state-dir", judged.cluster.state_dir).returncode == 0
    report = json.loads((judged.cluster.state_dir / "report.json").read_text())
    assert report["safe_to_stop"]["safe"] is False
    happened = judged.make_anew(judged.shapes)
    assert happened == {name: name not in predicted for name in judged.shapes}
    happened = judged.make_static_anew()
    assert happened == {name: name not in predicted for name in happened}
    assert len(happened) == 2

    # With the printed lines pods with other credentials run, and all that ran before still do.
    refused = {one["workload"]["name"] for one in found["findings"] if one["code"] == REFUSED}
    assert refused == {"other-secret", "no-secret", "never-without-secret"}
    judged.nodes[0].restart_kubelet(**lines)
    on_node = {name for name, shape in judged.shapes.items() if shape.node == FIRST}
    happened = judged.make_anew(on_node)
    assert happened == {name: name in refused or name not in predicted for name in on_node}
