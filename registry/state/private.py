"""Files that must not outlive the server: the command's credentials, the scratch root.

The server removes them itself when it ends. For the end it does not see coming, ``kill -9`` or the
kernel out of memory, there is a guard: a shell that waits for the end of a pipe whose other end
only the server holds, and then removes them. It is in a session of its own and ignores the signals
that end the rest, so a Ctrl-C does not reach it first. Where there is no ``/bin/sh`` or the guard
is killed too, the next start removes what is in the state directory (`state`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mayfly.registry.state.directory import PRIVATE_PREFIX

logger = logging.getLogger("mayfly")

AUTH_FILE = "config.json"
"""The name that docker looks for; podman and skopeo are given the path."""

_GUARD = """
trap '' HUP INT TERM
while read -r _; do :; done
for path in "$@"; do rm -rf -- "$path"; done
"""


CERT_DIR = "certs"
"""Directory with the CA alone: skopeo and podman take every ``*.crt`` of a ``--cert-dir`` as a CA,
and refuse a key without its certificate."""


@dataclass(frozen=True)
class Login:
    """How to reach the registry.

    Attributes:
        url: with scheme.
        host: ``host:port`` as written in image names.
        username, password: None where it asks for none.
        ca: PEM file of the CA that signed its certificate; None without TLS.
    """

    url: str
    host: str
    username: str | None = None
    password: str | None = None
    ca: Path | None = None


@contextlib.contextmanager
def auth_file(state_dir: Path, login: Login) -> Iterator[Path]:
    """A directory that only we may enter: docker's ``config.json``, and the CA in `CERT_DIR`.

    Raises:
        OSError: it cannot be made.
    """
    directory = Path(tempfile.mkdtemp(prefix=PRIVATE_PREFIX, dir=state_dir))
    try:
        auths = {}
        if login.username is not None:
            pair = f"{login.username}:{login.password or ''}".encode()
            auths[login.host] = {"auth": base64.b64encode(pair).decode()}
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(directory / AUTH_FILE, flags, 0o600), "w") as file:
            json.dump({"auths": auths}, file)
        if login.ca is not None:
            (directory / CERT_DIR).mkdir()
            shutil.copyfile(login.ca, directory / CERT_DIR / "ca.crt")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def guarded(*paths: Path) -> Iterator[None]:
    """While inside, a death of this process takes the paths with it."""
    try:
        guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "mayfly-guard", *map(str, paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            start_new_session=True,
        )
    except OSError as error:
        shown = ", ".join(map(str, paths))
        logger.warning("if Mayfly is killed, nothing will remove %s: %s", shown, error)
        yield
        return
    try:
        yield
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()
