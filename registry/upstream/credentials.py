"""Credentials for other registries, as ``docker login`` and ``podman login`` left them.

Looked up in this order, the first file that has an entry wins:

    $REGISTRY_AUTH_FILE                         podman, skopeo
    $XDG_RUNTIME_DIR/containers/auth.json       podman, skopeo
    ~/.config/containers/auth.json              podman (macOS, and kept logins)
    $DOCKER_CONFIG/config.json                  docker
    ~/.docker/config.json                       docker

Sources: containers-auth.json(5); docker's cli configuration and credential-helpers documentation.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mayfly.registry.upstream.errors import LoginsInvalid
from mayfly.storage.reference import DOCKER_HUB, HUB_ALIASES, MAX_NAME_LENGTH

_HUB_KEYS = (DOCKER_HUB, "https://index.docker.io/v1/", *HUB_ALIASES)
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HELPER_SECONDS = 30.0
_MAX_FILE = 4 * 1024 * 1024
_MOST_FOUND = 1000
"""Repositories whose credentials are remembered."""

_TOKEN_USER = "<token>"
"""The user name with which a helper returns an identity token instead of a password."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Credentials for a registry: a user name with a password, or an identity (refresh) token."""

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.username!r})"

    @property
    def basic(self) -> str | None:
        """The value of an ``Authorization`` header; None for an identity token."""
        if self.identity_token or not self.username:
            return None
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()


class CredentialStore:
    """Finds credentials for a repository.

    Args:
        given: registry host to credentials; they win over every file.
        environment: where the files are looked for.
        files: looked at instead of those of docker and podman.
    """

    def __init__(
        self,
        given: Mapping[str, Credentials] | None = None,
        environment: Mapping[str, str] | None = None,
        files: Sequence[Path] | None = None,
    ) -> None:
        self._files = files
        self._given = dict(given or {})
        self._environment = os.environ if environment is None else environment
        self._found: dict[tuple[str, str], Credentials | None] = {}

    async def find(self, host: str, repository: str) -> Credentials | None:
        """Credentials for a repository of a registry, None for anonymous access.

        Raises:
            LoginsInvalid: a file is damaged or a helper fails.
        """
        if host in self._given:
            return self._given[host]
        key = (host, repository)
        if key not in self._found:
            if len(self._found) >= _MOST_FOUND:
                self._found.clear()
            self._found[key] = await self._look_up(host, repository)
        return self._found[key]

    async def _look_up(self, host: str, repository: str) -> Credentials | None:
        for path in _files(self._environment) if self._files is None else self._files:
            document = _read(path)
            if document is None:
                continue
            for key in _keys(host, repository):
                helper = _helper(document, key)
                if helper is not None:
                    found = await self._ask(helper, key)
                else:
                    found = _entry(document, key, path)
                if found is not None:
                    return found
        return None

    async def _ask(self, helper: str, key: str) -> Credentials | None:
        """Ask a credential helper: the key on standard input, JSON on standard output."""
        if not _HELPER_NAME.fullmatch(helper):
            raise LoginsInvalid(f"credential helper {helper[:100]!r} is not a program's name")
        program = f"docker-credential-{helper}"
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                "get",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=dict(self._environment),
            )
        except OSError as error:
            raise LoginsInvalid(f"{program} cannot be run: {error.strerror}") from None
        try:
            async with asyncio.timeout(_HELPER_SECONDS):
                output, _ = await process.communicate(key.encode())
        except TimeoutError:
            process.kill()
            await process.wait()
            raise LoginsInvalid(f"{program} did not answer in {_HELPER_SECONDS:.0f}s") from None
        if process.returncode != 0:
            return None  # helpers exit with 1 for a registry they do not know
        try:
            answer = json.loads(output)
            username, secret = str(answer["Username"]), str(answer["Secret"])
        except (ValueError, KeyError, TypeError):
            raise LoginsInvalid(f"{program} answered without Username and Secret") from None
        if username == _TOKEN_USER:
            return Credentials(identity_token=secret)
        return Credentials(username, secret)


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    home = Path(environment.get("HOME") or Path.home())
    if environment.get("REGISTRY_AUTH_FILE"):
        yield Path(environment["REGISTRY_AUTH_FILE"])
    if environment.get("XDG_RUNTIME_DIR"):
        yield Path(environment["XDG_RUNTIME_DIR"], "containers/auth.json")
    yield Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "containers/auth.json")
    yield Path(environment.get("DOCKER_CONFIG") or home / ".docker", "config.json")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LoginsInvalid(f"{path} cannot be read: {error.strerror}") from None
    try:
        document = json.loads(data) if len(data) <= _MAX_FILE else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise LoginsInvalid(f"{path} is not a JSON object: log in again, or remove it")
    return document


def _keys(host: str, repository: str) -> Iterator[str]:
    """Keys by which an entry may be filed, the most specific first."""
    parts = repository[:MAX_NAME_LENGTH].split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join([host, *parts[:count]])
    if host == DOCKER_HUB:
        yield from _HUB_KEYS
    else:
        yield host
        yield f"https://{host}"
        yield f"http://{host}"
        yield f"https://{host}/v1/"
        yield f"https://{host}/v2/"


def _helper(document: dict[str, Any], key: str) -> str | None:
    helpers = document.get("credHelpers")
    if isinstance(helpers, dict) and isinstance(helpers.get(key), str):
        return str(helpers[key])
    entries = document.get("auths")
    is_filed = isinstance(entries, dict) and key in entries
    store = document.get("credsStore")
    return store if isinstance(store, str) and store and is_filed else None


def _entry(document: dict[str, Any], key: str, path: Path) -> Credentials | None:
    entries = document.get("auths")
    entry = entries.get(key) if isinstance(entries, dict) else None
    if not isinstance(entry, dict):
        return None
    if isinstance(entry.get("identitytoken"), str) and entry["identitytoken"]:
        return Credentials(identity_token=entry["identitytoken"])
    auth = entry.get("auth")
    if isinstance(auth, str) and auth:
        try:
            pair = base64.b64decode(auth, validate=True).decode().rstrip("\0")
        except (binascii.Error, UnicodeDecodeError):
            raise LoginsInvalid(f"{path}: the entry {key} is damaged: log in again") from None
        username, colon, password = pair.partition(":")
        if not colon:
            raise LoginsInvalid(f"{path}: the entry {key} has no password: log in again")
        return Credentials(username, password)
    name, secret = entry.get("username"), entry.get("password")
    if isinstance(name, str) and isinstance(secret, str) and name:
        return Credentials(name, secret)
    return None
