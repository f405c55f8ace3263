"""k3s and RKE2: ``registries.yaml``, of which they make containerd's files at their start.

Rules that matter:

- A mirror with a table of its own does not use the one of the wildcard ``*``.
- ``rewrite`` of a mirror is applied to each of its endpoints.
- An endpoint with a path is taken as it is; without, ``/v2`` is added.
"""

from __future__ import annotations

import copy
from typing import Any

from mayfly.registry.nodes.merging import read_yaml, table_at, to_yaml
from mayfly.registry.nodes.plan import Note, NoteCode, Plan, PlannedFile
from mayfly.registry.nodes.target import Target
from mayfly.registry.pki.errors import TrustError

PRODUCTS = {
    "k3s": "k3s on servers, k3s-agent on agents",
    "rke2": "rke2-server on servers, rke2-agent on agents",
}
"""Name → the services to restart."""


def registries_yaml(product: str) -> str:
    """Return the path of the file."""
    return f"/etc/rancher/{product}/registries.yaml"


def restart_note(product: str) -> Note:
    """Return the note for an operator whose file changed."""
    path = registries_yaml(product)
    text = f"{product} reads {path} at its start: restart {PRODUCTS[product]}"
    return Note(NoteCode.RESTART, text, path)


def plan(product: str, target: Target, existing: bytes | None = None) -> Plan:
    """The CA, and the file with an endpoint for each mirrored upstream, merged.

    Args:
        existing: the node's file; None for a node that has none.

    Raises:
        TrustError: the node's file cannot be merged.
    """
    path = registries_yaml(product)
    ca_file = f"/etc/rancher/{product}/mayfly-ca.crt"
    settings = {} if existing is None else read_yaml(existing)
    url = f"{target.url}/v2" if target.path else target.url
    own = () if target.tls and not target.path else (target.registry,)
    names = (*target.mirrors, *own)
    rewritten = tuple(name for name in names if _add_endpoint(settings, name, url))
    _configure(settings, target, ca_file)
    files: tuple[PlannedFile, ...] = (
        PlannedFile(path, to_yaml([settings]).encode(), 0o600, private=True),
    )
    if target.ca is not None:
        files = (PlannedFile(ca_file, target.ca), *files)
    notes: tuple[Note, ...] = ()
    if rewritten:
        text = (
            f"{product} rewrites names for every endpoint of {', '.join(rewritten)}, so Mayfly is "
            "asked for the rewritten ones"
        )
        notes = (Note(NoteCode.REWRITE, text, path, mirrors=rewritten),)
    return Plan(files, notes=(*notes, restart_note(product)))


def _add_endpoint(settings: dict[str, Any], name: str, url: str) -> bool:
    """Put an endpoint first for one upstream; whether names are rewritten for it."""
    mirrors = table_at(settings, "mirrors")
    if mirrors.get(name) is None and mirrors.get("*") is not None:
        # A table of its own takes the place of the one for all upstreams.
        mirrors[name] = copy.deepcopy(table_at(mirrors, "*"))
    mirror = table_at(mirrors, name)
    endpoints = mirror.get("endpoint") or []
    if not isinstance(endpoints, list):
        raise TrustError(f"--merge: the endpoint of mirror {name!r} is not a list")
    mirror["endpoint"] = [url, *(one for one in endpoints if one != url)]
    return bool(mirror.get("rewrite"))


def _configure(settings: dict[str, Any], target: Target, ca_file: str) -> None:
    """Add the registry's CA and the node's login."""
    config: dict[str, Any] = {}
    if target.credential is not None:
        username, password = target.credential
        config["auth"] = {"username": username, "password": password}
    if target.ca is not None:
        config["tls"] = {"ca_file": ca_file}
    if config:
        table_at(table_at(settings, "configs"), target.registry).update(config)
