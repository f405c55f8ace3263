"""Mayfly as its own process, with TLS and users, and its command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

from tests.security.wire import Server
from tests.support.client import Header, basic
from tests.support.commands import assert_refused, mayfly, run_mayfly
from tests.support.process import Mayfly

SECURE = ("--tls", "auto", "--auth", "auto")
"""Must be asked for on loopback; elsewhere it is the default."""


def refused(*args: str | Path) -> str:
    """Run ``mayfly``, expect it to refuse as bad usage, in one line, and return that line."""
    done = mayfly(*args)
    assert_refused(done)
    return done.stderr


def server_of(process: Mayfly) -> Server:
    """Where a running Mayfly is asked."""
    ca = process.state_dir / "ca.crt"
    return Server(process.host, str(ca) if process.url.startswith("https") else None)


def one_run_users(process: Mayfly) -> dict[str, str]:
    """The passwords of ``--auth auto``, by name."""
    return dict(json.loads((process.state_dir / "credentials.json").read_text()))


def login(process: Mayfly, name: str = "admin") -> Header:
    """The Authorization header of a user of ``--auth auto``."""
    return basic(name, one_run_users(process)[name])


def credential(process: Mayfly, *options: str) -> dict[str, Any]:
    """What ``mayfly credentials`` prints, read."""
    text = run_mayfly("credentials", "--state-dir", process.state_dir, "--format", "json", *options)
    return dict(json.loads(text))


def make_auth(
    directory: Path, users: Mapping[str, str], grants: Iterable[tuple[str, str, str]]
) -> Path:
    """A directory for ``--auth``, made by ``mayfly user`` and ``mayfly grant``."""
    for name, password in users.items():
        run_mayfly(
            "user", "add", name, "--password-stdin", "--auth", directory, stdin=password + "\n"
        )
    for name, role, pattern in grants:
        options = ("--user", name, "--role", role, "--repositories", pattern)
        run_mayfly("grant", "add", *options, "--auth", directory)
    return directory


def run_then_serve(
    start: Callable[..., Mayfly], place: Path, *command: object
) -> tuple[str, Mayfly]:
    """Run a command by `mayfly run`; its output, and a later server with the same signing key."""
    auth = make_auth(place / "auth", {}, [("nobody", "guest", "team/**")])
    (auth / "htpasswd").touch(mode=0o600)
    key = place / "key"
    key.touch(mode=0o600)
    key.write_text(token_urlsafe(48))
    options = ("--auth", str(auth), "--signing-key", str(key))
    directories = ("--root", place / "root", "--state-dir", place / "state")
    listen = ("--listen", "127.0.0.1:0")
    told = run_mayfly("run", *directories, *listen, *options, "--", *command)
    return told.strip(), start(*options)
