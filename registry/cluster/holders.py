"""Pods that hold images on nodes whose runtime cannot pin.

kubelet collects no image that a container of a pod uses. A holder is a pod that is bound to a node
and has a container for each image, in which the node's own shell sleeps: whatever the image is, as
in `registry.nodes.pod_objects`. Holders are critical pods, which kubelet does not evict from a node
under pressure, and stay until their namespace is removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mayfly.registry.cluster.fields import Object, mapping, objects, text
from mayfly.registry.cluster.workloads import reference_of
from mayfly.registry.nodes.pod_objects import NodeFacts, namespace_objects, shell_of_node

NAMESPACE = "mayfly-hold"

_LABELS = {"app.kubernetes.io/name": "mayfly-hold", "app.kubernetes.io/managed-by": "mayfly"}

_IMAGES_PER_POD = 50

_COMMAND = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done"

_FAILED = frozenset(
    {
        *("ErrImageNeverPull", "ImageInspectError", "InvalidImageName", "CreateContainerError"),
        *("CreateContainerConfigError", "RunContainerError", "CrashLoopBackOff"),
    }
)


def namespace_of_holders() -> list[dict[str, Any]]:
    """Return the namespace, and an account for its pods that may do nothing."""
    return namespace_objects(NAMESPACE, NAMESPACE, _LABELS)


def holders(node: str, facts: NodeFacts, images: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield pods that hold images on a node.

    Args:
        images: by their full names.
    """
    volumes, mounts = shell_of_node(facts)
    for begin in range(0, len(images), _IMAGES_PER_POD):
        some = images[begin : begin + _IMAGES_PER_POD]
        # The same images have the same pod, however often they are to be held.
        digest = hashlib.sha256("\n".join((node, *some)).encode()).hexdigest()
        containers = [
            {
                "name": f"image-{number}",
                "image": image,
                "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", _COMMAND],
                "securityContext": {
                    "runAsUser": 65534,
                    "runAsGroup": 65534,
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": mounts,
            }
            for number, image in enumerate(some, 1)
        ]
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"hold-{digest[:16]}",
                "namespace": NAMESPACE,
                "labels": _LABELS,
            },
            "spec": {
                "nodeName": node,
                "hostNetwork": True,
                "enableServiceLinks": False,
                "serviceAccountName": NAMESPACE,
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 1,
                "priorityClassName": "system-node-critical",
                "tolerations": [{"operator": "Exists"}],
                "containers": containers,
                "volumes": volumes,
            },
        }


def is_holder(one: Object) -> bool:
    """Whether an object of the API is a holder."""
    return text(one, "kind") == "Pod" and text(one, "metadata", "namespace") == NAMESPACE


def held_by(items: Iterable[Object]) -> Mapping[str, frozenset[str]]:
    """Return the images that holders keep: node → full names."""
    found: dict[str, set[str]] = {}
    for pod in filter(is_holder, items):
        images = {
            text(one, "name"): text(one, "image") for one in objects(pod, "spec", "containers")
        }
        held = found.setdefault(text(pod, "spec", "nodeName"), set())
        for one in objects(pod, "status", "containerStatuses"):
            reference = reference_of(images.get(text(one, "name"), ""))
            if reference is not None and "running" in mapping(one, "state"):
                held.add(str(reference))
    return {node: frozenset(images) for node, images in found.items()}


def are_settled(items: Iterable[Object]) -> bool:
    """Whether each container of each holder runs, or will not."""
    return all(
        any(
            text(status, "name") == text(one, "name")
            and (
                "running" in mapping(status, "state")
                or text(status, "state", "waiting", "reason") in _FAILED
            )
            for status in objects(pod, "status", "containerStatuses")
        )
        for pod in filter(is_holder, items)
        for one in objects(pod, "spec", "containers")
    )
