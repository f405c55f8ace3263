"""Another registry, asked as any client would: does it have this blob, and may we have it?

Credentials come from the URL (``https://user:password@host``) or from docker's and podman's own
files, as ``docker login`` left them. Certificates are checked against the system's CAs and the file
in ``SSL_CERT_FILE``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urljoin, urlsplit

import aiohttp

from mayfly.registry.settings.errors import ConfigError
from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.uploads import DirectoryUpload
from mayfly.storage.errors import DigestInvalid
from mayfly.storage.manifest import IMAGE_TYPES, INDEX_TYPES
from mayfly.storage.manifest import MAX_SIZE as MAX_MANIFEST

_CHALLENGE = re.compile(r'\b(\w+)="([^"]*)"')
_AUTH_FILES = ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG")
_TIMEOUT = aiohttp.ClientTimeout(total=60)
_NO_LIMIT = aiohttp.ClientTimeout(sock_connect=60, sock_read=60)
_PIECE = 1024 * 1024

_START_SECONDS = 120.0
_SLOWEST = 32 * 1024
"""Bytes a second of the slowest transfer that is waited for, after some time to start."""

_MAX_ANSWER = 1024 * 1024
"""Bytes of an answer other than content, such as a token."""

_MAX_REDIRECTS = 5
_ACCEPT = ", ".join((*sorted(IMAGE_TYPES | INDEX_TYPES), "*/*"))


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
        return self._runner.run(self._has(repository, f"blobs/{digest}"))

    def fetch(
        self, repository: str, digest: Digest, upload: DirectoryUpload, size: int | None = None
    ) -> bool:
        """Put a blob or a manifest into an upload; False if the registry does not have it.

        Args:
            size: in bytes, where it is known: not one byte more is taken, nor is a transfer begun
                that announces another length. Where it is not, the announced length counts.

        Raises:
            ConfigError: it cannot be asked, does not let us, or the transfer broke.
        """
        if self.has(repository, digest):
            path = f"blobs/{digest}"
        elif self._runner.run(self._has(repository, f"manifests/{digest}")):
            path, size = f"manifests/{digest}", min(size or MAX_MANIFEST, MAX_MANIFEST)
        else:
            return False
        self._runner.run(self._fetch(repository, path, upload, size))
        return True

    def holds(self, repository: str, digest: Digest) -> bool:
        """See `registry.cli.sources.Source`: of another repository nothing is asked for."""
        return True

    def resolve(self, repository: str, tag: str) -> Digest | None:
        """The manifest that a tag of the registry points at; None where it has no such tag.

        Raises:
            ConfigError: it cannot be asked, or does not let us.
        """
        if not self._runner.run(self._has(repository, f"manifests/{tag}")):
            return None
        return self._runner.run(self._resolve(repository, tag))

    async def _resolve(self, repository: str, tag: str) -> Digest | None:
        url = f"{self._base}/v2/{repository}/manifests/{tag}"
        async with self._following("HEAD", url, self._tokens.get(repository)) as response:
            try:
                return digests.parse(response.headers.get("Docker-Content-Digest", ""))
            except DigestInvalid:
                return None

    async def _open(self) -> aiohttp.ClientSession:
        # A compressed response could expand to any size.
        return aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False)

    async def _has(self, repository: str, path: str) -> bool:
        url = f"{self._base}/v2/{repository}/{path}"
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

    async def _fetch(
        self, repository: str, path: str, upload: DirectoryUpload, size: int | None
    ) -> None:
        url = f"{self._base}/v2/{repository}/{path}"
        at = 0
        try:
            async with self._following("GET", url, self._tokens.get(repository)) as response:
                response.raise_for_status()
                limit = self._limit(response, path, size)
                async with asyncio.timeout(_START_SECONDS + limit / _SLOWEST):
                    async for piece in response.content.iter_chunked(_PIECE):
                        if at + len(piece) > limit:
                            raise self._wrong_size(path, f"more than {limit}", limit)
                        upload.write([piece], at)
                        at += len(piece)
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or "it took too long"
            raise ConfigError(f"{self._base}: {path} did not arrive: {reason}") from None

    def _limit(self, response: aiohttp.ClientResponse, path: str, size: int | None) -> int:
        """The most bytes to take of a response."""
        announced = response.content_length
        if path.startswith("manifests/"):
            assert size is not None
            if announced is not None and announced > size:
                raise self._wrong_size(path, str(announced), size)
            return size
        if size is None:
            if announced is None:
                raise ConfigError(f"{self._base}: {path} has no length: it is not taken")
            return announced
        if announced not in (None, size):
            raise self._wrong_size(path, str(announced), size)
        return size

    def _wrong_size(self, path: str, found: str, size: int) -> ConfigError:
        return ConfigError(
            f"{self._base}: {path} would be {found} bytes long, expected are {size}: not taken"
        )

    async def _head(self, url: str, authorization: str | None) -> tuple[int, str]:
        async with self._following("HEAD", url, authorization) as response:
            return response.status, response.headers.get("WWW-Authenticate", "")

    @contextlib.asynccontextmanager
    async def _following(
        self, method: str, url: str, authorization: str | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response, behind redirects too. Credentials stay with the registry that was named."""
        assert self._session is not None
        value = authorization or self._basic
        for _ in range(_MAX_REDIRECTS):
            headers = {"Accept": _ACCEPT, "Accept-Encoding": "identity"}
            if value and url.startswith(f"{self._base}/"):
                headers["Authorization"] = value
            async with self._session.request(
                method, url, headers=headers, timeout=_NO_LIMIT, allow_redirects=False
            ) as response:
                if response.status not in (301, 302, 303, 307, 308):
                    yield response
                    return
                url = self._redirected(url, response.headers.get("Location", ""))
        raise ConfigError(f"{self._base}: it redirects more than {_MAX_REDIRECTS} times")

    def _redirected(self, url: str, location: str) -> str:
        target = urljoin(url, location)
        schemes = ("https://",) if self._base.startswith("https:") else ("http://", "https://")
        if not target.startswith(schemes):
            raise ConfigError(f"{self._base}: it redirects to {target[:200]!r}: not followed")
        return target

    async def _token(self, challenge: str) -> str:
        assert self._session is not None
        fields = dict(_CHALLENGE.findall(challenge))
        realm = fields.pop("realm", "")
        if not realm.startswith(self._base + "/"):
            # Credentials go to the registry that was named, and to no other host it points at.
            raise ConfigError(f"{self._base}: its tokens come from elsewhere: {realm[:200]!r}")
        headers = {"Authorization": self._basic} if self._basic else {}
        query = {k: v for k, v in fields.items() if k in ("service", "scope")}
        async with self._session.get(
            realm, params=query, headers=headers, allow_redirects=False
        ) as response:
            body = await _bounded(response) if response.status == 200 else b"{}"
        try:
            document = json.loads(body)
            token = document.get("token") or document.get("access_token") or ""
        except (ValueError, RecursionError, AttributeError):
            raise ConfigError(f"{self._base}: its token cannot be read") from None
        return str(token)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """The body of a small answer.

    Raises:
        ConfigError: it is larger than any such answer is.
    """
    body = bytearray()
    async for piece in response.content.iter_chunked(_PIECE):
        body += piece
        if len(body) > _MAX_ANSWER:
            raise ConfigError(f"{response.url.origin()}: an answer has over {_MAX_ANSWER} bytes")
    return bytes(body)


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
