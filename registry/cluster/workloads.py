"""Which pods use which images, and which pods would be made next: read from the API's objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mayfly.registry.cluster.fields import Object, mapping, objects, text
from mayfly.registry.cluster.placement import Placement, placement_of
from mayfly.storage.errors import DigestInvalid, NameInvalid, TagInvalid
from mayfly.storage.reference import LATEST, Reference, parse_reference

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

_ENDED = frozenset({"Succeeded", "Failed"})
_JOB_ENDED = frozenset({"Complete", "Failed", "SuccessCriteriaMet", "FailureTarget"})


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
    """A pod, or what makes pods."""

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
        account: name of the ServiceAccount.
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
    account: str
    when: When
    placement: Placement


class _Owner(NamedTuple):
    """A pod, as far as it is the same for all of its images."""

    workload: Workload
    secrets: tuple[str, ...]
    account: str
    placement: Placement


class _Part(NamedTuple):
    """A container, or a volume of an image."""

    role: Role
    name: str
    image: str
    policy: str
    is_sidecar: bool


Accounts = Mapping[tuple[str, str], tuple[str, ...]]
"""Namespace and name of a ServiceAccount → names of its imagePullSecrets."""


def accounts_of(items: Iterable[Object]) -> Accounts:
    """Return the imagePullSecrets of ServiceAccounts."""
    return {
        (text(one, "metadata", "namespace"), text(one, "metadata", "name")): _names(one)
        for one in items
    }


def uses_of(items: Iterable[Object], accounts: Accounts) -> Iterator[ImageUse]:
    """Yield the images that pods have, and those that new pods would have.

    Args:
        items: objects of `KINDS`, as the API server has them.
        accounts: for templates; a pod that exists names all of its Secrets itself.
    """
    for one in items:
        kind, metadata = text(one, "kind"), mapping(one, "metadata")
        workload = Workload(kind, text(metadata, "namespace"), text(metadata, "name"))
        if kind == "Pod":
            yield from _of_pod(workload, one)
        # What another object makes is made from that one's template next time.
        elif not _is_controlled(metadata) and not _has_ended(one):
            yield from _of_template(workload, one, accounts)


def _of_template(workload: Workload, one: Object, accounts: Accounts) -> Iterator[ImageUse]:
    when, owner_spec = When.NEW_POD, mapping(one, "spec")
    if workload.kind == "CronJob":
        when, owner_spec = When.SCHEDULE, mapping(owner_spec, "jobTemplate", "spec")
    spec = mapping(owner_spec, "template", "spec")
    account = text(spec, "serviceAccountName") or "default"
    secrets = _names(spec) or accounts.get((workload.namespace, account), ())
    owner = _Owner(workload, secrets, account, placement_of(spec))
    for part in _parts(spec):
        yield from _use(owner, part, when)


def _of_pod(workload: Workload, pod: Object) -> Iterator[ImageUse]:
    phase = text(pod, "status", "phase")
    if phase in _ENDED or "deletionTimestamp" in mapping(pod, "metadata"):
        return
    spec, states = mapping(pod, "spec"), _states(mapping(pod, "status"))
    restarts = text(spec, "restartPolicy") != "Never"
    account = text(spec, "serviceAccountName")
    owner = _Owner(workload, _names(spec), account, placement_of(spec))
    for part in _parts(spec):
        state = states.get((part.role, part.name))
        if part.role is Role.VOLUME:
            # It is looked for whenever a container starts.
            state = "waiting" if phase == "Pending" else "running"
        when = _when(part, state, restarts)
        if when is not None:
            yield from _use(owner, part, when)


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


def _use(owner: _Owner, part: _Part, when: When) -> Iterator[ImageUse]:
    try:
        reference = parse_reference(part.image)
    except (NameInvalid, TagInvalid, DigestInvalid):
        return  # no kubelet can pull it from anywhere
    if reference.tag is None and reference.digest is None:
        reference = reference._replace(tag=LATEST)
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


def _is_controlled(metadata: Object) -> bool:
    return any(one.get("controller") is True for one in objects(metadata, "ownerReferences"))


def _has_ended(one: Object) -> bool:
    return text(one, "kind") == "Job" and any(
        text(condition, "type") in _JOB_ENDED and text(condition, "status") == "True"
        for condition in objects(one, "status", "conditions")
    )
