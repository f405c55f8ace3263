"""podman, CRI-O, skopeo, buildah: certs.d and a file in registries.conf.d.

These programs read both at every start. Rules of containers-registries.conf(5) that matter:

- Of all ``[[registry]]`` tables the one with the longest prefix counts. One with the same prefix in
  a file that sorts later replaces the earlier wholly.
- A mirror's location replaces the prefix in the image's name, and nothing tells the mirror which
  upstream was meant. So the location ends in the upstream's name: Mayfly keeps the full names of
  images, ``docker.io/library/alpine`` among them.
- ``insecure`` allows plain HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from mayfly.registry.nodes.containerd import HEADER, refuse_options_of_containerd
from mayfly.registry.nodes.plan import NodeView, Note, NoteCode, Plan, PlannedFile
from mayfly.registry.nodes.target import Target

CERTS_DIR = "/etc/containers/certs.d"
REGISTRIES_CONF = "/etc/containers/registries.conf.d/50-mayfly.conf"
NOTES = (
    Note(
        NoteCode.RELOAD,
        f"CRI-O reads {REGISTRIES_CONF} at start and on SIGHUP: systemctl reload crio",
        REGISTRIES_CONF,
        program="crio",
    ),
)


def plan(target: Target, node: NodeView) -> Plan:
    """The CA, and one file with a table for the registry and for each mirrored upstream.

    Raises:
        TrustError: an option is for containerd.
    """
    refuse_options_of_containerd("podman", target, CERTS_DIR)
    files = [PlannedFile(REGISTRIES_CONF, _registries_conf(target))]
    if target.ca is not None:
        files.insert(0, PlannedFile(f"{CERTS_DIR}/{target.registry}/ca.crt", target.ca))
    return Plan(tuple(files), notes=NOTES)


def _registries_conf(target: Target) -> bytes:
    own = {"prefix": target.registry, "location": target.registry}
    lines = [HEADER.rstrip(), *_table("[[registry]]", own, target)]
    for upstream in target.mirrors:
        lines += _table("[[registry]]", {"prefix": upstream, "location": upstream})
        lines += _table(
            "[[registry.mirror]]", {"location": mirror_location(target, upstream)}, target
        )
    return "\n".join([*lines, ""]).encode()


def mirror_location(target: Target, upstream: str) -> str:
    """Where the upstream's images are found on the target; a repository name holds no port."""
    return f"{target.registry}/{upstream.partition(':')[0]}"


def _table(head: str, values: dict[str, str], target: Target | None = None) -> Iterator[str]:
    """One TOML table; that of the target itself says whether to do without TLS."""
    yield ""
    yield head
    for key, value in values.items():
        yield f"{key} = {json.dumps(value)}"
    if target is not None and not target.tls:
        yield "insecure = true"
