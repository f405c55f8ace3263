"""Files that must not outlive the server: the command's credentials, the scratch root.

The server removes them when it ends. For ``kill -9`` and the kernel's out-of-memory killer there is
a guard: a shell that waits for the end of a pipe whose other end only the server holds, and then
removes the files. The guard has a session of its own and ignores the signals that end the server,
so Ctrl-C does not end it first. Without ``/bin/sh``, or if the guard is killed too, the next start
removes the files in the state directory (`state.directory`).
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
"""The file name that docker looks for; podman and skopeo get the path."""

_GUARD = """
trap '' HUP INT TERM
while read -r _; do :; done
for path in "$@"; do rm -rf -- "$path"; done
"""

CERT_DIR = "certs"
"""Directory with the CA alone: skopeo and podman take every ``*.crt`` of a ``--cert-dir`` as a CA,
and refuse a key without its certificate."""

PROGRAMS = "bin"
"""Directory of programs, the first in the command's ``PATH``."""


@dataclass(frozen=True)
class Login:
    """Address of the registry, and a user.

    Attributes:
        url: with scheme.
        host: ``host:port`` as written in image names.
        username, password: None without authentication.
        ca: PEM file of the CA that signed its certificate; None without TLS.
    """

    url: str
    host: str
    username: str | None = None
    password: str | None = None
    ca: Path | None = None


@contextlib.contextmanager
def client_config(state_dir: Path, login: Login) -> Iterator[Path]:
    """Make a directory, mode 0700, with docker's ``config.json`` and the CA in `CERT_DIR`.

    It is removed at the end of the block.

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
def removed_if_killed(*paths: Path) -> Iterator[None]:
    """Have paths removed if this process is killed inside the block."""
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
