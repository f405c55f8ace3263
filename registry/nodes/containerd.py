"""containerd: a directory for each host, with ``hosts.toml`` and the CA.

It is read at every pull, so nothing needs a restart. Rules that containerd's
core/remotes/docker/config/hosts.go sets, and that the files here obey:

- Both ``server`` and a ``[host]`` table are always written: 1.6 rejects a file with ``server``
  alone, silently, and goes upstream.
- ``pull``, ``resolve`` and ``push`` are the capabilities every version knows; an unknown one
  voids the file.
- For HOST:PORT it looks for a directory ``HOST_PORT_`` before ``HOST:PORT``, and stops at the
  first that exists.
- The host in the table is asked first, ``server`` last. To a host that is not the one in the
  image's name it sends ``ns=``.
- Keys above the first table (``ca``, ``[header]``) are for ``server``. The registry's own file
  repeats them there: an image that the host in the table does not have is looked for at ``server``,
  and the operator is shown the last error, which would be about the certificate.
- A ``header`` goes with every request to that host. With an ``Authorization`` that the registry
  accepts, containerd never gets to ask for the credentials of an imagePullSecret.
"""

from __future__ import annotations

import json
from typing import Any

from mayfly.auth import toml
from mayfly.registry.nodes.plan import NodeView, Note, NoteCode, Plan, PlannedFile
from mayfly.registry.nodes.target import Target
from mayfly.registry.pki.errors import TrustError
from mayfly.storage.reference import address_of

CERTS_DIR = "/etc/containerd/certs.d"
CONFIG = "/etc/containerd/config.toml"

HEADER = "# Written by Mayfly; taken back by: mayfly node-config revert\n"

# The CRI plugin's names in configuration versions 2 (containerd 1.x) and 3 (2.x).
_CRI_PLUGINS = ("io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri")


def plan(target: Target, node: NodeView) -> Plan:
    """The CA, the registry's own hosts.toml, and one for each mirrored upstream."""
    configured, notes = _configured_certs_dir(node)
    certs_dir = target.certs_dir or configured or CERTS_DIR
    own = _host_directory(certs_dir, target.registry, node)
    ca_path = None if target.ca is None else f"{own}/ca.crt"
    own_hosts_toml = hosts_toml(target.url, target, ca_path, ("pull", "resolve", "push"))
    files = [
        _planned(f"{own}/hosts.toml", own_hosts_toml, target),
        *mirror_files(certs_dir, target, ca_path, node),
    ]
    if target.ca is not None:
        files.insert(0, PlannedFile(f"{own}/ca.crt", target.ca))
    return Plan(tuple(files), notes=() if target.certs_dir else notes)


def refuse_options_of_containerd(runtime: str, target: Target, certs_dir: str) -> None:
    """Refuse the options that another runtime cannot follow.

    Args:
        runtime: the other one.
        target: of the options.
        certs_dir: the only directory that the runtime reads.

    Raises:
        TrustError: ``--node`` or ``--certs-dir`` is given.
    """
    if target.credential is not None:
        raise TrustError(
            f"--node writes files for containerd only; {runtime} logs in, and mayfly node-config "
            f"show --node NAME --runtime {runtime} prints the command"
        )
    if target.certs_dir is not None:
        raise TrustError(f"--certs-dir is for containerd; {runtime} reads {certs_dir} only")


def mirror_files(
    certs_dir: str, target: Target, ca_path: str | None, node: NodeView
) -> list[PlannedFile]:
    """A hosts.toml for each upstream that asks the target first and the upstream itself last."""
    return [
        _planned(
            f"{_host_directory(certs_dir, upstream, node)}/hosts.toml",
            hosts_toml(upstream_url(upstream), target, ca_path, ("pull", "resolve")),
            target,
        )
        for upstream in target.mirrors
    ]


def _planned(path: str, content: bytes, target: Target) -> PlannedFile:
    private = target.credential is not None
    return PlannedFile(path, content, mode=0o600 if private else 0o644, private=private)


def hosts_toml(
    server: str, target: Target, ca_path: str | None, capabilities: tuple[str, ...]
) -> bytes:
    """One hosts.toml: ``target`` first, ``server`` last."""
    # JSON's strings and lists of strings are TOML's.
    # containerd adds /v2 to a host without a path only; any other path is to be the whole one.
    url = f"{target.url}/v2" if target.path else target.url
    own = server == target.url
    host = f"host.{json.dumps(url)}"
    lines = [f"{HEADER}server = {json.dumps(url if own else server)}"]
    if own:
        lines += ["override_path = true"] if target.path else []
        lines += _ca(ca_path)
        lines += _header("header", target)
    lines += ["", f"[{host}]", f"  capabilities = {json.dumps(capabilities)}"]
    lines += ["  override_path = true"] if target.path else []
    lines += _ca(ca_path, indent="  ")
    lines += _header(f"{host}.header", target, indent="  ")
    return "\n".join([*lines, ""]).encode()


def _ca(path: str | None, indent: str = "") -> list[str]:
    return [] if path is None else [f"{indent}ca = {json.dumps(path)}"]


def _header(table: str, target: Target, indent: str = "") -> list[str]:
    if target.credential is None:
        return []
    value = json.dumps(target.credential.authorization)
    return ["", f"{indent}[{table}]", f"{indent}  authorization = {value}"]


def upstream_url(upstream: str) -> str:
    """Where an upstream serves: Docker Hub does not under its own name."""
    return f"https://{address_of(upstream)}"


def _host_directory(certs_dir: str, host: str, node: NodeView) -> str:
    name, colon, port = host.rpartition(":")
    preferred = f"{certs_dir}/{name}_{port}_"
    return preferred if colon and node.is_directory(preferred) else f"{certs_dir}/{host}"


def _configured_certs_dir(node: NodeView) -> tuple[str | None, tuple[Note, ...]]:
    """Return where kubelet's pulls look according to config.toml, and notes about it."""
    advice = (
        f'set config_path = "{CERTS_DIR}" in the registry table of containerd\'s CRI plugin and '
        "restart containerd, once"
    )
    try:
        config = toml.loads((node.read(CONFIG) or b"").decode())
    except ValueError as error:
        text = f"{CONFIG} cannot be understood ({error}); if it does not: {advice}"
        return None, (Note(NoteCode.CONFIG_UNREADABLE, text, CONFIG, CERTS_DIR),)
    found = _config_path(config)
    if found:
        # Several are separated by colons; the first that has the host wins.
        return found.partition(":")[0], ()
    text = (
        "before version 2.2 containerd reads host configurations for kubelet only from a directory "
        f"that {CONFIG} names (ctr needs --hosts-dir); if it names none: {advice}"
    )
    return None, (Note(NoteCode.CONFIG_PATH, text, CONFIG, CERTS_DIR),)


def _config_path(config: dict[str, Any]) -> str | None:
    for plugin in _CRI_PLUGINS:
        table: object = config
        for key in ("plugins", plugin, "registry", "config_path"):
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, str) and table:
            return table
    return None
