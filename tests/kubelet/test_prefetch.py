"""`mayfly prefetch --via kubernetes`: pods on real kubelets run the script, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_json_output import check
from tests.kubelet.api import Object
from tests.kubelet.cluster import HOST, HUB_IMAGE, Cluster
from tests.kubelet.namespace import output
from tests.kubelet.node import GATEWAY, Node, end
from tests.support.commands import mayfly, started
from tests.support.process import find_program, need, poll

APP = f"{HOST}/team/app:3"
NAMESPACES = "/api/v1/namespaces"

KUBECTL = """#!/bin/sh
printf '%s\\n' "$*" >>"{log}"
case $1 in logs) "{program}" "$@" | tee -a "{log}" ;; *) exec "{program}" "$@" ;; esac
"""
"""kubectl that writes down its arguments and the logs of pods."""


class Operator:
    """An operator's kubectl, its configuration, and the arguments it got."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        need("kubectl")
        self.cluster = cluster
        self.log = directory / "kubectl.log"
        program = directory / "bin/kubectl"
        program.parent.mkdir()
        real = find_program("kubectl")
        program.write_text(KUBECTL.format(log=self.log, program=real))
        program.chmod(0o755)
        self.env = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "KUBECONFIG": str(cluster.admin_kubeconfig),
        }

    def prefetch(self, *options: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
        """Run it with ``--json``; its exit code, and its events by their names."""
        done = mayfly(*self.words(*options), env=self.env, timeout=500)
        found: dict[str, list[dict[str, Any]]] = {}
        for line in done.stdout.splitlines():
            event = json.loads(line)
            check("prefetch", event)
            found.setdefault(event["event"], []).append(event)
        assert "done" in found, done.stderr
        return done.returncode, found

    def words(self, *options: str, json: bool = True) -> tuple[object, ...]:
        """The command."""
        state = ("--state-dir", self.cluster.state_dir)
        return ("prefetch", "--via", "kubernetes", *state, *(["--json"] if json else []), *options)

    @contextmanager
    def pulling(
        self, node: Node, image: str, *options: str
    ) -> Iterator[tuple[subprocess.Popen[str], int]]:
        """The command, once a node pulls an image by it, and the number of a process that does.

        If it still runs after the block, it is killed.
        """
        with started(*self.words(*options), env=self.env) as running:
            pulls = poll(lambda: _commands(node, f"pull {image}"), self.cluster.mayfly.describe)
            yield running, pulls[0]


def _left(cluster: Cluster) -> list[str]:
    """The namespaces of prefetches that are there."""
    found = cluster.api.request("GET", NAMESPACES)["items"]
    names = [one["metadata"]["name"] for one in found]
    return [name for name in names if name.startswith("mayfly-prefetch-")]


@pytest.fixture
def operator(served: Cluster, tmp_path: Path, trusting: None) -> Iterator[Operator]:
    """One of whom nothing is left in the cluster afterwards."""
    yield Operator(served, tmp_path)
    assert _left(served) == []


@pytest.fixture
def prepared(served: Cluster) -> Callable[[Node], None]:
    """Prepares a node: its runtime and tools are where the script looks for them."""
    for node in served.nodes.values():
        node.put_tools()
    return Node.put_tools


def _serve(cluster: Cluster, nodes: list[str], images: list[str]) -> None:
    """Have Mayfly wait for the proofs of nodes."""
    listed, named = cluster.directory / "prefetched-images", cluster.directory / "prefetch-nodes"
    listed.write_text("".join(f"{image}\n" for image in images))
    named.write_text("".join(f"{node}\n" for node in nodes))
    options = ["--until-pulled", str(listed), "--nodes", str(named), "--accept", "proven"]
    cluster.serve(*options, "--idle-timeout", "1h", "--until", "all")


def _traces(node: Node) -> set[str]:
    """What a pod might leave on a node, but for what the script documents."""
    directories = (
        "/",
        "/opt",
        "/run",
        "/var/log/pods",
        "/var/lib/kubelet/pods",
        "/var/lib",
        "/etc",
    )
    found = node.shell(f'for d in {" ".join(directories)}; do ls -A $d | sed "s|^|$d/|"; done')
    return {*found.splitlines()}


def _codes(events: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    return {one["node"]: [f["code"] for f in one["failures"]] for one in events["ended"]}


@pytest.mark.usefixtures("prepared")
def test_every_node_proves_and_nothing_is_left(operator: Operator, served: Cluster) -> None:
    """Tainted and cordoned, too; no credential is in an argument or a log; a second run skips."""
    tainted = served.nodes[2]
    taints = [
        {"key": "k", "value": "v", "effect": effect} for effect in ("NoSchedule", "NoExecute")
    ]
    for node in served.nodes.values():
        node.shell("mkdir -p /var/lib/mayfly-node-config")
    before = {name: _traces(node) for name, node in served.nodes.items()}
    _patch_node(served, tainted, {"spec": {"unschedulable": True, "taints": taints}})
    try:
        _serve(served, ["node-1", "node-2"], [APP, HUB_IMAGE])
        code, events = operator.prefetch()
    finally:
        _patch_node(served, tainted, {"spec": {"unschedulable": None, "taints": None}})
    assert code == 0, json.dumps(events, indent=1)
    assert {one["node"] for one in events["ended"] if one["proven"]} == {"node-1", "node-2"}
    pulled = {(one["node"], one["image"]) for one in events["image"]}
    assert pulled == {(n, i) for n in ("node-1", "node-2") for i in (APP, HUB_IMAGE)}
    told = operator.log.read_text()
    assert '"report"' in told  # the pods' logs are in it
    for node in served.nodes.values():
        hosts = node.shell('cat "/etc/containerd/certs.d/$1/hosts.toml"', HOST)
        (secret,) = {line.split('"')[1] for line in hosts.splitlines() if "Basic" in line}
        assert len(secret) > 40
        assert secret.partition(" ")[2] not in told
        assert node.shell("ls /var/lib/mayfly-node-config/work 2>&1 || true").count("No such") == 1
        # kubelet removes the logs of pods that are gone each minute.
        poll(
            lambda one=node: _traces(one) <= before[one.number],
            lambda one=node: _traces(one) - before[one.number],
            seconds=180,
        )
    code, events = operator.prefetch()
    assert code == 0
    assert {one["node"] for one in events["skipped"]} == {"node-1", "node-2"}


def test_nodes_in_trouble(
    operator: Operator,
    prepared: Callable[[Node], None],
    kubelets: Cluster,
    pinning_node: Node,
) -> None:
    """One does not answer, one has a full disk, one has no such name: the rest is proven."""
    prepared(pinning_node)
    full = pinning_node.name
    silent = kubelets.nodes[2]
    big = kubelets.push_big("team/big:prefetch")
    kubelets.nodes[1].remove_image(big)
    _serve(kubelets, ["node-1", "node-2", full, "node-9"], [big])
    end(silent.kubelet)
    unknown = {"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting status."}
    _patch_node(kubelets, silent, {"status": {"conditions": [unknown]}}, "/status")
    code, events = operator.prefetch("--attempts", "4")
    assert code == 3
    assert _codes(events) == {
        "node-1": [],
        "node-2": ["not_ready"],
        full: ["disk_full"],
        "node-9": ["no_node"],
    }, json.dumps(events["ended"], indent=1)
    silent.start_kubelet()
    poll(lambda: _is_ready(kubelets, silent), silent.kubelet.describe)
    code, events = operator.prefetch("--attempts", "1")
    assert [one["node"] for one in events["skipped"]] == ["node-1"]
    assert _codes(events)["node-2"] == []


@pytest.mark.usefixtures("prepared")
def test_ctrl_c_ends_the_pulls(operator: Operator, served: Cluster, node: Node) -> None:
    """The script ends on the node, and pod, Secret and namespace are gone."""
    big = served.push_big("team/big:cut")
    node.remove_image(big)
    node.slow("20mbit")
    _serve(served, ["node-1", "node-2"], [big])
    (served.directory / "some").write_text("node-1\n")
    some = ("--nodes", str(served.directory / "some"))
    with operator.pulling(node, big, *some) as (running, pulling):
        running.send_signal(signal.SIGINT)
        told = "".join(running.communicate(timeout=200))
    assert running.returncode == 130, told
    assert "note" not in told
    assert not Path(f"/proc/{pulling}").exists()
    assert node.shell("ls /var/lib/mayfly-node-config/work 2>&1 || true").count("No such") == 1


@pytest.mark.usefixtures("prepared")
def test_kill_leaves_what_is_told(operator: Operator, served: Cluster, node: Node) -> None:
    """The script continues and proves by itself; the next run tells what is left of it."""
    big = served.push_big("team/big:killed")
    node.remove_image(big)
    node.slow("20mbit")
    _serve(served, ["node-1", "node-2"], [big])
    (served.directory / "some").write_text("node-1\n")
    some = ("--nodes", str(served.directory / "some"))
    with operator.pulling(node, big, *some) as (running, _):
        running.kill()
    (left,) = _left(served)
    node.fast()
    code, events = operator.prefetch(*some)
    assert code == 0, json.dumps(events, indent=1)
    (note,) = [one["message"] for one in events["note"]]
    command = f"kubectl delete namespace {left}"
    assert note.endswith(command)
    assert _left(served) == [left]
    kubectl = find_program("kubectl")
    assert kubectl is not None
    output(kubectl, f"--kubeconfig={served.admin_kubeconfig}", *command.split()[1:])


@pytest.mark.usefixtures("prepared")
def test_a_node_that_is_removed_under_way(operator: Operator, kubelets: Cluster) -> None:
    """Its pull is ended, and the rest is proven."""
    gone = kubelets.nodes[2]
    big = kubelets.push_big("team/big:removed")
    for node in kubelets.nodes.values():
        node.remove_image(big)
    gone.slow("20mbit")
    _serve(kubelets, ["node-1", "node-2"], [big])
    with operator.pulling(gone, big, "--attempts", "1") as (running, pulling):
        kubelets.api.request("DELETE", "/api/v1/nodes/node-2")
        told, errors = running.communicate(timeout=300)
    gone.fast()
    assert running.returncode == 3, told + errors
    ended = [json.loads(line) for line in told.splitlines()]
    found = {one["node"]: one["failures"] for one in ended if one["event"] == "ended"}
    assert found["node-1"] == []
    assert [one["code"] for one in found["node-2"]] == ["lost"], told
    assert "no such node any more" in found["node-2"][0]["detail"]
    assert not Path(f"/proc/{pulling}").exists()


@pytest.mark.usefixtures("prepared")
def test_run_prefetches(operator: Operator, served: Cluster) -> None:
    """`run --prefetch kubernetes` is the whole upgrade: the command begins when all have all."""
    place = served.directory / "run"
    place.mkdir()
    (place / "images").write_text(f"{HUB_IMAGE}\n")
    (place / "nodes").write_text("node-1\nnode-2\n")
    for node in served.nodes.values():
        node.remove_image(HUB_IMAGE)
    options = ["--listen", "0.0.0.0:5778", "--hostname", GATEWAY, "--tls", "auto", "--auth", "auto"]
    options += ["--until-pulled", str(place / "images"), "--nodes", str(place / "nodes")]
    options += ["--accept", "proven", "--prefetch", "kubernetes"]
    where = ("--root", place / "root", "--state-dir", place / "state")
    command = ("--", "touch", place / "begun")
    done = mayfly("run", served.bundle, *where, *options, *command, env=operator.env, timeout=400)
    assert done.returncode == 0, done.stderr
    assert (place / "begun").exists()
    assert all(node.has_image(HUB_IMAGE) for node in served.nodes.values())


@pytest.mark.usefixtures("prepared")
def test_printed_objects_do_the_same(operator: Operator, served: Cluster) -> None:
    """`--print` makes nothing; applied by hand, the nodes prove by themselves."""
    _serve(served, ["node-1", "node-2"], [APP])
    done = mayfly(*operator.words("--print", json=False), env=operator.env)
    assert done.returncode == 0, done.stderr
    assert _left(served) == []
    kubectl = find_program("kubectl")
    config = f"--kubeconfig={served.admin_kubeconfig}"
    assert kubectl is not None
    printed = served.directory / "printed.json"
    printed.write_text(done.stdout)
    output(kubectl, config, "apply", "-f", printed)
    covered = mayfly("wait", "--covered", "--state-dir", served.state_dir, "--timeout", "120s")
    assert covered.returncode == 0, covered.stderr
    output(kubectl, config, "delete", "-f", printed, "--wait=true")


def _commands(node: Node, words: str) -> list[int]:
    """The processes on the machine with these words in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in line and ("crictl" in line or "ctr " in line):
            found.append(int(path.parent.name))
    return found


def _is_ready(cluster: Cluster, node: Node) -> bool:
    conditions = cluster.api.get("Node", node.name)["status"]["conditions"]
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _patch_node(cluster: Cluster, node: Node, change: Object, part: str = "") -> None:
    path = f"/api/v1/nodes/{node.name}{part}"
    cluster.api.request("PATCH", path, change, "application/strategic-merge-patch+json")
