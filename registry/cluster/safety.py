"""Judge whether the registry may end: which pod on which node would then fail, and when.

Nothing counts as safe that was not seen: a missing fact that a judgement needs is an `Unseen`. The
images that are judged are those of the upgrade's list, and others that this registry has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mayfly.registry.cluster.facts import ImageOnNode, NodeFacts
from mayfly.registry.cluster.kubelet import (
    EVERYBODY,
    Access,
    Credential,
    Image,
    PullPolicy,
    Verification,
    access_of,
)
from mayfly.registry.cluster.placement import ClusterNode, Placement
from mayfly.registry.cluster.secrets import credentials_for
from mayfly.registry.cluster.workloads import ImageUse, Policy, Role, When, Workload
from mayfly.registry.nodes.object_fields import Object


class Trouble(StrEnum):
    """Why a pod would fail, or an image may go."""

    NOT_PROVEN = "not_proven"
    NOT_PINNED = "not_pinned"
    ALWAYS = "always_pulls"
    ABSENT = "absent"
    CREDENTIALS = "other_credentials"


TROUBLES: Mapping[Trouble, tuple[str, str]] = {
    Trouble.NOT_PROVEN: (
        "it has not proved every image",
        "run mayfly prefetch; mayfly status shows which node lacks which image",
    ),
    Trouble.NOT_PINNED: (
        "images are not pinned, so kubelet removes them once its disk is fuller than "
        "imageGCHighThresholdPercent, or at their imageMaximumGCAge",
        "run mayfly prefetch --again; where the runtime knows no pins, as containerd before 1.7, "
        "use --hold",
    ),
    Trouble.ALWAYS: (
        "imagePullPolicy Always asks the registry at every start",
        "set imagePullPolicy: IfNotPresent (the default with a tag other than latest)",
    ),
    Trouble.ABSENT: (
        "the node does not have the image by this name",
        "run mayfly prefetch --again, with the image in the list of images and its node in the "
        "list of nodes",
    ),
    Trouble.CREDENTIALS: (
        "kubelet pulled the image with other credentials, and asks the registry about this pod's",
        "give the pod a Secret that the image was pulled with, or allow the image on the node by "
        "the configuration below",
    ),
}
"""Trouble → its meaning, and the remedy."""


class Gap(StrEnum):
    """A kind of fact that could not be seen."""

    NO_KUBECTL = "no_kubectl"
    NO_CLUSTER = "no_cluster"
    FORBIDDEN = "forbidden"
    FAILED = "failed"
    UNKNOWN_NODE = "unknown_node"
    NODE = "node"
    KUBELET = "kubelet"
    NO_NODE = "no_node"
    CHANGING = "changing"
    IMAGES = "images"
    RECORDS = "records"
    POLICY = "policy"
    SECRETS = "secrets"


GAPS: Mapping[Gap, tuple[str, str]] = {
    Gap.NO_KUBECTL: (
        "pods were not seen: there is no kubectl",
        "install kubectl here, or say with --no-kubernetes that the nodes are in no cluster",
    ),
    Gap.NO_CLUSTER: (
        "pods were not seen: the cluster was not reached",
        "name the kubeconfig with --kubeconfig or KUBECONFIG; kubectl get pods has to work",
    ),
    Gap.FORBIDDEN: (
        "it was not seen: the cluster does not allow it",
        "use a kubeconfig that may read nodes, nodes/proxy, pods, workloads, serviceaccounts and "
        "secrets",
    ),
    Gap.FAILED: (
        "it was not seen: kubectl failed",
        "fix the problem that kubectl names, and run this again",
    ),
    Gap.UNKNOWN_NODE: (
        "the cluster has no node of this name, and none or several of this address",
        "name nodes as the cluster does, or use --no-kubernetes",
    ),
    Gap.NODE: (
        "the node was not seen",
        "fix the problem that the message names, and run this again",
    ),
    Gap.KUBELET: (
        "the node has a kubelet, and pods were not looked at",
        "leave out --no-kubernetes",
    ),
    Gap.NO_NODE: (
        "whether the pod would start was not seen, since it waits for a node that it fits on",
        "add the node and run mayfly prefetch, or delete the pod",
    ),
    Gap.CHANGING: (
        "pods changed during each of three looks",
        "run this again once the rollout has ended",
    ),
    Gap.IMAGES: (
        "which images the node has was not seen",
        "use --via ssh or kubernetes, install crictl on the node, and let the kubeconfig read "
        "nodes/proxy, where kubelet names its runtime",
    ),
    Gap.RECORDS: (
        "kubelet's records of pulls were not seen",
        "use --via ssh as root or --via kubernetes, or set "
        "imagePullCredentialsVerificationPolicy: NeverVerify",
    ),
    Gap.POLICY: (
        "kubelet's configuration was not seen",
        "use a kubeconfig that may read nodes/proxy",
    ),
    Gap.SECRETS: (
        "the Secrets of its pods were not seen",
        "use a kubeconfig that may read the Secrets that the pods name",
    ),
}
"""Gap → its meaning, and the remedy."""


MAX_PATTERNS = 1000
"""Lines of a ``preloadedImagesVerificationAllowlist`` that are printed for a node, at most."""


class Finding(NamedTuple):
    """Something that would fail.

    Attributes:
        nodes: on which; none for a template that fits no node now.
        images: by their full names.
        workload: the pod or the object that makes pods; None for a finding about nodes.
        role, part: of the image in the pod; None without a workload.
        when: it would fail; None without a workload.
        detail: further facts.
    """

    code: Trouble
    nodes: tuple[str, ...]
    images: tuple[str, ...]
    workload: Workload | None = None
    role: Role | None = None
    part: str | None = None
    when: When | None = None
    detail: str = ""


class Unseen(NamedTuple):
    """Something that was needed and could not be seen.

    Attributes:
        node: None if it is about the cluster.
        detail: the message of a program, which may be hostile; a namespace.
    """

    code: Gap
    node: str | None = None
    detail: str = ""


class Allowlist(NamedTuple):
    """The configuration that a kubelet needs for pods with other credentials.

    Attributes:
        policy: `Verification.NOT_LISTED`; or `Verification.NEVER` where pods write images by short
            names, which no pattern matches in Kubernetes 1.35, and for more than `MAX_PATTERNS`.
        patterns: all of ``preloadedImagesVerificationAllowlist``.
    """

    node: str
    policy: Verification
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Safety:
    """The judgement.

    Attributes:
        held: node and the images that holders keep there, by their full names.
    """

    findings: tuple[Finding, ...]
    unseen: tuple[Unseen, ...]
    allowlists: tuple[Allowlist, ...] = ()
    held: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def is_safe(self) -> bool:
        """Whether nothing would fail, and all was seen."""
        return not self.findings and not self.unseen


@dataclass(frozen=True, slots=True)
class Proofs:
    """The proofs of nodes, as the registry knows them.

    Attributes:
        lacking: node → images that it has not proved, by their full names; every node is a key.
        unpinned: nodes whose proof has images that are not pinned.
        unknown: number of nodes that are waited for and not known yet.
    """

    lacking: Mapping[str, tuple[str, ...]]
    unpinned: frozenset[str]
    unknown: int


@dataclass(frozen=True, slots=True)
class NodeView:
    """All that is known of one node.

    Attributes:
        name: in the cluster; for another node, as the registry has it.
        cluster: None if the cluster does not have it.
        is_listed: whether it is among the nodes of the upgrade.
        lacking: images that it has not proved.
        is_pinned: whether its proof says that all are pinned.
        facts: None if it was not read.
        policy: of its kubelet; None if unknown.
        held: images that holders keep on it.
    """

    name: str
    cluster: ClusterNode | None
    is_listed: bool
    lacking: frozenset[str]
    is_pinned: bool
    facts: NodeFacts | None
    policy: PullPolicy | None
    held: frozenset[str] = frozenset()

    @property
    def images(self) -> Mapping[str, ImageOnNode] | None:
        """The images that its kubelet's runtime lists; None if that was not seen."""
        return None if self.facts is None else self.facts.images

    def has(self, name: str, listed: Collection[str]) -> bool | None:
        """Whether the node has an image by a name; None if that was not seen.

        A proof counts only for a node that was not read: it may be of another runtime than
        kubelet's.

        Args:
            listed: images of the upgrade.
        """
        if self.images is not None:
            return name in self.images
        if self.facts is not None:
            return None
        if self.is_listed and name in listed:
            return name not in self.lacking
        return None

    def may_lose(self) -> bool:
        """Whether it may have a kubelet, which removes images that are not pinned."""
        if self.cluster is not None:
            return True
        return self.facts is not None and self.facts.has_kubelet is not False


Secrets = Callable[[str, str], Object | None]
"""Returns a Secret by namespace and name, an empty object for one that does not exist.

None if it could not be seen.
"""

_Credentials = Callable[[str, tuple[str, ...], str], tuple[list[Credential], bool]]
"""Returns the logins of Secrets by namespace and names for a repository, and whether all of them
could be seen."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges pods on nodes.

    Args:
        images: of the upgrade, by their full names.
        nodes: all of them.
        short_names: places of pods that write any image by a short name.
    """

    images: frozenset[str]
    nodes: Sequence[NodeView]
    short_names: Sequence[Placement] = ()

    def needed_secrets(self, uses: Iterable[ImageUse]) -> Iterator[tuple[str, str]]:
        """Yield namespace and name of each Secret that a judgement depends on."""
        for use in uses:
            for node in self._nodes_of(use):
                access = self._access(use, node)
                if isinstance(access, Access) and access.by_secrets:
                    yield from ((use.workload.namespace, name) for name in use.secrets)

    def judge(self, uses: Sequence[ImageUse], proofs: Proofs, secrets: Secrets) -> Safety:
        """Judge nodes and pods."""
        findings = [*self._of_proofs(proofs), *self._of_lists(), *self._of_pins(uses)]
        unseen = dict.fromkeys(self._without_list())

        @functools.cache
        def credentials(
            namespace: str, names: tuple[str, ...], repository: str
        ) -> tuple[list[Credential], bool]:
            known = [secrets(namespace, one) for one in names]
            seen = [one for one in known if one is not None]
            return credentials_for(repository, seen), len(seen) == len(known)

        for use in uses:
            nodes = [*self._nodes_of(use)]
            found: dict[Trouble, list[str]] = {}
            if use.policy is Policy.ALWAYS:
                found[Trouble.ALWAYS] = [node.name for node in nodes]
            elif not nodes:
                if gap := self._without_node(use):
                    unseen[gap] = None
            else:
                for node in nodes:
                    trouble = self._of_pod(use, node, credentials)
                    if isinstance(trouble, Unseen):
                        unseen[trouble] = None
                    elif trouble is not None:
                        found.setdefault(trouble, []).append(node.name)
            for code, names in found.items():
                where = (use.workload, use.role, use.part, use.when)
                findings.append(Finding(code, tuple(names), (str(use.reference),), *where))
        return Safety(tuple(findings), tuple(unseen), tuple(self._allowlists(findings)))

    def _nodes_of(self, use: ImageUse) -> Iterator[NodeView]:
        for node in self.nodes:
            if node.cluster is not None and use.placement.fits(node.cluster):
                yield node

    def _without_node(self, use: ImageUse) -> Unseen | None:
        """Return the gap of a pod that is on no known node; a template may wait for one."""
        if use.placement.node:
            return Unseen(Gap.UNKNOWN_NODE, use.placement.node)
        one = use.workload
        return (
            Unseen(Gap.NO_NODE, None, f"{one.namespace}/{one.name}") if one.kind == "Pod" else None
        )

    def _of_proofs(self, proofs: Proofs) -> Iterator[Finding]:
        for node, lacking in proofs.lacking.items():
            if lacking:
                yield Finding(Trouble.NOT_PROVEN, (node,), lacking)
        if proofs.unknown:
            yield Finding(
                Trouble.NOT_PROVEN,
                (),
                tuple(sorted(self.images)),
                detail=f"{proofs.unknown} of the nodes that are waited for are not known yet",
            )

    def _of_lists(self) -> Iterator[Finding]:
        """Yield the images of the upgrade that a node has proved, and its list does not have.

        Where nothing collects images, the list may be of a runtime that the upgrade does not use.
        """
        for node in self._collecting():
            if node.images is None:
                continue
            if absent := self.images - node.images.keys() - node.lacking:
                yield Finding(Trouble.ABSENT, (node.name,), tuple(sorted(absent)))

    def _without_list(self) -> Iterator[Unseen]:
        """Yield a gap for each node whose proof says nothing about its kubelet's runtime."""
        for node in self._collecting():
            if node.facts is not None and node.images is None and self.images:
                yield Unseen(Gap.IMAGES, node.name)

    def _collecting(self) -> Iterator[NodeView]:
        """Yield the nodes of the upgrade that may lose images."""
        return (node for node in self.nodes if node.is_listed and node.may_lose())

    def _of_pins(self, uses: Iterable[ImageUse]) -> Iterator[Finding]:
        for node, images in self.unpinned(uses):
            runtime = node.cluster.runtime if node.cluster else ""
            yield Finding(Trouble.NOT_PINNED, (node.name,), images, detail=runtime)

    def unpinned(self, uses: Iterable[ImageUse]) -> Iterator[tuple[NodeView, tuple[str, ...]]]:
        """Yield nodes that may lose images, and these, by their full names."""
        places: dict[str, dict[str, Placement]] = {}
        for use in uses:
            if use.policy is not Policy.NEVER:
                of_image = places.setdefault(str(use.reference), {})
                of_image[use.placement.key()] = use.placement
        for node in self.nodes:
            if not node.may_lose():
                continue
            here = {
                name
                for name, of_image in places.items()
                if node.cluster is not None
                and any(placement.fits(node.cluster) for placement in of_image.values())
            }
            names = sorted(here | self.images if node.is_listed else here)
            if (images := node.images) is not None:
                unpinned = [one for one in names if one in images and not images[one].pinned]
            else:
                unpinned = [] if node.is_pinned or not node.is_listed else sorted(self.images)
            if left := tuple(name for name in unpinned if name not in node.held):
                yield node, left

    def _of_pod(
        self, use: ImageUse, node: NodeView, credentials: _Credentials
    ) -> Trouble | Unseen | None:
        """Return why a pod would fail on a node; None if it would not."""
        present = node.has(str(use.reference), self.images)
        if present is None:
            return Unseen(Gap.IMAGES, node.name)
        if not present:
            return Trouble.ABSENT
        access = self._access(use, node)
        if isinstance(access, Unseen):
            return access
        namespace = use.workload.namespace
        names = use.secrets if access.by_secrets else ()
        found, is_complete = credentials(namespace, names, use.repository)
        if access.allows(found, use.account):
            return None
        return Trouble.CREDENTIALS if is_complete else Unseen(Gap.SECRETS, None, namespace)

    def _access(self, use: ImageUse, node: NodeView) -> Access | Unseen:
        """Return which pods kubelet lets use the image on a node without asking the registry."""
        if node.policy is None:
            return Unseen(Gap.POLICY, node.name)
        if not node.policy.verifies(use.written, use.repository, True):
            return EVERYBODY
        if node.facts is None or not node.facts.has_records:
            return Unseen(Gap.RECORDS, node.name)
        name = str(use.reference)
        found = (node.images or {}).get(name)
        if found is None:
            return Unseen(Gap.IMAGES, node.name)
        image = Image(use.written, name, use.repository, found.id)
        return access_of(image, node.policy, node.facts.records, node.facts.intents)

    def _allowlists(self, findings: Iterable[Finding]) -> Iterator[Allowlist]:
        """Yield the configuration for each node where pods come with other credentials.

        It also has the node's preloaded images: under this policy they would be verified.
        """
        asked: dict[str, set[str]] = {}
        for one in findings:
            if one.code is Trouble.CREDENTIALS:
                for name in one.nodes:
                    asked.setdefault(name, set()).update(map(_pattern, one.images))
        for node in self.nodes:
            if node.name not in asked or node.facts is None or node.cluster is None:
                continue
            if any(placement.fits(node.cluster) for placement in self.short_names):
                yield Allowlist(node.name, Verification.NEVER, ())
                continue
            preloaded = {
                _pattern(name)
                for name, image in (node.images or {}).items()
                if image.id not in node.facts.records
            }
            allowed = node.policy.allowlist if node.policy else ()
            patterns = tuple(sorted({*asked[node.name], *preloaded, *allowed}))
            if len(patterns) > MAX_PATTERNS:
                yield Allowlist(node.name, Verification.NEVER, ())
            else:
                yield Allowlist(node.name, Verification.NOT_LISTED, patterns)


def _pattern(name: str) -> str:
    """Return the narrowest pattern that matches a full image name in every kubelet."""
    return f"{name.rpartition('/')[0]}/*"
