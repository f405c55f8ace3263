"""On which nodes a pod is, or may be put: the rules of the scheduler that name nodes.

Free resources, affinity between pods, cordons and conditions of nodes (taints of
``node.kubernetes.io/``) are left out: they pass, and a pod may then be put there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mayfly.registry.nodes.object_fields import Object, mapping, objects, text, texts

_PASSING = "node.kubernetes.io/"
_KEEPING_AWAY = frozenset({"NoSchedule", "NoExecute"})


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node of the cluster.

    Attributes:
        addresses: all of them, also its host names.
        version: of its kubelet.
        runtime: with its version, such as ``containerd://2.1.9``.
        boot: ID of its kernel's start; "" if unknown.
        taints: as the API server has them.
    """

    name: str
    addresses: tuple[str, ...]
    labels: Mapping[str, str]
    taints: Sequence[Object]
    version: str
    runtime: str
    boot: str


def cluster_node(item: Object) -> ClusterNode:
    """Read a Node of the API."""
    labels = mapping(item, "metadata", "labels")
    addresses = (text(one, "address") for one in objects(item, "status", "addresses"))
    return ClusterNode(
        name=text(item, "metadata", "name"),
        addresses=tuple(address for address in addresses if address),
        labels={str(key): str(value) for key, value in labels.items()},
        taints=objects(item, "spec", "taints"),
        version=text(item, "status", "nodeInfo", "kubeletVersion"),
        runtime=text(item, "status", "nodeInfo", "containerRuntimeVersion"),
        boot=text(item, "status", "nodeInfo", "bootID"),
    )


def nodes_named(name: str, nodes: Iterable[ClusterNode]) -> list[ClusterNode]:
    """Return the node of a name; without one, those with the address, which may be several."""
    found = [one for one in nodes if name == one.name or name in one.addresses]
    return [one for one in found if one.name == name] or found


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a pod is, or may be put.

    Attributes:
        node: that it is bound to; "" for none yet.
        selector: labels that a node must have.
        terms: of its required node affinity, of which one must hold; None without.
        tolerations: of taints.
    """

    node: str
    selector: Mapping[str, str]
    terms: Sequence[Object] | None
    tolerations: Sequence[Object]

    def fits(self, node: ClusterNode) -> bool:
        """Whether the pod is on a node, or may be put there."""
        if self.node:
            return self.node == node.name
        if any(node.labels.get(key) != value for key, value in self.selector.items()):
            return False
        if self.terms is not None and not any(_holds(term, node) for term in self.terms):
            return False
        return all(
            any(_tolerates(one, taint) for one in self.tolerations)
            for taint in node.taints
            if text(taint, "effect") in _KEEPING_AWAY
            and not text(taint, "key").startswith(_PASSING)
        )

    def key(self) -> str:
        """Return a text that is the same for placements on the same nodes."""
        # Every pod gets tolerations of passing taints.
        kept = [one for one in self.tolerations if not text(one, "key").startswith(_PASSING)]
        return repr((self.node, self.selector, self.terms, kept))


def placement_of(spec: Object) -> Placement:
    """Read where a pod is or may be put from its ``spec``."""
    required = mapping(
        spec, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"
    )
    return Placement(
        node=text(spec, "nodeName"),
        selector={str(k): str(v) for k, v in mapping(spec, "nodeSelector").items()},
        terms=objects(required, "nodeSelectorTerms") if required else None,
        tolerations=objects(spec, "tolerations"),
    )


def placement_of_template(spec: Object) -> Placement:
    """Read where pods of a template may be put.

    The API server may give a new pod further tolerations: those of its RuntimeClass, and of the
    devices that it asks for (ExtendedResourceToleration).
    """
    more: list[Object] = [{"key": one, "operator": "Exists"} for one in _devices(spec)]
    if text(spec, "runtimeClassName"):
        more.append({"operator": "Exists"})
    return placement_of({**spec, "tolerations": [*objects(spec, "tolerations"), *more]})


def _devices(spec: Object) -> set[str]:
    """List the extended resources that containers ask for."""
    return {
        str(name)
        for key in ("containers", "initContainers")
        for one in objects(spec, key)
        for kind in ("requests", "limits")
        for name in mapping(one, "resources", kind)
        if "/" in str(name) and "kubernetes.io/" not in str(name)
    }


def _holds(term: Object, node: ClusterNode) -> bool:
    expressions, fields = objects(term, "matchExpressions"), objects(term, "matchFields")
    named = {"metadata.name": node.name}
    return bool(expressions or fields) and (
        all(_matches(one, node.labels) for one in expressions)
        and all(_matches(one, named) for one in fields)
    )


def _matches(expression: Object, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(text(expression, "key")), texts(expression, "values")
    match text(expression, "operator"):
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            return _compares(operator, value, values)
        case _:
            return True  # of a newer Kubernetes: the pod may be put there


def _compares(operator: str, value: str | None, values: Sequence[str]) -> bool:
    try:
        number, bound = int(value or ""), int(values[0])
    except (ValueError, IndexError):
        return False
    return number > bound if operator == "Gt" else number < bound


def _tolerates(toleration: Object, taint: Object) -> bool:
    key, effect = text(toleration, "key"), text(toleration, "effect")
    if effect and effect != text(taint, "effect"):
        return False
    operator = text(toleration, "operator")
    if key != text(taint, "key"):
        return not key and operator == "Exists"
    # By an operator of a newer Kubernetes the pod may be put there.
    return operator not in ("", "Equal") or text(toleration, "value") == text(taint, "value")
