"""Pods that hold images on nodes whose runtime cannot pin.

kubelet collects no image that a container of a pod uses. A holder is a pod that is bound to a node
and has a container for each image, in which the node's own shell sleeps: whatever the image is, as
in `registry.nodes.pod_objects`. Holders are critical pods, which kubelet does not evict from a node
under pressure, and stay until their namespace is removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mayfly.registry.cluster.facts import ImageOnNode
from mayfly.registry.cluster.workloads import reference_of
from mayfly.registry.nodes.object_fields import Object, mapping, objects, text
from mayfly.registry.nodes.pod_objects import PodNode, namespace_objects, shell_of_node

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


def holders(node: str, facts: PodNode, images: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield pods that hold images on a node.

    Args:
        images: full name → ID on the node.
    """
    names = [*images]
    volumes, mounts = shell_of_node(facts)
    for begin in range(0, len(names), _IMAGES_PER_POD):
        some = names[begin : begin + _IMAGES_PER_POD]
        # The same images have the same pod, however often they are to be held; a tag that has moved
        # to another image has another pod.
        ids = (images[name] for name in some)
        digest = hashlib.sha256("\n".join((node, *some, *ids)).encode()).hexdigest()
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


def held_by(
    items: Iterable[Object], images: Mapping[str, Mapping[str, ImageOnNode]]
) -> Mapping[str, frozenset[str]]:
    """Return the images that holders keep: node → full names.

    Args:
        images: node → full name, by tag or digest → image that it has by this name. An image of
            another node is not known to be held.
    """
    found: dict[str, set[str]] = {}
    for pod in filter(_stays, items):
        node = text(pod, "spec", "nodeName")
        named = {
            text(one, "name"): text(one, "image") for one in objects(pod, "spec", "containers")
        }
        held = found.setdefault(node, set())
        for one in objects(pod, "status", "containerStatuses"):
            reference = reference_of(named.get(text(one, "name"), ""))
            if reference is None or "running" not in mapping(one, "state"):
                continue
            if _is_image(text(one, "imageID"), str(reference), images.get(node, {})):
                held.add(str(reference))
    return {node: frozenset(names) for node, names in found.items()}


def _stays(one: Object) -> bool:
    """Whether an object is a holder that has not ended, and that nobody has deleted."""
    return (
        is_holder(one)
        and "deletionTimestamp" not in mapping(one, "metadata")
        and text(one, "status", "phase") not in ("Failed", "Succeeded")
    )


def gone_or_going(items: Iterable[Object], made: Iterable[Object]) -> list[str]:
    """Return the names of holders that have to be removed before those are made.

    Kubernetes starts no pod again that has ended, as one that kubelet evicted.
    """
    there = {text(one, "metadata", "name") for one in items if is_holder(one) and not _stays(one)}
    return sorted(there & {text(one, "metadata", "name") for one in made})


def _is_image(used: str, name: str, images: Mapping[str, ImageOnNode]) -> bool:
    """Whether a container runs the image that its node now has by a name.

    Args:
        used: imageID of the container: an ID or a name by digest, which docker writes as a URL.
    """
    expected = images.get(name)
    if expected is None or not expected.id:
        return False
    used = used.rpartition("://")[2]
    if used.removeprefix("sha256:") == expected.id.removeprefix("sha256:"):
        return True
    reference = reference_of(used)
    by_digest = images.get(str(reference)) if reference and reference.digest else None
    return by_digest is not None and by_digest.id == expected.id


def are_settled(items: Iterable[Object]) -> bool:
    """Whether each container of each holder that stays runs, or will not."""
    return all(
        any(
            text(status, "name") == text(one, "name")
            and (
                "running" in mapping(status, "state")
                or text(status, "state", "waiting", "reason") in _FAILED
            )
            for status in objects(pod, "status", "containerStatuses")
        )
        for pod in filter(_stays, items)
        for one in objects(pod, "spec", "containers")
    )
