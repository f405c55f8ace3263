"""Pods that hold images on nodes whose runtime cannot pin."""

from __future__ import annotations

from typing import Any

import pytest

from mayfly.registry.cluster.holders import (
    NAMESPACE,
    are_settled,
    held_by,
    holders,
    is_holder,
    namespace_of_holders,
)
from mayfly.registry.nodes.pod_objects import NodeFacts

FACTS = NodeFacts(True, "", "linux", "amd64", "Debian GNU/Linux 12", ())
RUNNING = {"running": {"startedAt": "2026-11-30T00:00:00Z"}}


def _holder(**states: Any) -> dict[str, Any]:
    (made,) = holders("node-1", FACTS, ["docker.io/library/x:1", "h:5000/y@sha256:" + "a" * 64])
    statuses = [{"name": name.replace("_", "-"), "state": one} for name, one in states.items()]
    return made | {"status": {"containerStatuses": statuses}}


def test_holders_ask_nobody_and_may_do_nothing() -> None:
    """They pull nothing, have no rights, and stay on a node under pressure and with taints."""
    (pod,) = holders("node-1", FACTS, ["docker.io/library/x:1"])
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
    images = [f"h/x:{n}" for n in range(120)]
    made = [*holders("node-1", FACTS, images)]
    assert [len(pod["spec"]["containers"]) for pod in made] == [50, 50, 20]
    assert [one["image"] for pod in made for one in pod["spec"]["containers"]] == images
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
    assert held_by([pod]) == {"node-1": held}
    assert are_settled([pod]) is settled


def test_other_pods_hold_nothing() -> None:
    """They may be deleted at any time."""
    pod = _holder(image_1=RUNNING, image_2=RUNNING)
    pod["metadata"] = {"namespace": "team"}
    assert (
        held_by([pod, {"kind": "Pod"}, {"kind": "Job", "metadata": {"namespace": NAMESPACE}}]) == {}
    )
