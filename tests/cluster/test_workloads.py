"""Pods and templates as the API server has them: which images they use, when, and where."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from mayfly.registry.cluster.placement import (
    ClusterNode,
    cluster_node,
    nodes_named,
    placement_of,
    placement_of_template,
)
from mayfly.registry.cluster.workloads import (
    ImageUse,
    Policy,
    Role,
    When,
    accounts_of,
    reference_of,
    uses_of,
)
from tests.cluster.conftest import HOST, items

NODES = {one["metadata"]["name"]: cluster_node(one) for one in items("nodes")}


def uses(name: str, **accounts: Any) -> list[ImageUse]:
    """The uses of images in one recorded object."""
    found = [one for one in items("workloads") if one["metadata"]["name"] == name]
    assert len(found) == 1
    return [*uses_of(found, accounts_of(accounts.get("accounts", items("serviceaccounts"))))]


def pod(**changes: Any) -> dict[str, Any]:
    """A recorded pod that runs, with another spec or status."""
    (found,) = (one for one in items("workloads") if one["metadata"]["name"] == "vol")
    made = copy.deepcopy(found)
    for part, values in changes.items():
        made[part].update(values)
    return made


@pytest.mark.parametrize(
    ("name", "image", "policy", "when", "secrets"),
    [
        ("pod-1", "team/app:1", Policy.IF_NOT_PRESENT, When.RESTART, ("mayfly",)),
        ("pod-4", "team/app:1", Policy.ALWAYS, When.NOW, ()),
        ("web", "team/app:1", Policy.IF_NOT_PRESENT, When.NEW_POD, ()),
        ("agent", "team/app:latest", Policy.ALWAYS, When.NEW_POD, ()),
        ("db", "team/app:latest", Policy.ALWAYS, When.NEW_POD, ()),
        ("night", "team/app:4", Policy.ALWAYS, When.SCHEDULE, ()),
    ],
)
def test_recorded(
    name: str, image: str, policy: Policy, when: When, secrets: tuple[str, ...]
) -> None:
    """Pods, and the templates of a Deployment, DaemonSet, StatefulSet and CronJob."""
    (use,) = uses(name)
    assert str(use.reference) == f"{HOST}/{image}"
    assert (use.role, use.policy, use.when, use.secrets) == (
        Role.CONTAINER,
        policy,
        when,
        secrets,
    )


def test_image_by_digest() -> None:
    """It has no tag, whatever tag stands before the digest."""
    (use,) = uses("pod-2")
    assert use.reference.tag is None and str(use.reference).startswith(f"{HOST}/team/app@sha256:")


def test_every_part_of_a_pod() -> None:
    """Containers, init and ephemeral containers, and volumes of images that are mounted."""
    found = {(use.role, use.part): use.when for use in uses("vol")}
    unmounted = {(Role.CONTAINER, "c"): When.RESTART, (Role.INIT, "i"): When.POD_RESTART}
    assert found == unmounted
    mounting = pod()
    mounting["spec"]["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "/v"}]
    found = {(use.role, use.part): use.when for use in uses_of([mounting], {})}
    assert found == unmounted | {(Role.VOLUME, "v"): When.RESTART}
    debug = {"name": "d", "image": "busybox"}
    changed = pod(spec={"ephemeralContainers": [debug]})
    (use,) = (one for one in uses_of([changed], {}) if one.role is Role.EPHEMERAL)
    assert (use.when, use.policy) == (When.NOW, Policy.ALWAYS)
    states = [{"name": "d", "state": {"running": {}}}]
    changed["status"]["ephemeralContainerStatuses"] = states
    assert Role.EPHEMERAL not in {one.role for one in uses_of([changed], {})}


def test_what_does_not_start_again() -> None:
    """Pods that have ended or are deleted, and containers of pods that never restart."""
    assert not [*uses_of([pod(status={"phase": "Succeeded"})], {})]
    assert not [*uses_of([pod(metadata={"deletionTimestamp": "2026-11-30T00:00:00Z"})], {})]
    assert not [*uses_of([pod(spec={"restartPolicy": "Never"})], {})]
    sidecar = {"name": "i", "image": "x:1", "restartPolicy": "Always"}
    changed = pod(spec={"restartPolicy": "Never", "initContainers": [sidecar]})
    changed["status"]["initContainerStatuses"] = [{"name": "i", "state": {"running": {}}}]
    assert [use.when for use in uses_of([changed], {})] == [When.RESTART]


def _object(kind: str, name: str, **changes: Any) -> dict[str, Any]:
    """The recorded Deployment as another kind, with another owner, image or spec."""
    (web,) = (one for one in items("workloads") if one["metadata"]["name"] == "web")
    made = copy.deepcopy(web) | {"kind": kind}
    made["metadata"]["name"] = name
    if owner := changes.pop("owner", None):
        reference = {"apiVersion": "apps/v1", "kind": owner, "controller": True}
        made["metadata"]["ownerReferences"] = [reference]
    if image := changes.pop("image", None):
        made["spec"]["template"]["spec"]["containers"][0]["image"] = image
    made["spec"].update(changes.pop("spec", {}))
    return made | changes


def _owned_pod(owner: str, uid: str = "", **changes: Any) -> dict[str, Any]:
    made = pod(**changes)
    group = "" if owner == "Node" else "apps/"
    reference = {"apiVersion": f"{group}v1", "kind": owner, "uid": uid, "controller": True}
    made["metadata"]["ownerReferences"] = [reference]
    made["spec"]["containers"][0]["image"] = "x:1"
    made["spec"] |= {"initContainers": [], "nodeName": "node-1"}
    return made


def test_what_is_made_by_another_is_not_counted_twice() -> None:
    """A ReplicaSet of a Deployment, and its pod."""
    web, owned = _object("Deployment", "web"), _object("ReplicaSet", "web-1", owner="Deployment")
    replica = pod()
    replica["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "controller": True}]
    replica["spec"] = {"nodeName": "node-1", **copy.deepcopy(web["spec"]["template"]["spec"])}
    replica["spec"] |= {"serviceAccountName": "default"}
    replica["spec"]["tolerations"] = [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]
    found = [(use.workload.kind, use.when) for use in uses_of([replica, owned, web], {})]
    assert found == [("Deployment", When.NEW_POD), ("Pod", When.RESTART)]


def test_job_that_has_ended() -> None:
    """It makes no more pods."""
    for status, whens in (("True", []), ("False", [When.NEW_POD])):
        conditions = {"conditions": [{"type": "Complete", "status": status}]}
        job = _object("Job", "web", status=conditions)
        assert [use.when for use in uses_of([job], {})] == whens


def test_old_revisions() -> None:
    """They make pods as long as they have replicas; an active Job keeps to its own template."""
    web = _object("Deployment", "web")
    for replicas, count in ((0, 0), (2, 1)):
        old = _object("ReplicaSet", "old", owner="Deployment", image="x:0")
        old["spec"]["replicas"] = replicas
        found = [use for use in uses_of([web, old], {}) if use.workload.name == "old"]
        assert len(found) == count
    job = _object("Job", "night-1", owner="CronJob", image="x:0")
    assert [use.workload.name for use in uses_of([web, job], {})] == ["web", "night-1"]


def test_owner_of_a_kind_that_is_not_read() -> None:
    """What a custom resource makes is judged: its Deployment, and pods that it would make anew."""
    owned = _object("StatefulSet", "db", owner="Database", image="x:1")
    assert [use.when for use in uses_of([owned], {})] == [When.NEW_POD]
    found = [*uses_of([_owned_pod("Database")], {})]
    assert [use.when for use in found] == [When.RESTART, When.NEW_POD]
    assert [use.placement.node for use in found] == ["node-1", ""]
    for owner in ("Node", "DaemonSet"):  # made anew on the same node
        assert [use.when for use in uses_of([_owned_pod(owner)], {})] == [When.RESTART]
    done = _owned_pod("Database", status={"phase": "Succeeded"})
    assert not [*uses_of([done], {})]
    for owner in ("Node", "DaemonSet"):
        done = _owned_pod(owner, status={"phase": "Succeeded"})
        done["spec"]["restartPolicy"] = "Never"
        assert not [*uses_of([done], {})]


DELETED = {"metadata": {"deletionTimestamp": "2026-11-30T00:00:00Z"}}
EVICTED = {"status": {"phase": "Failed", "reason": "Evicted"}}


@pytest.mark.parametrize("change", [DELETED, EVICTED, DELETED | EVICTED])
@pytest.mark.parametrize("owner", ["Database", "StatefulSet", "ReplicaSet", "Job"])
def test_pods_that_are_replaced(owner: str, change: dict[str, Any]) -> None:
    """A deleted or evicted pod starts nothing again; its owner makes it anew, on any node."""
    assert not [*uses_of([_owned_pod("DaemonSet", **copy.deepcopy(change))], {})]
    # A static pod continues when its mirror is deleted, and a kubelet that starts runs it anew.
    found = [*uses_of([_owned_pod("Node", **copy.deepcopy(change))], {})]
    assert [use.when for use in found] == [When.RESTART]
    (use,) = uses_of([_owned_pod(owner, **copy.deepcopy(change))], {})
    assert (use.when, use.placement.node, use.written) == (When.NEW_POD, "", "x:1")


@pytest.mark.parametrize("owner", ["DaemonSet", "Node"])
@pytest.mark.parametrize("group", ["apps.kruise.io", "apps.example", ""])
def test_owner_of_another_project(owner: str, group: str) -> None:
    """It is not read, so what it makes anew is judged by the pod that there is."""
    one = _owned_pod(owner, metadata=copy.deepcopy(DELETED["metadata"]))
    one["metadata"]["ownerReferences"][0]["apiVersion"] = f"{group}/v1alpha1"
    assert [use.when for use in uses_of([one], {})] == [When.NEW_POD]


def test_deployment_of_another_project() -> None:
    """Its ReplicaSet without replicas may be the next revision."""
    old = _object("ReplicaSet", "old", owner="Deployment", image="x:0", spec={"replicas": 0})
    assert not [*uses_of([old], {})]
    old["metadata"]["ownerReferences"][0]["apiVersion"] = "example.org/v1"
    assert [use.when for use in uses_of([old], {})] == [When.NEW_POD]


@pytest.mark.parametrize("change", [DELETED, EVICTED])
def test_pods_that_nothing_replaces(change: dict[str, Any]) -> None:
    """Those without an owner, of an ended Job, and of a ReplicaSet that was scaled to zero."""
    old = _object("ReplicaSet", "old", owner="Deployment", image="x:0")
    ended = {"conditions": [{"type": "Failed", "status": "True"}]}
    for owner in (old, _object("Job", "job", status=ended, image="x:0")):
        kind, uid = owner["kind"], owner["metadata"]["uid"]
        replaced = _owned_pod(kind, uid, **copy.deepcopy(change))
        for replicas, count in ((0, 0), (1, int(kind == "ReplicaSet"))):
            old["spec"]["replicas"] = replicas
            found = [use for use in uses_of([owner, replaced], {}) if use.written == "x:1"]
            assert len(found) == count
    assert not [*uses_of([pod(**copy.deepcopy(change))], {})]


def test_scaled_to_zero_or_suspended() -> None:
    """Its next pod counts, whenever somebody scales it up or resumes it."""
    idle = _object("Deployment", "web", spec={"replicas": 0})
    assert [use.when for use in uses_of([idle], {})] == [When.NEW_POD]
    (night,) = (one for one in items("workloads") if one["metadata"]["name"] == "night")
    suspended = copy.deepcopy(night)
    suspended["spec"]["suspend"] = True
    assert [use.when for use in uses_of([suspended], {})] == [When.SCHEDULE]


@pytest.mark.parametrize(
    ("part", "change", "restarts"),
    [
        ("containers", {}, False),
        ("containers", {"restartPolicy": "Never"}, False),
        ("containers", {"restartPolicy": "OnFailure"}, True),
        ("containers", {"restartPolicy": "Always"}, True),
        ("containers", {"restartPolicyRules": [{"action": "Restart"}]}, True),
        ("containers", {"restartPolicy": "OfTomorrow"}, True),
        ("initContainers", {"restartPolicy": "OnFailure"}, True),
        ("initContainers", {"restartPolicyRules": [{"action": "RestartAllContainers"}]}, True),
    ],
)
def test_containers_with_a_restart_policy(part: str, change: Any, restarts: bool) -> None:
    """One that may restart in a pod that does not; its rules may restart the others, too."""
    changed = pod(spec={"restartPolicy": "Never"})
    changed["spec"][part][0].update(change)
    assert bool([*uses_of([changed], {})]) is restarts


def test_template_has_the_secrets_of_its_account() -> None:
    """As the API server gives them to its pods; a pod that exists names them itself."""
    account = {
        "metadata": {"name": "default", "namespace": "team"},
        "imagePullSecrets": [{"name": "a"}],
    }
    (use,) = uses("web", accounts=[account])
    assert use.secrets == ("a",)
    (use,) = uses("pod-3", accounts=[account])
    assert use.secrets == ()


def test_other_types_in_a_document() -> None:
    """Fields of other types are left out, and nothing raises."""
    documents: list[dict[str, Any]] = [
        {"kind": "Pod"},
        {"kind": "Pod", "metadata": 7, "spec": [], "status": "x"},
        {"kind": "Deployment", "metadata": {}, "spec": {"template": {"spec": {"containers": 7}}}},
        {"kind": "Pod", "spec": {"containers": [{"image": "A//b"}, {"image": 5}, 7]}},
    ]
    assert not [*uses_of(documents, {})]


def _damaged(document: Any) -> Iterator[Any]:
    """Yield copies of a document, each with one value of another type, one missing or one more."""
    yield from (None, 7, "x", [], [7], {}, {"x": 7})
    if isinstance(document, dict):
        yield document | {"unknown": {"x": [1]}}
        for key, value in document.items():
            yield {name: one for name, one in document.items() if name != key}
            for one in _damaged(value):
                yield document | {key: one}
    elif isinstance(document, list):
        for number, value in enumerate(document):
            for one in _damaged(value):
                yield [*document[:number], one, *document[number + 1 :]]


@pytest.mark.parametrize("name", ["vol", "web", "night"])
def test_any_damage(name: str) -> None:
    """Nothing raises, whatever one value of an object is; unknown fields change nothing."""
    (one,) = (one for one in items("workloads") if one["metadata"]["name"] == name)
    for damaged in _damaged(one):
        for use in uses_of([damaged] if isinstance(damaged, dict) else [], {}):
            assert use.likeness() and [use.placement.fits(node) for node in NODES.values()]
    extended = one | {"unknown": 1, "spec": one["spec"] | {"unknown": {"x": [1]}}}
    assert [*uses_of([extended], {})] == [*uses_of([one], {})]


def test_any_damage_of_nodes() -> None:
    """Nothing raises."""
    for damaged in _damaged(items("nodes")[0]):
        node = cluster_node(damaged)
        assert isinstance(node.name, str) and all(isinstance(one, str) for one in node.addresses)


def test_nodes_by_name_and_address() -> None:
    """A name counts before the address of another node; an address may be that of several."""

    def made(name: str, *addresses: str) -> ClusterNode:
        found = [{"type": "InternalIP", "address": one} for one in addresses]
        return cluster_node({"metadata": {"name": name}, "status": {"addresses": found}})

    nodes = [made("a", "10.0.0.1", "b", "nat"), made("b", "10.0.0.2", "a", "nat"), made("c")]
    for order in (nodes, nodes[::-1]):
        for name, expected in (
            *(("a", "a"), ("b", "b"), ("c", "c"), ("d", "")),
            *(("10.0.0.1", "a"), ("10.0.0.2", "b"), ("nat", "ab")),
        ):
            assert sorted(one.name for one in nodes_named(name, order)) == [*expected]


LABELLED = cluster_node(
    {
        "metadata": {"name": "n", "labels": {"zone": "a", "cores": "8"}},
        "spec": {"taints": [{"key": "only", "value": "db", "effect": "NoSchedule"}]},
    }
)
TOLERATED = [{"key": "only", "operator": "Exists"}]


def _affinity(*expressions: dict[str, Any], fields: Any = ()) -> dict[str, Any]:
    term = {"matchExpressions": [*expressions], "matchFields": [*fields]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return {"affinity": {"nodeAffinity": required}, "tolerations": TOLERATED}


@pytest.mark.parametrize(
    ("spec", "fits"),
    [
        ({}, False),
        ({"nodeName": "n"}, True),
        ({"nodeName": "other"}, False),
        ({"tolerations": TOLERATED}, True),
        ({"tolerations": [{"operator": "Exists"}]}, True),
        ({"tolerations": [{"key": "only", "value": "db"}]}, True),
        ({"tolerations": [{"key": "only", "value": "web"}]}, False),
        ({"tolerations": [{"key": "only", "operator": "Gt", "value": "1"}]}, True),
        ({"tolerations": [{"key": "other", "operator": "Gt", "value": "1"}]}, False),
        ({"tolerations": [{"key": "only", "value": "db", "effect": "NoExecute"}]}, False),
        ({"tolerations": TOLERATED, "nodeSelector": {"zone": "a"}}, True),
        ({"tolerations": TOLERATED, "nodeSelector": {"zone": "b"}}, False),
        (_affinity({"key": "zone", "operator": "In", "values": ["a", "b"]}), True),
        (_affinity({"key": "zone", "operator": "NotIn", "values": ["a"]}), False),
        (_affinity({"key": "disk", "operator": "Exists"}), False),
        (_affinity({"key": "disk", "operator": "DoesNotExist"}), True),
        (_affinity({"key": "cores", "operator": "Gt", "values": ["4"]}), True),
        (_affinity({"key": "cores", "operator": "Lt", "values": ["4"]}), False),
        (_affinity({"key": "cores", "operator": "Gt", "values": ["x"]}), False),
        (_affinity({"key": "zone", "operator": "New"}), True),
        (
            _affinity(fields=[{"key": "metadata.name", "operator": "In", "values": ["n"]}]),
            True,
        ),
        (_affinity(), False),
    ],
)
def test_placement(spec: dict[str, Any], fits: bool) -> None:
    """The scheduler's rules about names, labels and taints of nodes."""
    assert placement_of(spec).fits(LABELLED) is fits


@pytest.mark.parametrize(
    ("more", "fits"),
    [
        ({}, False),
        ({"runtimeClassName": "sandboxed"}, True),
        ({"containers": [{"resources": {"limits": {"gpu.example/one": "1"}}}]}, True),
        ({"initContainers": [{"resources": {"requests": {"gpu.example/one": "1"}}}]}, True),
        ({"containers": [{"resources": {"limits": {"gpu.example/two": "1"}}}]}, False),
        (
            {"containers": [{"resources": {"limits": {"x.kubernetes.io/y": "1", "cpu": "1"}}}]},
            False,
        ),
    ],
)
def test_tolerations_that_new_pods_are_given(more: dict[str, Any], fits: bool) -> None:
    """By a RuntimeClass, and by ExtendedResourceToleration; those of a pod are its own already."""
    taints = [{"key": "gpu.example/one", "effect": "NoSchedule"}]
    node = cluster_node({"metadata": {"name": "gpu"}, "spec": {"taints": taints}})
    assert placement_of_template(more).fits(node) is fits
    assert not placement_of(more).fits(node)
    container = {"name": "c", "image": f"{HOST}/team/app:1"}
    spec = {**more, "containers": [container | one for one in more.get("containers", [{}])]}
    deployment = {"kind": "Deployment", "spec": {"template": {"spec": spec}}}
    (use,) = uses_of([deployment], {})
    assert use.placement.fits(node) is fits


def test_node_that_is_not_ready_counts() -> None:
    """The recorded nodes have its taint; pods may be put there later."""
    assert any("not-ready" in str(taint) for taint in NODES["node-1"].taints)
    (use,) = uses("web")
    assert all(use.placement.fits(node) for node in NODES.values())
    assert NODES["node-1"].addresses == ("10.77.0.11", "node-1")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("x", "docker.io/library/x:latest"),
        ("a/x:1", "docker.io/a/x:1"),
        ("index.docker.io/x:1", "docker.io/library/x:1"),
        ("registry-1.docker.io/library/x:1", "registry-1.docker.io/library/x:1"),
        ("Docker.io/library/x:1", "Docker.io/library/x:1"),
        ("R.example:5000/x:1", "R.example:5000/x:1"),
        (f"r.example/x:1@sha256:{'a' * 64}", f"r.example/x@sha256:{'a' * 64}"),
        ("r.example/X:1", None),
        ("a" * 255, None),
        ("", None),
    ],
)
def test_names_as_runtimes_compare_them(written: str, name: str | None) -> None:
    """By each letter: a node that has r.example/x does not have it as R.example/x."""
    found = reference_of(written)
    assert (None if found is None else str(found)) == name
