"""Another registry, asked as any client would: does it have this blob, and may we have it?

Credentials come from the URL (``https://user:password@host``) or from docker's and podman's own
files, as ``docker login`` left them. Certificates are checked against the system's CAs and the file
in ``SSL_CERT_FILE``.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from registry.config import ConfigError
from storage.digest import Digest
from storage.uploads import DirectoryUpload

_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_AUTH_FILES = ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG")
_TIMEOUT = aiohttp.ClientTimeout(total=60)
_NO_LIMIT = aiohttp.ClientTimeout(sock_read=60)
_PIECE = 1024 * 1024


class Remote:
    """A registry at a URL; to be used as a context manager, from one thread.

    Raises:
        ConfigError: the URL names no registry, or it cannot be asked.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not parts.hostname or parts.path.strip("/"):
            raise ConfigError(f"{url}: expected http(s)://HOST:PORT of a registry")
        self._host = parts.netloc.rpartition("@")[2]
        self._base = f"{parts.scheme}://{self._host}"
        self._basic = _basic(parts.username, parts.password) or _stored(self._host)
        self._tokens: dict[str, str] = {}
        self._runner = asyncio.Runner()
        self._session: aiohttp.ClientSession | None = None

    def __enter__(self) -> Self:
        self._session = self._runner.run(self._open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            self._runner.run(self._session.close())
        self._runner.close()

    def has(self, repository: str, digest: Digest) -> bool:
        """Whether the registry has a blob in a repository.

        Raises:
            ConfigError: it cannot be asked, or does not let us.
        """
        return self._runner.run(self._has(repository, digest))

    def fetch(self, repository: str, digest: Digest, upload: DirectoryUpload) -> bool:
        """Put a blob into an upload; False if the registry does not have it.

        Raises:
            ConfigError: it cannot be asked, does not let us, or the transfer broke.
        """
        if not self.has(repository, digest):
            return False
        self._runner.run(self._fetch(repository, digest, upload))
        return True

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=_TIMEOUT)

    async def _has(self, repository: str, digest: Digest) -> bool:
        url = f"{self._base}/v2/{repository}/blobs/{digest}"
        try:
            status, challenge = await self._head(url, self._tokens.get(repository))
            if status == 401 and challenge.lower().startswith("bearer "):
                self._tokens[repository] = f"Bearer {await self._token(challenge)}"
                status, _ = await self._head(url, self._tokens[repository])
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConfigError(f"{self._base}: cannot be asked: {error}") from None
        if status in (200, 404):
            return status == 200
        raise ConfigError(
            f"{self._base}: asked for {repository} it answered {status}; log in with "
            "docker login, or put user:password@ into the URL"
        )

    async def _fetch(self, repository: str, digest: Digest, upload: DirectoryUpload) -> None:
        assert self._session is not None
        value = self._tokens.get(repository) or self._basic
        headers = {"Authorization": value} if value else {}
        url = f"{self._base}/v2/{repository}/blobs/{digest}"
        at = 0
        try:
            async with self._session.get(url, headers=headers, timeout=_NO_LIMIT) as response:
                response.raise_for_status()
                async for piece in response.content.iter_chunked(_PIECE):
                    upload.write([piece], at)
                    at += len(piece)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConfigError(f"{self._base}: {digest} did not arrive: {error}") from None

    async def _head(self, url: str, authorization: str | None) -> tuple[int, str]:
        assert self._session is not None
        value = authorization or self._basic
        headers = {"Authorization": value} if value else {}
        async with self._session.head(url, headers=headers) as response:
            return response.status, response.headers.get("WWW-Authenticate", "")

    async def _token(self, challenge: str) -> str:
        assert self._session is not None
        fields = dict(_CHALLENGE.findall(challenge))
        realm = fields.pop("realm", "")
        if not realm.startswith(self._base + "/"):
            # Credentials go to the registry that was named, and to no other host it points at.
            raise ConfigError(f"{self._base}: its tokens come from elsewhere: {realm}")
        headers = {"Authorization": self._basic} if self._basic else {}
        query = {k: v for k, v in fields.items() if k in ("service", "scope")}
        async with self._session.get(realm, params=query, headers=headers) as response:
            document = await response.json() if response.status == 200 else {}
        return str(document.get("token") or document.get("access_token") or "")


def _basic(name: str | None, password: str | None) -> str | None:
    if name is None:
        return None
    pair = f"{name}:{password or ''}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def _stored(host: str) -> str | None:
    """Credentials that docker or podman keep for a host."""
    for variable in _AUTH_FILES:
        value = os.environ.get(variable)
        path = Path(value) if value else Path.home() / ".docker"
        file = path / "config.json" if path.is_dir() else path
        try:
            auth = json.loads(file.read_text())["auths"][host]["auth"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return f"Basic {auth}"
    return None
