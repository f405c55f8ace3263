"""Which pods use which images, and which pods would be made next: read from the API's objects."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mayfly.registry.cluster.placement import Placement, placement_of, placement_of_template
from mayfly.registry.nodes.object_fields import Object, mapping, objects, text
from mayfly.storage.errors import DigestInvalid, NameInvalid, TagInvalid
from mayfly.storage.reference import (
    DOCKER_HUB,
    LATEST,
    Reference,
    hub_path,
    is_repository_name,
    split_name,
)

KINDS = (
    "pods",
    "deployments.apps",
    "daemonsets.apps",
    "statefulsets.apps",
    "replicasets.apps",
    "jobs.batch",
    "cronjobs.batch",
    "replicationcontrollers",
)
"""Resources that are read, as kubectl names them."""

_JOB_ENDED = frozenset({"Complete", "Failed", "SuccessCriteriaMet", "FailureTarget"})

_OLD_HUB = "index.docker.io"
"""The name of Docker Hub in old configurations (github.com/distribution/reference)."""

_OF_INIT = ("", "Never", "Always")
"""restartPolicy of init containers that do not restart once they ended; Always is a sidecar's."""


class Policy(StrEnum):
    """An imagePullPolicy."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class Role(StrEnum):
    """The use of an image in a pod."""

    CONTAINER = "container"
    INIT = "init_container"
    EPHEMERAL = "ephemeral_container"
    VOLUME = "image_volume"


class When(StrEnum):
    """When a kubelet will look for an image again."""

    NOW = "now"
    """The container waits for its image, or has not begun."""
    RESTART = "restart"
    """The container restarts."""
    POD_RESTART = "pod_restart"
    """The whole pod restarts, as after a reboot of its node."""
    NEW_POD = "new_pod"
    """A pod is made from the template."""
    SCHEDULE = "schedule"
    """The CronJob's next time."""


class Workload(NamedTuple):
    """A pod, or an object that makes pods."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class ImageUse:
    """An image that a pod has, or that a new pod would have.

    Attributes:
        workload: that has it.
        role: of the image in the pod.
        part: name of the container or the volume.
        written: the image's name in the pod.
        reference: the same, read as docker reads it.
        policy: imagePullPolicy, explicit or by Kubernetes' rule.
        secrets: names of its imagePullSecrets, those of the ServiceAccount included.
        account: UID, namespace and name of the ServiceAccount; the UID is "" if it was not seen.
        when: kubelet will look for it.
        placement: where the pod is or may be.
    """

    workload: Workload
    role: Role
    part: str
    written: str
    reference: Reference
    policy: Policy
    secrets: tuple[str, ...]
    account: tuple[str, str, str]
    when: When
    placement: Placement

    @property
    def repository(self) -> str:
        """The image's name without tag and digest."""
        return f"{self.reference.host}/{self.reference.repository}"

    @property
    def is_short(self) -> bool:
        """Whether the pod leaves out the image's host, or ``library/``."""
        return not self.written.startswith(self.repository)

    def likeness(self) -> tuple[object, ...]:
        """Return a key that is the same for uses in one namespace with the same judgement."""
        return (
            *(self.workload.namespace, self.role, self.part, self.written, self.policy),
            *(self.secrets, self.account, self.placement.key()),
        )


class _Owner(NamedTuple):
    """A pod, as far as it is the same for all of its images."""

    workload: Workload
    secrets: tuple[str, ...]
    account: tuple[str, str, str]
    placement: Placement


class _Part(NamedTuple):
    """A container, or a volume of an image."""

    role: Role
    name: str
    image: str
    policy: str
    is_sidecar: bool


class Account(NamedTuple):
    """A ServiceAccount.

    Attributes:
        uid: another one for an account that was made anew.
        secrets: names of its imagePullSecrets.
    """

    uid: str
    secrets: tuple[str, ...]


_NO_ACCOUNT = Account("", ())

Accounts = Mapping[tuple[str, str], Account]
"""By namespace and name."""


def accounts_of(items: Iterable[Object]) -> Accounts:
    """Read ServiceAccounts."""
    return {
        (text(one, "metadata", "namespace"), text(one, "metadata", "name")): Account(
            text(one, "metadata", "uid"), _names(one)
        )
        for one in items
    }


def uses_of(items: Iterable[Object], accounts: Accounts) -> Iterator[ImageUse]:
    """Yield the images that pods have, and those that new pods would have.

    Args:
        items: objects of `KINDS`, as the API server has them.
        accounts: of all namespaces. Templates get their Secrets; a pod that exists names all of
            its Secrets itself.
    """
    pods, made = [], []
    known: set[tuple[object, ...]] = set()
    idle: set[str] = set()
    for one in items:
        if _makes_nothing(one):
            idle.add(text(one, "metadata", "uid"))
        if text(one, "kind") == "Pod":
            pods.append(one)
        elif _owner(one)[0]:
            made.append(one)
        else:
            for use in _of_template(one, accounts):
                known.add(use.likeness())
                yield use
    # A pod of another object counts where it differs: the owner may not be among the kinds that
    # are read, or be on its way from one revision to the next.
    for use in itertools.chain.from_iterable(_of_template(one, accounts) for one in made):
        if use.likeness() not in known:
            known.add(use.likeness())
            yield use
    for pod in pods:
        yield from _of_pod(pod, accounts)
        for use in _of_successor(pod, accounts, idle):
            if use.likeness() not in known:
                known.add(use.likeness())
                yield use


def _makes_nothing(one: Object) -> bool:
    """Whether no pod is made from an object's template: it has ended, or is an old revision."""
    kind = text(one, "kind")
    if kind == "ReplicaSet":
        return _owner(one)[0] == "apps/Deployment" and mapping(one, "spec").get("replicas") == 0
    return kind == "Job" and any(
        text(condition, "type") in _JOB_ENDED and text(condition, "status") == "True"
        for condition in objects(one, "status", "conditions")
    )


def _of_template(one: Object, accounts: Accounts) -> Iterator[ImageUse]:
    if _makes_nothing(one):
        return
    workload, when, owner_spec = _workload(one), When.NEW_POD, mapping(one, "spec")
    if workload.kind == "CronJob":
        when, owner_spec = When.SCHEDULE, mapping(owner_spec, "jobTemplate", "spec")
    spec = mapping(owner_spec, "template", "spec")
    name = text(spec, "serviceAccountName") or "default"
    found = accounts.get((workload.namespace, name), _NO_ACCOUNT)
    account = (found.uid, workload.namespace, name)
    secrets = _names(spec) or found.secrets
    owner = _Owner(workload, secrets, account, placement_of_template(spec))
    for part in _parts(spec):
        yield from _use(owner, part, when)


def _of_pod(pod: Object, accounts: Accounts) -> Iterator[ImageUse]:
    if _has_ended(pod):
        return
    spec, states = mapping(pod, "spec"), _states(mapping(pod, "status"))
    restarts = _restarts(spec)
    owner = _owner_of_pod(pod, accounts, placement_of(spec))
    for part in _parts(spec):
        state = states.get((part.role, part.name))
        if part.role is Role.VOLUME:
            # It is looked for whenever a container starts.
            state = "waiting" if text(pod, "status", "phase") == "Pending" else "running"
        when = _when(part, state, restarts)
        if when is not None:
            yield from _use(owner, part, when)


def _of_successor(pod: Object, accounts: Accounts, idle: Collection[str]) -> Iterator[ImageUse]:
    """Yield the images of the pod that a pod's owner would make in its place, on any node.

    A pod that is deleted or evicted also has a successor.

    Args:
        idle: UIDs of owners that make no pods.
    """
    kind, uid = _owner(pod)
    # The pod of a Node is static; that of a DaemonSet is made anew on the same node, by a template
    # that is judged.
    if kind in ("", "v1/Node", "apps/DaemonSet") or text(pod, "status", "phase") == "Succeeded":
        return
    if uid and uid in idle:
        return
    spec = mapping(pod, "spec")
    owner = _owner_of_pod(pod, accounts, placement_of({**spec, "nodeName": ""}))
    for part in _parts(spec):
        if part.role is not Role.EPHEMERAL:
            yield from _use(owner, part, When.NEW_POD)


def _owner_of_pod(pod: Object, accounts: Accounts, placement: Placement) -> _Owner:
    workload, spec = _workload(pod), mapping(pod, "spec")
    name = text(spec, "serviceAccountName")
    found = accounts.get((workload.namespace, name), _NO_ACCOUNT)
    return _Owner(workload, _names(spec), (found.uid, workload.namespace, name), placement)


def _workload(one: Object) -> Workload:
    metadata = mapping(one, "metadata")
    return Workload(text(one, "kind"), text(metadata, "namespace"), text(metadata, "name"))


def _restarts(spec: Object) -> bool:
    """Whether a container of a pod that ended may restart, sidecars left out."""
    if text(spec, "restartPolicy") != "Never":
        return True
    # By its own policy or rules (Kubernetes 1.34), which may restart all containers of the pod.
    return any(
        text(one, "restartPolicy") not in without or one.get("restartPolicyRules")
        for key, without in (("containers", ("", "Never")), ("initContainers", _OF_INIT))
        for one in objects(spec, key)
    )


def _when(part: _Part, state: str | None, restarts: bool) -> When | None:
    """Return when kubelet looks for the image of a part again; None for never.

    Args:
        state: ``waiting``, ``running`` or ``terminated``; None if it has none yet.
        restarts: whether the pod's containers restart.
    """
    if state in (None, "waiting"):
        return When.NOW
    if part.role is Role.EPHEMERAL:
        return None
    # A sidecar restarts whatever the pod's other containers do.
    if not restarts and not part.is_sidecar:
        return None
    once = part.role is Role.INIT and not part.is_sidecar
    return When.POD_RESTART if once and state == "terminated" else When.RESTART


def reference_of(image: str) -> Reference | None:
    """Return an image's full name as kubelet and runtimes read it; None if nobody can pull it.

    Runtimes compare names letter by letter. So the host stays as it is written, unlike that of
    `parse_reference`, and of Docker Hub's other names only the one counts that runtimes know.
    """
    try:
        written = split_name(image)
    except (NameInvalid, TagInvalid, DigestInvalid):
        return None
    host = DOCKER_HUB if written.host in (None, _OLD_HUB) else written.host
    path = hub_path(written.path) if host == DOCKER_HUB else written.path
    if not is_repository_name(path):
        return None
    tag = None if written.digest else written.tag or LATEST
    return Reference(host, path, tag, written.digest)


def _use(owner: _Owner, part: _Part, when: When) -> Iterator[ImageUse]:
    reference = reference_of(part.image)
    if reference is None:
        return
    try:
        policy = Policy(part.policy)
    except ValueError:
        policy = Policy.ALWAYS if reference.tag == LATEST else Policy.IF_NOT_PRESENT
    yield ImageUse(
        workload=owner.workload,
        role=part.role,
        part=part.name,
        written=part.image,
        reference=reference,
        policy=policy,
        secrets=owner.secrets,
        account=owner.account,
        when=when,
        placement=owner.placement,
    )


def _parts(spec: Object) -> Iterator[_Part]:
    for role, key in (
        (Role.CONTAINER, "containers"),
        (Role.INIT, "initContainers"),
        (Role.EPHEMERAL, "ephemeralContainers"),
    ):
        for one in objects(spec, key):
            yield _Part(
                role,
                text(one, "name"),
                text(one, "image"),
                text(one, "imagePullPolicy"),
                role is Role.INIT and text(one, "restartPolicy") == "Always",
            )
    mounted = {
        text(mount, "name")
        for key in ("containers", "initContainers", "ephemeralContainers")
        for one in objects(spec, key)
        for mount in objects(one, "volumeMounts")
    }
    for one in objects(spec, "volumes"):
        image = text(one, "image", "reference")
        # kubelet pulls the others too, and does not mind if it cannot.
        if image and text(one, "name") in mounted:
            policy = text(one, "image", "pullPolicy")
            yield _Part(Role.VOLUME, text(one, "name"), image, policy, False)


def _states(status: Object) -> dict[tuple[Role, str], str]:
    found = {}
    for role, key in (
        (Role.CONTAINER, "containerStatuses"),
        (Role.INIT, "initContainerStatuses"),
        (Role.EPHEMERAL, "ephemeralContainerStatuses"),
    ):
        for one in objects(status, key):
            state = next(iter(mapping(one, "state")), "waiting")
            found[(role, text(one, "name"))] = state
    return found


def _names(spec: Object) -> tuple[str, ...]:
    return tuple(text(one, "name") for one in objects(spec, "imagePullSecrets"))


def _owner(one: Object) -> tuple[str, str]:
    """Return kind and UID of the object that controls one; twice "" if none does.

    The kind has its API group, since other projects also have a DaemonSet: "apps/DaemonSet", and
    "v1/Node" for one of Kubernetes' core.
    """
    for owner in objects(one, "metadata", "ownerReferences"):
        if owner.get("controller") is True:
            group = text(owner, "apiVersion").partition("/")[0]
            return f"{group}/{text(owner, 'kind')}", text(owner, "uid")
    return "", ""


def _has_ended(pod: Object) -> bool:
    """Whether a pod starts no container again.

    kubelet runs a static pod as its file says, also without its mirror.
    """
    if _owner(pod)[0] == "v1/Node":
        return False
    is_deleted = "deletionTimestamp" in mapping(pod, "metadata")
    return is_deleted or text(pod, "status", "phase") in ("Succeeded", "Failed")
