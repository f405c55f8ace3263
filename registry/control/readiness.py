"""Readiness: ``ready.json``, written while the port answers, and the log lines about it."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mayfly.registry import log
from mayfly.registry.access.security import Security
from mayfly.registry.control.client import connect
from mayfly.registry.errors import NotRunning
from mayfly.registry.settings.errors import ConfigError, unusable
from mayfly.registry.settings.readers import Address
from mayfly.registry.settings.settings import Settings
from mayfly.registry.state.directory import CREDENTIALS, READY, read_small
from mayfly.registry.state.private import Login
from mayfly.registry.version import VERSION
from mayfly.storage.files import Attributes, replace_file

if TYPE_CHECKING:
    from mayfly.auth.generate import EphemeralUsers


@dataclass(frozen=True)
class Ready:
    """The content of ``ready.json`` (docs/commands.schema.json, "ready").

    Attributes:
        url: of the registry.
        pid: of the server.
        ca: PEM file of the CA; None without TLS or with a certificate of the operator's.
        username: the administrator of this run; None without users of its own.
        credentials: file with the passwords of this run's users; None without.
        nodes: the only nodes that get credentials; empty for any.
    """

    url: str
    pid: int
    version: str = VERSION
    ca: str | None = None
    username: str | None = None
    credentials: str | None = None
    nodes: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """Return the file's bytes, without fields that are unset."""
        fields = vars(self) | {"nodes": list(self.nodes)}
        return json.dumps({k: v for k, v in fields.items() if v}).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> Ready:
        """Read the file's bytes; unknown fields are ignored.

        Raises:
            ValueError: the content is not a ``ready.json``.
        """
        found: Any = json.loads(content)
        if not isinstance(found, dict) or not isinstance(found.get("url"), str):
            raise ValueError("not a ready.json")
        known = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
        return cls(**{"pid": 0, **known, "nodes": tuple(found.get("nodes", ()))})


def login_to(settings: Settings, security: Security, bound: Address) -> Login:
    """Return the address of this registry, and the user of `mayfly run`'s command.

    Clients cannot connect to an address for all interfaces: the first ``--hostname`` takes its
    place, otherwise the host's first address. ``--external-url`` takes the place of both.
    """
    address = bound
    if bound.host in ("0.0.0.0", "::"):
        host = settings.hostname[0] if settings.hostname else _own_address()
        address = Address(host, bound.port)
    scheme = "http" if security.tls is None else "https"
    credential = security.credential()
    name = password = None
    if credential is not None:
        name, password = credential.name, credential.password
    if (external := settings.external_url) is not None:
        url = external.origin + external.prefix
        return Login(url, external.host, name, password, security.ca)
    return Login(f"{scheme}://{address}", str(address), name, password, security.ca)


@contextmanager
def announced(
    settings: Settings, security: Security, login: Login, nodes: Sequence[str] = ()
) -> Iterator[None]:
    """Keep ``ready.json`` while the block runs, and log that the registry answers.

    Args:
        nodes: names of `--nodes`; credentials are issued for these only.

    Raises:
        ConfigError: the state directory cannot be written.
    """
    ready = Ready(
        login.url,
        os.getpid(),
        ca=str(security.ca) if security.ca is not None else None,
        username=security.users.admin.name if security.users is not None else None,
        credentials=(str(settings.state_dir / CREDENTIALS) if security.users is not None else None),
        nodes=tuple(nodes),
    )
    path = settings.state_dir / READY
    try:
        # Not synced: the next start removes it in any case, and a sync takes tens of milliseconds.
        replace_file(path, ready.to_json(), Attributes(0o644), durable=False)
    except OSError as error:
        raise unusable("--state-dir", settings.state_dir, error) from None
    _log_ready(settings, security, login)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def read_ready(state_dir: Path) -> Ready:
    """Read the ``ready.json`` of the registry that runs with a state directory.

    Raises:
        NotRunning: no registry runs there, or it is not ready.
        ConfigError: the registry belongs to another user, or the file is invalid.
    """
    # A server that was killed leaves the file; only a running one answers.
    connect(state_dir).close()
    try:
        return Ready.from_json(read_small(state_dir / READY))
    except (OSError, json.JSONDecodeError, RecursionError):
        raise NotRunning(f"the Mayfly with the state directory {state_dir} is not ready") from None
    except (ValueError, TypeError):
        raise ConfigError(f"{state_dir / READY} cannot be understood") from None


def _own_address() -> str:
    # Imported only for an address of all interfaces.
    from mayfly.registry.pki.addresses import local_addresses

    outside = [a for a in local_addresses() if not a.is_loopback]
    return str(outside[0]) if outside else "127.0.0.1"


def _log_ready(settings: Settings, security: Security, login: Login) -> None:
    """Log the URL, how to set up nodes, and where the passwords are."""
    data: dict[str, Any] = {"url": login.url, "pid": os.getpid(), "version": VERSION}
    log.event(logging.INFO, "ready", f"mayfly {VERSION} ready at {login.url}", **data)
    if settings.exposed or settings.external_url is not None:
        log.event(
            logging.INFO,
            "node_setup",
            f"to set up nodes: mayfly node-config show --state-dir {settings.state_dir}",
            ca=str(security.ca) if security.ca is not None else None,
        )
    if security.users is not None:
        path = settings.state_dir / CREDENTIALS
        text = f"users of this run: admin and pull, with their passwords in {path}"
        log.event(logging.INFO, "users", text, file=str(path))
        # Only for a terminal: other streams are stored and passed on.
        if sys.stderr.isatty() and not log.is_json():
            _print_passwords(security.users)


def _print_passwords(users: EphemeralUsers) -> None:
    for user in (users.admin, users.pull):
        print(f"    {user.name}  {user.password}", file=sys.stderr, flush=True)
