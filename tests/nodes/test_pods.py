"""Scripts of nodes in pods: the objects, what a cluster tells of them, and what is removed."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.registry.errors import LifetimeError
from mayfly.registry.exit_codes import Exit
from mayfly.registry.nodes import pods
from mayfly.registry.nodes.causes import Cause
from mayfly.registry.nodes.kubectl import Kubectl
from mayfly.registry.nodes.pod_objects import (
    MadeObject,
    PodNode,
    PodPlace,
    last_warning,
    manifest,
    namespace_objects,
    read_node,
    read_pod,
    script_objects,
)
from mayfly.registry.nodes.pods import Pods
from mayfly.registry.nodes.prefetch import NodeResult, Prefetch
from mayfly.registry.settings.errors import ConfigError
from tests.hostile import texts
from tests.nodes.test_prefetch import SCRIPT, Recorder
from tests.process.test_chart import validate
from tests.support.commands import assert_refused, mayfly_here, started
from tests.support.node_stubs import IMAGES
from tests.support.process import PATIENCE, REPO, Mayfly, poll, text_of

FACTS = PodNode(True, "", "linux", "amd64", "Debian GNU/Linux 12", ("a.example/pause:3",))
PLACE = PodPlace("mayfly-prefetch-1", "script-1", "node-1", "a.example/pause:3")
SECRET = "authorization='Basic c2VjcmV0'\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the stub more often than a cluster."""
    for name in ("_POLL_SECONDS", "_LOG_SECONDS"):
        monkeypatch.setattr(pods, name, 0.2)


def _run(
    *nodes: str, recorder: Recorder | None = None, by: Kubectl | None = None, **more: Any
) -> list[NodeResult]:
    plan = Prefetch(
        nodes, IMAGES, lambda node: SCRIPT + SECRET, Pods(by or Kubectl()), pause=0.01, **more
    )
    return asyncio.run(plan.run(recorder or Recorder()))


def _left(state: Path) -> list[str]:
    """Pods and namespaces in the stub's cluster."""
    found = [one.name for one in (state / "pods").glob("*")]
    return found + ([(state / "namespace").read_text()] if (state / "namespace").exists() else [])


def test_each_cause(state: Path) -> None:
    """The script's own troubles are those of ssh; the others are told of pods and nodes."""
    expected = {
        "good": [],
        "slow": [],
        "full": [Cause.DISK_FULL],
        "killed": [Cause.SCRIPT],  # the exit code of a pod's script is its own
        "noproof": [Cause.NO_PROOF],
        "flood": [Cause.UNREADABLE],
        "none": [Cause.NO_NODE],
        "notready": [Cause.NOT_READY],
        "lost": [Cause.LOST],
        "evicted": [Cause.DISK_FULL],
        "noshell": [Cause.NO_SHELL],
        "noimage": [Cause.NO_IMAGE],
        "oom": [Cause.KILLED],
    }
    results = {result.node: result for result in _run(*expected, attempts=1)}
    assert {n: [f.cause for f in r.failures] for n, r in results.items()} == expected
    assert results["notready"].failures[0].detail == "kubelet is gone"
    assert results["good"].pinned == 2
    assert _left(state) == []


def test_secrets_are_in_no_argument(state: Path) -> None:
    """The script goes into a Secret by standard input; of it the pod knows the name alone."""
    _run("good", "noimage", attempts=1)
    assert "c2VjcmV0" not in (state / "arguments").read_text()
    objects = (state / "objects").read_text()
    made = [json.loads(f"{text}}}") for text in objects.split("\n}\n") if text]
    found = [one for listed in made for one in listed["items"]]
    holding = {one["kind"] for one in found if "c2VjcmV0" in json.dumps(one)}
    assert holding == {"Secret"}
    assert {"Pod", "Namespace", "ServiceAccount"} < {one["kind"] for one in found}
    images = [p["spec"]["containers"][0]["image"] for p in found if p["kind"] == "Pod"]
    assert images == ["a.example/pause:3"] * 2 + ["a.example/small:1"]


def test_lost_node(state: Path) -> None:
    """Its pod is removed by force, since nobody ends it, and that is told."""
    recorder = Recorder()
    (result,) = _run("lost", recorder=recorder, attempts=1)
    assert [one.cause for one in result.failures] == [Cause.LOST]
    (note,) = [text for node, text in recorder.events if not node]
    assert note.startswith("lost: does not answer, so the script may still run there")
    assert _left(state) == []


def test_what_cannot_be_removed_is_told(state: Path) -> None:
    """With the command that removes it."""
    (state / "undeletable").touch()
    recorder = Recorder()
    _run("good", recorder=recorder, by=Kubectl(context="a b"))
    (note,) = [text for node, text in recorder.events if not node]
    (left,) = [name for name in _left(state) if name.startswith("mayfly-")]
    assert note.endswith(f"Remove it with: kubectl --context 'a b' delete namespace {left}")
    assert "the server is busy" in note


def test_cluster_that_refuses(state: Path) -> None:
    """Nothing is begun, and kubectl's message is the error's."""
    (state / "forbidden").touch()
    with pytest.raises(LifetimeError, match="namespaces is forbidden") as caught:
        _run("good")
    assert caught.value.exit_code == Exit.INCOMPLETE


def test_log_that_may_not_be_read(state: Path) -> None:
    """It is not the node's fault, and kubectl's message says what is missing."""
    (state / "forbidden-logs").touch()
    (result,) = _run("good", attempts=1)
    (failure,) = result.failures
    assert failure.cause is Cause.CLUSTER
    assert failure.detail.endswith('cannot get resource "pods/log"')
    assert _left(state) == []


@pytest.mark.parametrize("verb", ["create", "get", "logs", "delete"])
def test_kubectl_that_hangs(state: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """Each question has a bound; what cannot be removed for it is told."""
    for question in (Kubectl.ask, Kubectl.read):
        monkeypatch.setattr(
            question, "__kwdefaults__", (question.__kwdefaults__ or {}) | {"seconds": 1.0}
        )
    for name in ("_SILENT_SECONDS", "_REMOVE_SECONDS"):
        monkeypatch.setattr(pods, name, 1.0)
    (state / f"hang-{verb}").touch()
    recorder = Recorder()
    begun = time.monotonic()
    if verb == "create":
        with pytest.raises(LifetimeError, match="kubectl create -f: no answer in 1 s"):
            _run("good", recorder=recorder)
    else:
        (result,) = _run("good", recorder=recorder, attempts=1, timeout=5.0)
        expected = {"get": Cause.CLUSTER, "logs": Cause.CLUSTER, "delete": None}[verb]
        assert [one.cause for one in result.failures] == ([expected] if expected else [])
    assert time.monotonic() - begun < PATIENCE
    notes = [text for node, text in recorder.events if not node]
    assert len(notes) == (verb == "delete")
    assert all("Remove it with: kubectl delete namespace" in note for note in notes)


@pytest.mark.usefixtures("state")
def test_node_that_is_removed_from_the_cluster() -> None:
    """Its pod may be removed with it; the others continue."""
    gone, good = _run("gone", "good", attempts=1)
    (failure,) = gone.failures
    assert failure.cause is Cause.LOST
    assert failure.detail == "the cluster has no such node any more"
    assert good.proven


def test_what_another_prefetch_left_is_told(state: Path) -> None:
    """It may have been killed, and then nobody else removes it; none of others is to be removed."""
    made = ["mayfly-prefetch-00000000", "mayfly-prefetch-0000000f"]
    labelled = ["kube-system", "mayfly-prefetch-shop", "x-mayfly-prefetch-00000000", "-A"]
    (state / "others").write_text("\n".join([*labelled, *made, ""]))
    recorder = Recorder()
    _run("good", recorder=recorder)
    (note,) = [text for node, text in recorder.events if not node]
    assert "Only if no other mayfly prefetch or mayfly wait runs" in note
    assert note.endswith(f"kubectl delete namespace {' '.join(made)}")
    assert not [one for one in labelled if f" {one}" in note]


def test_a_pod_that_takes_too_long(state: Path) -> None:
    """It is ended and removed."""
    (result,) = _run("hang", timeout=2.0)
    assert [one.cause for one in result.failures] == [Cause.TIMED_OUT]
    assert _left(state) == []


def test_objects_are_valid(tmp_path: Path) -> None:
    """Of each field, by the API's own schema."""
    objects = namespace_objects(PLACE.namespace)
    objects += script_objects(PLACE, FACTS, SECRET, 7200.0)
    path = tmp_path / "objects.yaml"
    path.write_text("\n---\n".join(json.dumps(one) for one in objects))
    validate(path)
    assert json.loads(manifest(objects))["items"] == objects


def test_pod() -> None:
    """It runs wherever the node is bound to it, as root of the node, by an image that is there."""
    secret, pod = script_objects(PLACE, FACTS, SECRET, 7200.0)
    spec, metadata = pod["spec"], pod["metadata"]
    assert spec["nodeName"] == "node-1"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["restartPolicy"] == "Never"
    assert spec["activeDeadlineSeconds"] == 7200
    assert spec["automountServiceAccountToken"] is False
    assert spec["containers"][0]["imagePullPolicy"] == "Never"
    assert "c2VjcmV0" not in json.dumps(pod)
    assert metadata == secret["metadata"]
    host = {
        v["hostPath"]["path"]: v["hostPath"]["type"] for v in spec["volumes"] if "hostPath" in v
    }
    # "Directory": a path that is missing is an error, and is never made.
    assert host == dict.fromkeys(("/", "/bin", "/lib", "/lib64", "/usr"), "Directory")


@pytest.mark.parametrize(
    ("architecture", "distribution", "lib64"),
    [
        ("amd64", "Fedora CoreOS 40", True),
        ("amd64", "Alpine Linux v3.20", False),
        ("arm64", "Ubuntu 24.04", False),
    ],
)
def test_dynamic_linker(architecture: str, distribution: str, lib64: bool) -> None:
    """Its directory is mounted where a node has one."""
    facts = FACTS._replace(architecture=architecture, distribution=distribution)
    _, pod = script_objects(PLACE, facts, SECRET, 60.0)
    paths = [one["mountPath"] for one in pod["spec"]["containers"][0]["volumeMounts"]]
    assert ("/lib64" in paths) is lib64


def test_images_of_a_node() -> None:
    """The pause image first, which stays; then small ones; by tag where there is one."""
    images = [
        {"names": ["b.example/large@sha256:1", "b.example/large:2"], "sizeBytes": 900},
        {"names": ["b.example/small@sha256:3"], "sizeBytes": 3},
        {"names": ["<none>@sha256:4", "<none>:<none>"], "sizeBytes": 1},
        {"names": ["registry.k8s.io/pause@sha256:5", "registry.k8s.io/pause:3.10"]},
        {"names": None},
        {},
    ]
    facts = read_node({"status": {"images": images}})
    expected = ("registry.k8s.io/pause:3.10", "b.example/small@sha256:3", "b.example/large:2")
    assert facts.images == expected
    assert not facts.ready
    assert facts.problem


def _state(state: MadeObject) -> MadeObject:
    """The status of a pod whose script is in a state, beside one that the cluster added."""
    proxy = {"name": "proxy", "state": {"running": {}}}
    return {"containerStatuses": [proxy, {"name": "script", "state": state}]}


@pytest.mark.parametrize(
    ("status", "running", "cause", "code"),
    [
        ({"phase": "Pending"}, False, None, None),
        (_state({"running": {}}), True, None, None),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "x DiskPressure"},
            False,
            "disk_full",
            0,
        ),
        ({"phase": "Failed", "reason": "OutOfpods", "message": "m"}, False, "pod", 0),
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, False, "timed_out", 0),
        (
            {
                "phase": "Failed",
                "reason": "DeadlineExceeded",
                **_state({"terminated": {"exitCode": 143}}),
            },
            True,
            "timed_out",
            143,
        ),
        (_state({"terminated": {"exitCode": 3}}), True, None, 3),
        (_state({"terminated": {"exitCode": "x"}}), True, None, 1),
        (
            _state({"waiting": {"reason": "CreateContainerError"}}),
            False,
            "pod",
            0,
        ),
        (
            _state({"waiting": {"reason": "ContainerCreating"}}),
            False,
            None,
            None,
        ),
    ],
)
def test_states_of_pods(
    status: dict[str, Any], running: bool, cause: str | None, code: int | None
) -> None:
    """As kubelet gives them."""
    found = read_pod({"status": status})
    assert found.running is running
    if code is None:
        assert found.end is None
    else:
        assert found.end is not None
        assert (found.end.cause, found.end.code) == (cause, code)


KEYS = ["status", "items", "state", "terminated", "waiting", "images", "names", "reason"]
KEYS += ["containerStatuses", "conditions", "type", "message", "nodeInfo", "sizeBytes"]

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
        )
    ),
    max_leaves=20,
)


@given(_JSON)
def test_any_document(document: object) -> None:
    """Of whatever types, it is read without an error."""
    read_pod(document)
    read_node(document)
    read_node({"status": document})
    read_pod({"status": {"containerStatuses": [document], "conditions": document}})
    last_warning(document)


@pytest.mark.parametrize("name", ["-x", "a b", "A", "a/b", "a,b", "a\n", "", "a" * 254])
def test_names_that_are_no_nodes(name: str) -> None:
    """An option, or another kind of object, is refused before kubectl is run."""
    with pytest.raises(ConfigError):
        Pods(Kubectl()).check([name])


def test_print(server: Mayfly, state: Path) -> None:
    """The objects, with nodes' credentials, and nothing is made."""
    (state / "some").write_text("good\nhang\n")
    words = ("prefetch", "--state-dir", server.state_dir, "--nodes", state / "some")
    done = mayfly_here(*words, "--via", "kubernetes", "--context", "c", "--print")
    assert done.returncode == 0, done.stderr
    kinds = [one["kind"] for one in json.loads(done.stdout)["items"]]
    assert kinds == ["Namespace", "ServiceAccount", "Secret", "Pod", "Secret", "Pod"]
    asked = (state / "arguments").read_text().splitlines()
    assert all(line.startswith("--context c get node ") for line in asked)
    (state / "some").write_text("notready\n")
    done = mayfly_here(*words, "--via", "kubernetes", "--print")
    assert done.returncode == 3
    assert "notready: its kubelet does not answer: kubelet is gone" in done.stderr


def test_without_kubectl(server: Mayfly, state: Path) -> None:
    """Nothing is begun, and what to install is named."""
    (state / "bin/kubectl").unlink()
    env = {"PATH": str(state / "bin")}
    words = ("prefetch", "--state-dir", server.state_dir, "--via", "kubernetes")
    assert_refused(mayfly_here(*words, env=env), "kubectl: command not found; install kubectl")


def test_command_shows_nothing_unescaped(server: Mayfly, state: Path) -> None:
    """What pods and the cluster print moves no cursor."""
    (state / "some").write_text("hostile\n")
    words = ("prefetch", "--state-dir", server.state_dir, "--nodes", state / "some")
    for more in ((), ("--json",)):
        done = mayfly_here(*words, "--via", "kubernetes", *more)
        assert done.returncode == 3, done.stderr
        texts.check(done.stdout + done.stderr, is_json=bool(more))
        assert "cleared" in done.stdout


def test_options_of_another_way(server: Mayfly) -> None:
    """They are refused rather than ignored."""
    words = ("prefetch", "--state-dir", server.state_dir)
    assert_refused(mayfly_here(*words, "--via", "kubernetes", "--sudo"), "--sudo")
    for option in ("--image", "--context"):
        assert_refused(mayfly_here(*words, option, "x"), option)
    assert_refused(mayfly_here(*words, "--print"), "--print is for --via kubernetes alone")


def test_options_of_the_environment(server: Mayfly, state: Path) -> None:
    """Those of another way may be for other commands, so they are not refused."""
    (state / "some").write_text("good\n")
    words = ("prefetch", "--state-dir", server.state_dir, "--nodes", state / "some")
    env = {"MAYFLY_CONTEXT": "c", "MAYFLY_IMAGE": "x", "MAYFLY_USER": "x"}
    for more in (("--via", "ssh"), ("--via", "kubernetes")):
        done = mayfly_here(*words, *more, "--attempts", "1", env=env)
        assert done.returncode in (0, 3), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_removes_everything(server: Mayfly, state: Path, number: int) -> None:
    """Pod and namespace are gone, and no kubectl stays."""
    (state / "some").write_text("hang\n")
    words = ("prefetch", "--state-dir", server.state_dir, "--nodes", state / "some")
    arguments = state / "arguments"
    with started(*words, "--via", "kubernetes") as running:
        poll(lambda: "logs " in text_of(arguments))
        running.send_signal(number)
        _, errors = running.communicate(timeout=PATIENCE)
    assert running.returncode == 128 + number
    assert "namespace" not in errors
    texts.check(errors)
    assert _left(state) == []


_OF_DELETE = ("delete", "get", "list", "watch")
"""Verbs that kubectl delete needs: it waits for the end of what it removes."""


def _needed(line: str, created: set[str]) -> set[tuple[str, str]]:
    """The verbs and resources that a call of kubectl needs.

    Args:
        line: its arguments.
        created: the resources that all calls of create make.
    """
    verb, *words = line.split()
    if verb == "create":
        return {(verb, resource) for resource in created}
    if verb == "logs":
        return {("get", "pods"), ("get", "pods/log")}
    objects = {f"{word.split('/')[0]}s" for word in words if re.match("(node|pod|secret)/", word)}
    # `get node NAME`, `delete namespace NAME`, or a resource in the plural: all of its objects.
    resources = objects or {f"{words[0].removesuffix('s')}s"}
    if verb == "delete":
        return {(one, resource) for one in _OF_DELETE for resource in resources}
    assert verb == "get", line
    is_list = not objects and words[0].endswith("s")
    return {("list" if is_list else "get", resource) for resource in resources}


def test_page_names_what_kubectl_may_do(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/prefetch.md has each verb on each resource, and no other."""
    monkeypatch.setattr(pods, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(pods, "_START_SECONDS", 0.5)
    _run("good", "lost", "pending", attempts=1)
    objects = (state / "objects").read_text()
    created = {f"{kind.lower()}s" for kind in re.findall('"kind": "([A-Z][A-Za-z]*)"', objects)}
    lines = (state / "arguments").read_text().splitlines()
    needed = set().union(*(_needed(line, created - {"lists"}) for line in lines))
    page = (REPO / "docs/prefetch.md").read_text()
    _, _, table = page.partition("| verbs | resources |\n|---|---|\n")
    rows = [line.split("|") for line in table.partition("\n\n")[0].splitlines()]
    told = {
        (verb.strip(), resource)
        for _, verbs, resources, _ in rows
        for verb in verbs.split(",")
        for resource in re.findall("`([a-z/]+)`", resources)
    }
    assert needed == told
