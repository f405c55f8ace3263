"""The container runtimes that are known, and their differences, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

from mayfly.registry.nodes import containerd, docker, podman, rancher
from mayfly.registry.nodes.plan import NodeView, Note, Plan
from mayfly.registry.nodes.target import Target
from mayfly.registry.pki.errors import TrustError

Runtime = Literal["docker", "containerd", "podman"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)

BELOW_A_PATH = frozenset({"containerd"})
"""Runtimes that can be told of a path before ``/v2/``."""

_PLANNERS: Mapping[Runtime, Callable[[Target, NodeView], Plan]] = {
    "docker": docker.plan,
    "containerd": containerd.plan,
    "podman": podman.plan,
}

AFTER_REVERT: Mapping[str, tuple[Note, ...]] = {
    docker.DAEMON_JSON: docker.AFTER_REVERT,
    podman.REGISTRIES_CONF: podman.NOTES,
    # The node's script writes these.
    **{rancher.registries_yaml(one): (rancher.restart_note(one),) for one in rancher.PRODUCTS},
}
"""File → notes for the operator after it was put back."""


def make_plan(runtime: Runtime, target: Target, node: NodeView) -> Plan:
    """The plan that makes a node's ``runtime`` trust ``target`` and use it for its mirrors.

    Raises:
        TrustError: a file of the node's that must be added to cannot be understood, or the runtime
            cannot use a registry below a path.
        OSError: such a file cannot be read.
    """
    if target.path and runtime not in BELOW_A_PATH:
        raise TrustError(no_path(runtime, target))
    return _PLANNERS[runtime](target, node)


def no_path(runtime: Runtime, target: Target) -> str:
    """Why a runtime cannot use a registry below a path, and the remedy."""
    return (
        f"{runtime} cannot use {target.url}: it has no setting for a path before /v2/; "
        "use containerd, or serve the registry at the root of a host"
    )


def notes_after_revert(paths: Iterable[str]) -> tuple[Note, ...]:
    """Return notes for the operator after these files were put back."""
    return tuple(note for path in paths for note in AFTER_REVERT.get(path, ()))


class EmptyNode:
    """The view of a node that has nothing."""

    def read(self, path: str) -> bytes | None:
        """Nothing."""
        return None

    def is_directory(self, path: str) -> bool:
        """No."""
        return False
