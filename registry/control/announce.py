"""Readiness: ``ready.json`` and its log lines."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mayfly.registry import log
from mayfly.registry.access.security import Security
from mayfly.registry.lifecycle.errors import NotRunning
from mayfly.registry.pki.files import Attributes, publish
from mayfly.registry.settings.errors import unusable
from mayfly.registry.settings.readers import Address
from mayfly.registry.settings.settings import Settings
from mayfly.registry.state.directory import CREDENTIALS, read_small
from mayfly.registry.state.private import Login
from mayfly.registry.version import VERSION

if TYPE_CHECKING:
    from mayfly.auth.generate import EphemeralUsers

READY = "ready.json"


def login_to(settings: Settings, security: Security, bound: Address) -> Login:
    """How this registry is reached, and as whom.

    An address for all interfaces is none to connect to: the first ``--hostname`` takes its place,
    else the host's first address. ``--external-url`` takes the place of both.
    """
    address = bound
    if bound.host in ("0.0.0.0", "::"):
        host = settings.hostname[0] if settings.hostname else _own_address()
        address = Address(host, bound.port)
    scheme = "http" if security.tls is None else "https"
    made = security.credential()
    name, password = (made.name, made.password) if made is not None else (None, None)
    if (external := settings.external_url) is not None:
        url = external.origin + external.prefix
        return Login(url, external.host, name, password, security.ca)
    return Login(f"{scheme}://{address}", str(address), name, password, security.ca)


@contextmanager
def announced(
    settings: Settings, security: Security, login: Login, nodes: Sequence[str] = ()
) -> Iterator[None]:
    """While the block runs, ``ready.json`` says that the registry answers (CONTRACT, "Ready").

    Args:
        nodes: names of those that are listed, for whom alone credentials may be issued.

    Raises:
        ConfigError: the state directory cannot be written.
    """
    state: dict[str, object] = {"url": login.url, "pid": os.getpid(), "version": VERSION}
    if security.ca is not None:
        state["ca"] = str(security.ca)
    if security.users is not None:
        state["username"] = security.users.admin.name
        state["credentials"] = str(settings.state_dir / CREDENTIALS)
    if nodes:
        state["nodes"] = nodes
    ready = settings.state_dir / READY
    try:
        # Not synced: the next start removes it in any case, and a sync takes tens of milliseconds.
        content = json.dumps(state).encode() + b"\n"
        publish(ready, content, Attributes(0o644), durable=False)
    except OSError as error:
        raise unusable("--state-dir", settings.state_dir, error) from None
    _tell(settings, security, login)
    try:
        yield
    finally:
        ready.unlink(missing_ok=True)


def read_ready(state_dir: Path) -> dict[str, Any]:
    """Read the ``ready.json`` of the registry that runs with a state directory.

    Raises:
        NotRunning: none runs there, or it is not ready.
        ConfigError: it may not be asked.
    """
    from mayfly.registry.control.client import connect

    # A server that was killed leaves the file; only a living one answers.
    connect(state_dir).close()
    try:
        found: dict[str, Any] = json.loads(read_small(state_dir / READY))
    except (OSError, ValueError, RecursionError):
        raise NotRunning(f"the Mayfly with the state directory {state_dir} is not ready") from None
    return found


def _own_address() -> str:
    from mayfly.registry.pki.addresses import local_addresses

    outside = [a for a in local_addresses() if not a.is_loopback]
    return str(outside[0]) if outside else "127.0.0.1"


def _tell(settings: Settings, security: Security, login: Login) -> None:
    """Log the URL, how to set up nodes, and where the passwords are."""
    at: dict[str, Any] = {"url": login.url, "pid": os.getpid(), "version": VERSION}
    log.tell(logging.INFO, "ready", f"mayfly {VERSION} ready at {login.url}", **at)
    if settings.exposed or settings.external_url is not None:
        log.tell(
            logging.INFO,
            "node_setup",
            f"to set up nodes: mayfly node-config show --state-dir {settings.state_dir}",
            ca=str(security.ca) if security.ca is not None else None,
        )
    if security.users is not None:
        where = settings.state_dir / CREDENTIALS
        text = f"users of this run: admin and pull, with their passwords in {where}"
        log.tell(logging.INFO, "users", text, file=str(where))
        # Only for a terminal: all else is kept and passed on.
        if sys.stderr.isatty() and not log.is_json():
            _show_passwords(security.users)


def _show_passwords(made: EphemeralUsers) -> None:
    for one in (made.admin, made.pull):
        print(f"    {one.name}  {one.password}", file=sys.stderr, flush=True)
