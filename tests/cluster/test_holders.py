"""Pods that hold images on nodes whose runtime cannot pin."""

from __future__ import annotations

from typing import Any

import pytest

from mayfly.registry.cluster.facts import ImageOnNode
from mayfly.registry.cluster.holders import (
    NAMESPACE,
    are_settled,
    gone_or_going,
    held_by,
    holders,
    is_holder,
    namespace_of_holders,
)
from mayfly.registry.nodes.pod_objects import PodNode

FACTS = PodNode(True, "", "linux", "amd64", "Debian GNU/Linux 12", ())
RUNNING = {"running": {"startedAt": "2026-11-30T00:00:00Z"}}


X, Y = "docker.io/library/x:1", "h:5000/y@sha256:" + "a" * 64
IMAGES = {X: ImageOnNode("sha256:" + "1" * 64, False), Y: ImageOnNode("sha256:" + "2" * 64, False)}
USED = {"image_1": IMAGES[X].id, "image_2": Y}


def _holder(**states: Any) -> dict[str, Any]:
    (made,) = holders("node-1", FACTS, {name: one.id for name, one in IMAGES.items()})
    statuses = [
        {"name": name.replace("_", "-"), "imageID": USED[name], "state": one}
        for name, one in states.items()
    ]
    return made | {"status": {"containerStatuses": statuses}}


def test_holders_ask_nobody_and_may_do_nothing() -> None:
    """They pull nothing, have no rights, and stay on a node under pressure and with taints."""
    (pod,) = holders("node-1", FACTS, {X: "i"})
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    assert container["imagePullPolicy"] == "Never"
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert all(mount["readOnly"] for mount in container["volumeMounts"])
    assert "/" not in {volume["hostPath"]["path"] for volume in spec["volumes"]}
    assert spec["automountServiceAccountToken"] is False
    assert (spec["priorityClassName"], spec["nodeName"]) == ("system-node-critical", "node-1")
    namespace, account = namespace_of_holders()
    assert namespace["metadata"]["name"] == account["metadata"]["namespace"] == NAMESPACE


def test_many_images_are_several_pods() -> None:
    """Each image is in one of them."""
    images = {f"h/x:{n}": f"i{n}" for n in range(120)}
    made = [*holders("node-1", FACTS, images)]
    assert [len(pod["spec"]["containers"]) for pod in made] == [50, 50, 20]
    assert [one["image"] for pod in made for one in pod["spec"]["containers"]] == [*images]
    names = [pod["metadata"]["name"] for pod in made]
    assert len({*names}) == 3
    assert [pod["metadata"]["name"] for pod in holders("node-1", FACTS, images)] == names
    assert names[0] not in {pod["metadata"]["name"] for pod in holders("node-2", FACTS, images)}


@pytest.mark.parametrize(
    ("states", "held", "settled"),
    [
        ({}, set(), False),
        ({"image_1": RUNNING}, {"docker.io/library/x:1"}, False),
        (
            {"image_1": RUNNING, "image_2": {"waiting": {"reason": "ErrImageNeverPull"}}},
            {"docker.io/library/x:1"},
            True,
        ),
        ({"image_1": RUNNING, "image_2": {"waiting": {}}}, {"docker.io/library/x:1"}, False),
        ({"image_1": {"terminated": {}}, "image_2": {"waiting": {}}}, set(), False),
        (
            {"image_1": RUNNING, "image_2": RUNNING},
            {"docker.io/library/x:1", "h:5000/y@sha256:" + "a" * 64},
            True,
        ),
    ],
)
def test_images_of_containers_that_run_are_held(
    states: dict[str, Any], held: set[str], settled: bool
) -> None:
    """Others may be collected."""
    pod = _holder(**states)
    assert is_holder(pod)
    assert held_by([pod], {"node-1": IMAGES}) == {"node-1": held}
    assert are_settled([pod]) is settled


def test_other_pods_hold_nothing() -> None:
    """They may be deleted at any time."""
    pod = _holder(image_1=RUNNING, image_2=RUNNING)
    pod["metadata"] = {"namespace": "team"}
    others = [pod, {"kind": "Pod"}, {"kind": "Job", "metadata": {"namespace": NAMESPACE}}]
    assert held_by(others, {"node-1": IMAGES}) == {}


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_ended_holders_hold_nothing(phase: str) -> None:
    """As one that was evicted, whatever kubelet last said of its containers: it is made anew."""
    pod = _holder(image_1=RUNNING, image_2={"waiting": {}})
    name = pod["metadata"]["name"]
    assert not are_settled([pod]) and gone_or_going([pod], [pod]) == []
    pod["status"]["phase"] = phase
    assert held_by([pod], {"node-1": IMAGES}) == {}
    assert are_settled([pod])
    assert gone_or_going([pod], [pod]) == [name]
    assert gone_or_going([pod], []) == gone_or_going([], [pod]) == []


def test_deleted_holders_hold_nothing() -> None:
    """Their containers may run for another second; nobody waits for them."""
    pod = _holder(image_1=RUNNING, image_2={"waiting": {}})
    pod["metadata"] |= {"deletionTimestamp": "2026-11-30T00:00:00Z"}
    assert held_by([pod], {"node-1": IMAGES}) == {}
    assert are_settled([pod])
    assert gone_or_going([pod], [pod]) == [pod["metadata"]["name"]]


@pytest.mark.parametrize(
    ("used", "is_held"),
    [
        ("sha256:" + "1" * 64, True),
        ("1" * 64, True),
        ("docker://sha256:" + "1" * 64, True),
        ("library/x@sha256:" + "c" * 64, True),
        ("docker-pullable://x@sha256:" + "c" * 64, True),
        ("h:5000/y@sha256:" + "a" * 64, False),
        ("x:1", False),  # a tag may have moved
        ("sha256:" + "3" * 64, False),
        ("x@sha256:" + "d" * 64, False),
        ("", False),
    ],
)
def test_tag_that_has_moved(used: str, is_held: bool) -> None:
    """A container holds the image that it runs, not one that has its name now."""
    pod = _holder(image_1=RUNNING)
    pod["status"]["containerStatuses"][0]["imageID"] = used
    images = IMAGES | {"docker.io/library/x@sha256:" + "c" * 64: IMAGES[X]}
    assert held_by([pod], {"node-1": images})["node-1"] == ({X} if is_held else set())
    others: list[dict[str, dict[str, ImageOnNode]]] = [{}, {"node-2": images}, {"node-1": {}}]
    for unseen in others:
        assert not held_by([pod], unseen)["node-1"]
    names = {one["metadata"]["name"] for n in "12" for one in holders("node-1", FACTS, {X: n})}
    assert len(names) == 2
