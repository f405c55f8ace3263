"""The objects by which a cluster runs the script of a node, and their states.

For each node there is a pod, bound to it by name, and a Secret with its script, which holds the
node's credential: a kubelet may only read the Secrets of its own pods. Pods bound by name need no
scheduler, and run on nodes that are cordoned. A DaemonSet would give every node's script to every
node.

The pod runs an image that the node has, whose content does not matter: the node's own ``/bin``,
``/lib`` and ``/usr`` are mounted over it, so that its shell and chroot run there. These go to the
node's root, where the script runs as it does over ssh::

    pod                        node
    /bin /lib /lib64 /usr  ◄── the same, read only
    /host                  ◄── /
    /mayfly/script         ◄── the Secret, in memory

Answers of the API server are read with care: types are checked, unknown values ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mayfly.registry.nodes.carrier import ARGUMENTS, ScriptEnd
from mayfly.registry.nodes.causes import Cause, cause_of_pod
from mayfly.registry.nodes.object_fields import Object, mapping, objects, text

MadeObject = dict[str, Any]
"""A Kubernetes object that is made here; those that are read are `Object`."""

ACCOUNT = "mayfly-prefetch"
CONTAINER = "script"
NAME_LABEL = "app.kubernetes.io/name"
LABELS = {NAME_LABEL: "mayfly-prefetch", "app.kubernetes.io/managed-by": "mayfly"}

GRACE_SECONDS = 30
"""For the script to end its pulls and clean up after SIGTERM."""

MAX_SCRIPT = 1024 * 1024
"""Bytes of a Secret's content (Kubernetes API, Secret)."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_COMMAND = 'exec chroot /host /bin/sh -s -- "$@" </mayfly/script'
_DIRECTORIES = ("/bin", "/lib", "/usr")

_LIB64 = frozenset({"amd64", "loong64", "ppc64le"})
"""Architectures on which glibc's dynamic linker lies in ``/lib64``; musl's lies in ``/lib``."""

_MUSL = "Alpine"

_NEVER_STARTS = frozenset(
    {
        *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
        *("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "InvalidImageName"),
    }
)
_NO_IMAGE = "ErrImageNeverPull"
_MAX_CODE = 255
_TEXT = 300


class PodNode(NamedTuple):
    """Facts about a node, as the cluster has them.

    Attributes:
        ready: whether its kubelet answers and runs pods.
        problem: why it is not ready.
        system: such as ``linux``.
        architecture: as images have it.
        distribution: such as ``Debian GNU/Linux 12 (bookworm)``.
        images: that it has, by name, in the order in which to try them: the pause image first,
            which kubelet never removes, then small ones.
    """

    ready: bool
    problem: str
    system: str
    architecture: str
    distribution: str
    images: tuple[str, ...]


class PodState(NamedTuple):
    """How far a pod is.

    Attributes:
        running: whether its container was started.
        end: how it ended; None as long as it may continue.
    """

    running: bool
    end: ScriptEnd | None


def namespace_objects(
    namespace: str, account: str = ACCOUNT, labels: Mapping[str, str] = LABELS
) -> list[MadeObject]:
    """Return a namespace for pods that mount their node, and an account that may do nothing."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": namespace,
                # Clusters may forbid such pods elsewhere.
                "labels": {**labels, "pod-security.kubernetes.io/enforce": "privileged"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": namespace, "labels": labels},
            "automountServiceAccountToken": False,
        },
    ]


class PodPlace(NamedTuple):
    """Where a script runs.

    Attributes:
        namespace: of pod and Secret.
        name: of both.
        node: the node's name.
        image: that the node has.
    """

    namespace: str
    name: str
    node: str
    image: str


def script_objects(
    place: PodPlace, facts: PodNode, script: str, seconds: float
) -> list[MadeObject]:
    """Return the Secret and the pod that run a script on a node.

    Args:
        place: where it runs.
        facts: about the node.
        script: holds the node's credential.
        seconds: it may run; then kubelet ends it, though nobody asks for that any more.
    """
    metadata = {"name": place.name, "namespace": place.namespace, "labels": LABELS}
    volumes, mounts = shell_of_node(facts)
    volumes.append({"name": "root", "hostPath": _directory("/")})
    mounts.append({"name": "root", "mountPath": "/host"})
    volumes.append({"name": "script", "secret": {"secretName": place.name, "defaultMode": 0o400}})
    mounts.append({"name": "script", "mountPath": "/mayfly", "readOnly": True})
    container = {
        "name": CONTAINER,
        "image": place.image,
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", _COMMAND, "sh", *ARGUMENTS],
        "env": [{"name": "PATH", "value": _PATH}],
        "securityContext": {"privileged": True, "runAsUser": 0, "runAsGroup": 0},
        "volumeMounts": mounts,
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "nodeName": place.node,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": max(int(seconds), 1),
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "hostNetwork": True,
            # The script looks for its processes in the node's /proc.
            "hostPID": True,
            "dnsPolicy": "Default",
            "enableServiceLinks": False,
            "serviceAccountName": ACCOUNT,
            "automountServiceAccountToken": False,
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
            "volumes": volumes,
        },
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "immutable": True,
        "stringData": {"script": script},
    }
    return [secret, pod]


def shell_of_node(facts: PodNode) -> tuple[list[MadeObject], list[MadeObject]]:
    """Return volumes and mounts by which a node's own shell runs in any image."""
    directories = list(_DIRECTORIES)
    if facts.architecture in _LIB64 and not facts.distribution.startswith(_MUSL):
        directories.append("/lib64")
    volumes: list[MadeObject] = [
        {"name": one[1:], "hostPath": _directory(one)} for one in directories
    ]
    mounts: list[MadeObject] = [
        {"name": one[1:], "mountPath": one, "readOnly": True} for one in directories
    ]
    return volumes, mounts


def manifest(made: Sequence[MadeObject]) -> bytes:
    """Return objects as one that kubectl reads."""
    value = {"apiVersion": "v1", "kind": "List", "items": list(made)}
    return (json.dumps(value, indent=2) + "\n").encode()


def read_node(document: object) -> PodNode:
    """Return the facts of a Node object."""
    info = mapping(document, "status", "nodeInfo")
    ready, problem = False, "its kubelet has not told that it is ready"
    for condition in objects(document, "status", "conditions"):
        if condition.get("type") == "Ready":
            ready = condition.get("status") == "True"
            problem = _text(condition, "message") or _text(condition, "reason")
    return PodNode(
        ready,
        problem,
        _text(info, "operatingSystem"),
        _text(info, "architecture"),
        _text(info, "osImage"),
        _images(objects(document, "status", "images")),
    )


def problem_of(facts: PodNode) -> ScriptEnd | None:
    """Return the reason that a node can run no pod with its own shell; None without one."""
    if facts.system not in ("", "linux"):
        return ScriptEnd(0, Cause.NO_SHELL, f"it runs {facts.system}")
    return None if facts.ready else ScriptEnd(0, Cause.NOT_READY, facts.problem)


def read_pod(document: object) -> PodState:
    """Return the state of a Pod object."""
    status = mapping(document, "status")
    state: Object = {}
    for one in objects(status, "containerStatuses"):
        # A cluster may add containers to every pod.
        if one.get("name") == CONTAINER:
            state = mapping(one, "state")
    terminated = mapping(state, "terminated")
    if terminated:
        return PodState(running=True, end=_script_end(terminated, status))
    if status.get("phase") in ("Failed", "Succeeded"):
        words = _words(status)
        return PodState(running=False, end=ScriptEnd(0, _cause_of_failure(status), words))
    waiting = mapping(state, "waiting")
    if waiting.get("reason") == _NO_IMAGE:
        return PodState(running=False, end=ScriptEnd(0, Cause.NO_IMAGE, _words(waiting)))
    if waiting.get("reason") in _NEVER_STARTS:
        words = _words(waiting)
        return PodState(running=False, end=ScriptEnd(0, cause_of_pod(words), words))
    return PodState(running="running" in state, end=None)


def bound_node(pod: object) -> str:
    """Return the name of the node that a pod is bound to; "" without one."""
    return _text(pod, "spec", "nodeName")


def last_warning(document: object) -> str:
    """Return the last warning of a list of events; "" without one."""
    warnings = [one for one in objects(document, "items") if one.get("type") == "Warning"]
    return _words(warnings[-1]) if warnings else ""


def items(document: object) -> Iterable[tuple[str, str, Object]]:
    """Yield kind, name and object of each in a list."""
    for one in objects(document, "items"):
        yield _text(one, "kind"), _text(one, "metadata", "name"), one


def _script_end(terminated: Object, status: Object) -> ScriptEnd:
    code = terminated.get("exitCode")
    code = code if isinstance(code, int) and 0 <= code <= _MAX_CODE else 1
    reason, text = terminated.get("reason"), _words(terminated)
    if reason in ("StartError", "ContainerCannotRun"):
        return ScriptEnd(code, cause_of_pod(text), text)
    if reason == "OOMKilled":
        return ScriptEnd(code, Cause.KILLED, text)
    if status.get("reason"):  # kubelet ended the pod
        return ScriptEnd(code, _cause_of_failure(status), _words(status))
    return ScriptEnd(code)


def _cause_of_failure(status: Object) -> Cause:
    return (
        Cause.TIMED_OUT
        if status.get("reason") == "DeadlineExceeded"
        else cause_of_pod(_words(status))
    )


def _images(found: Iterable[Object]) -> tuple[str, ...]:
    """One name of each image, in the order in which to try them."""
    named = []
    for image in found:
        names = image.get("names")
        names = [one for one in names if isinstance(one, str)] if isinstance(names, list) else []
        # A name by tag is the one that people know; <none> is of an image that lost its tag.
        names = sorted((one for one in names if "<none>" not in one), key=lambda one: "@" in one)
        size = image.get("sizeBytes")
        if names:
            is_pause = "/pause" in names[0]
            named.append((not is_pause, size if isinstance(size, int) else 0, names[0]))
    return tuple(name for _, _, name in sorted(named))


def _directory(path: str) -> MadeObject:
    # With this type kubelet never makes a directory that the node lacks.
    return {"path": path, "type": "Directory"}


def _words(found: Object) -> str:
    """Reason and message of a status or an event."""
    words = (_text(found, "reason"), _text(found, "message"))
    return ": ".join(word for word in words if word)


def _text(value: object, *path: str) -> str:
    """Return the begin of a text that a cluster's document has; "" if there is none."""
    return text(value, *path)[:_TEXT]
