"""docker: the CA in certs.d, and mirrors in both places that dockerd knows.

- ``certs.d/HOST:PORT/ca.crt`` is read at every connection.
- ``registry-mirrors`` in daemon.json covers docker.io only, and is read at start and on SIGHUP.
- dockerd with the containerd image store (the default from 29 on) reads ``hosts.toml`` under
  certs.d, for any upstream. Where it finds one it leaves ``registry-mirrors`` alone, which it
  would not connect to with the mirror's own CA (moby's daemon/hosts.go). Without that store the
  file is not looked at.
- Without TLS the registry must be in ``insecure-registries``, unless in 127.0.0.0/8.
"""

from __future__ import annotations

import json
from typing import Any

from mayfly.registry.nodes.containerd import mirror_files, refuse_options_of_containerd
from mayfly.registry.nodes.plan import NodeView, Note, NoteCode, Plan, PlannedFile
from mayfly.registry.nodes.target import Target
from mayfly.registry.pki.errors import TrustError
from mayfly.storage.reference import DOCKER_HUB

CERTS_DIR = "/etc/docker/certs.d"
DAEMON_JSON = "/etc/docker/daemon.json"
RELOAD = 'systemctl reload docker  # or: kill -HUP "$(pidof dockerd)"'

# A reload takes over the keys that the file has, and keeps the others (moby's daemon/reload.go).
AFTER_REVERT = (
    Note(
        NoteCode.RESTART,
        f"dockerd keeps settings removed from {DAEMON_JSON} until it is restarted; until then "
        "it asks this registry first, and falls back to docker.io when it is gone",
        DAEMON_JSON,
    ),
)


def plan(target: Target, node: NodeView) -> Plan:
    """The CA, a hosts.toml for each mirrored upstream, and daemon.json where it has to change.

    Raises:
        TrustError: the daemon.json there is not a JSON object, or a key in it is not a list; or an
            option is for containerd.
    """
    refuse_options_of_containerd("docker", target, CERTS_DIR)
    files = []
    ca_path = None
    if target.ca is not None:
        ca_path = f"{CERTS_DIR}/{target.registry}/ca.crt"
        files.append(PlannedFile(ca_path, target.ca))
    files += mirror_files(CERTS_DIR, target, ca_path, node)
    merged = _merged(node.read(DAEMON_JSON), _additions(target))
    if merged is not None:
        files.append(PlannedFile(DAEMON_JSON, merged, merged=True))
    return Plan(tuple(files), (RELOAD,) if merged is not None else (), _notes(target))


def _additions(target: Target) -> dict[str, str]:
    """Return the entries for daemon.json's lists, by key."""
    wanted = {}
    if DOCKER_HUB in target.mirrors:
        wanted["registry-mirrors"] = target.url
    if not target.tls and not target.loopback:
        wanted["insecure-registries"] = target.registry
    return wanted


def _merged(existing: bytes | None, additions: dict[str, str]) -> bytes | None:
    """daemon.json with the additions first in their lists; None when it says all that already."""
    settings = _parse(existing)
    changed = False
    for key, value in additions.items():
        present = settings.get(key, [])
        if not isinstance(present, list):
            raise TrustError(f"{DAEMON_JSON}: {key!r} is not a list; mend the file first")
        # dockerd adds a slash to mirrors, and people do.
        if value not in [str(entry).removesuffix("/") for entry in present]:
            settings[key] = [value, *present]
            changed = True
    return json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n" if changed else None


def _parse(existing: bytes | None) -> dict[str, Any]:
    if existing is None or not existing.strip():
        return {}
    try:
        # dockerd also takes a byte order mark.
        settings = json.loads(existing.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TrustError(f"{DAEMON_JSON}: not valid JSON ({error}); mend the file first") from None
    if not isinstance(settings, dict):
        raise TrustError(f"{DAEMON_JSON}: not a JSON object; mend the file first")
    return settings


def _notes(target: Target) -> tuple[Note, ...]:
    others = [name for name in target.mirrors if name != DOCKER_HUB]
    if not others:
        return ()
    text = (
        f"docker mirrors {', '.join(others)} only with its containerd image store (the default "
        f"from 29 on); any other docker has to be told {target.registry}/NAME"
    )
    return (Note(NoteCode.IMAGE_STORE, text, mirrors=tuple(others)),)
