"""Telling the world that the port answers: ``ready.json``, and the text for the operator."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from registry.config import ConfigError, Settings
from registry.lifetime.private import Login
from registry.lifetime.state import CREDENTIALS
from registry.readers import Address
from registry.security import Security
from registry.trust.files import Attributes, publish
from registry.version import VERSION

if TYPE_CHECKING:
    from auth.generate import OneRun

READY = "ready.json"


def login_to(settings: Settings, security: Security, bound: Address) -> Login:
    """How this registry is reached, and as whom.

    An address for all interfaces is none to connect to: the first ``--hostname`` takes its place,
    else the host's first address.
    """
    address = bound
    if bound.host in ("0.0.0.0", "::"):
        host = settings.hostname[0] if settings.hostname else _own_address()
        address = Address(host, bound.port)
    scheme = "http" if security.tls is None else "https"
    made = security.credential()
    name, password = (made.name, made.password) if made is not None else (None, None)
    return Login(f"{scheme}://{address}", str(address), name, password, security.ca)


@contextmanager
def announced(settings: Settings, security: Security, login: Login) -> Iterator[None]:
    """While the block runs, ``ready.json`` says that the registry answers (CONTRACT, "Ready").

    Raises:
        ConfigError: the state directory cannot be written.
    """
    state: dict[str, object] = {"url": login.url, "pid": os.getpid(), "version": VERSION}
    if security.ca is not None:
        state["ca"] = str(security.ca)
    if security.users is not None:
        state["username"] = security.users.admin.name
        state["credentials"] = str(settings.state_dir / CREDENTIALS)
    ready = settings.state_dir / READY
    try:
        publish(ready, json.dumps(state).encode() + b"\n", Attributes(0o644))
    except OSError as error:
        raise ConfigError(
            f"--state-dir {settings.state_dir} cannot be used: {error.strerror}"
        ) from None
    _say(f"mayfly {VERSION} ready at {login.url}")
    if settings.exposed:
        _say(_for_nodes(settings, login.url, security))
    try:
        yield
    finally:
        ready.unlink(missing_ok=True)


def read_ready(state_dir: Path) -> dict[str, str]:
    """What a running registry announced.

    Raises:
        ConfigError: none is running with this state directory.
    """
    try:
        found: dict[str, str] = json.loads((state_dir / READY).read_text())
    except (OSError, ValueError):
        raise ConfigError(
            f"no registry runs with --state-dir {state_dir}: start one with mayfly serve"
        ) from None
    return found


def _own_address() -> str:
    from registry.trust.addresses import local_addresses

    outside = [a for a in local_addresses() if not a.is_loopback]
    return str(outside[0]) if outside else "127.0.0.1"


def _for_nodes(settings: Settings, url: str, security: Security) -> str:
    from registry.trust.node.commands import node_commands
    from registry.trust.node.target import parse

    ca = security.ca.read_bytes() if security.ca is not None else None
    lines = []
    if security.users is not None:
        lines += _users(security.users, settings.state_dir / CREDENTIALS)
    return "\n".join([*lines, "", node_commands(parse(url, ca))])


def _users(made: OneRun, file: Path) -> list[str]:
    """How to log in; with passwords only for a terminal, since all else is kept and passed on."""
    if not sys.stderr.isatty():
        return [f"Users for this run: admin and pull, with their passwords in {file}"]
    return [
        "Users for this run (name, password):",
        *(f"  {one.name}  {one.password}" for one in (made.admin, made.pull)),
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
