"""The registries that one command talks to: how each is reached, over one pool of connections."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

import aiohttp

from mayfly.registry.address import is_loopback
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.upstream.client import ATTEMPTS, Access, Registry
from mayfly.registry.upstream.credentials import Credentials, CredentialStore
from mayfly.registry.upstream.push import PushRegistry
from mayfly.registry.version import VERSION
from mayfly.storage.reference import address_of, canonical_host

_CONNECTIONS_PER_HOST = 128
"""More than are asked for at once: waiting for one counts as waiting for the answer."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How registries are reached.

    Attributes:
        mirrors: host, as in image names, to the URL to ask instead.
        insecure: hosts that are asked by plain HTTP, as loopback is.
        secure: hosts on loopback that are asked by HTTPS.
        ca: PEM file of CAs that are trusted besides the system's.
        credentials: host to credentials that win over stored logins.
        unverified: hosts whose certificate is not verified.
        certificates: host to the directory of its certificates (containers-certs.d(5)).
        logins: files of stored logins; None for those of docker and podman.
    """

    mirrors: Mapping[str, str] = field(default_factory=dict)
    insecure: frozenset[str] = frozenset()
    secure: frozenset[str] = frozenset()
    ca: Path | None = None
    credentials: Mapping[str, Credentials] = field(default_factory=dict)
    unverified: frozenset[str] = frozenset()
    certificates: Mapping[str, Path] = field(default_factory=dict)
    logins: tuple[Path, ...] | None = None


class Registries:
    """Registries by host; an async context manager.

    Args:
        reach: how they are reached.
        connections: to one host at a time; requests beyond wait for one.

    Raises:
        OSError, ssl.SSLError: the CA file cannot be read.
    """

    def __init__(self, reach: Reach, connections: int = _CONNECTIONS_PER_HOST) -> None:
        self._reach = reach
        self._connections = connections
        self._trust = _context(reach.ca)
        self._credentials = CredentialStore(reach.credentials, files=reach.logins)
        self._known: dict[str, Registry] = {}
        self._targets: dict[str, PushRegistry] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._connections),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"mayfly/{VERSION}"},
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    def at(self, host: str, attempts: int = ATTEMPTS) -> Registry:
        """The registry of an image name's host.

        Args:
            host: as in image names.
            attempts: see `Registry`; those of the first call for a host count.
        """
        assert self._session is not None
        host = canonical_host(host)
        if host not in self._known:
            reached = self._access(host)
            self._known[host] = Registry(
                self._session, host, reached, self._credentials, attempts=attempts
            )
        return self._known[host]

    def target(self, host: str) -> PushRegistry:
        """The registry of an image name's host, to push to; never a mirror of it."""
        assert self._session is not None
        host = canonical_host(host)
        if host not in self._targets:
            self._targets[host] = PushRegistry(
                self._session, host, self._direct(host), self._credentials
            )
        return self._targets[host]

    def at_url(self, url: str, attempts: int = ATTEMPTS) -> Registry:
        """The registry at a URL, which may hold a user name and password.

        Raises:
            ConfigError: the URL names no registry.
        """
        assert self._session is not None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ConfigError(f"{_without_login(url)}: expected http(s)://HOST:PORT of a registry")
        host = parts.netloc.rpartition("@")[2]
        credentials = self._credentials
        if parts.username:
            login = Credentials(unquote(parts.username), unquote(parts.password or ""))
            credentials = CredentialStore({host: login})
        access = Access(_without_login(url).rstrip("/"), None, self._trust)
        return Registry(self._session, host, access, credentials, attempts=attempts)

    def _access(self, host: str) -> Access:
        if host in self._reach.mirrors:
            url = _without_login(self._reach.mirrors[host]).rstrip("/")
            return Access(url, host, self._trust_of(urlsplit(url).netloc))
        return self._direct(host)

    def _direct(self, host: str) -> Access:
        is_plain = host in self._reach.insecure or (
            is_loopback(host) and host not in self._reach.secure
        )
        scheme = "http" if is_plain else "https"
        return Access(f"{scheme}://{address_of(host)}", None, self._trust_of(host))

    def _trust_of(self, host: str) -> ssl.SSLContext:
        """The trust for a host of which the operator said more than for all."""
        directory = self._reach.certificates.get(host)
        is_unverified = host in self._reach.unverified
        if directory is None and not is_unverified:
            return self._trust
        trust = _context(self._reach.ca)
        if directory is not None:
            _load(trust, directory)
        if is_unverified:
            trust.check_hostname = False
            trust.verify_mode = ssl.CERT_NONE
        return trust


def _context(ca: Path | None) -> ssl.SSLContext:
    trust = ssl.create_default_context()
    if ca is not None:
        trust.load_verify_locations(ca)
    return trust


def _load(trust: ssl.SSLContext, directory: Path) -> None:
    """Load CAs (``.crt``) and client certificates (``.cert`` with ``.key``) of a directory.

    Raises:
        ConfigError: there is none that can be used.
    """
    try:
        names = sorted(directory.iterdir())
        for path in names:
            if path.suffix == ".crt":
                trust.load_verify_locations(path)
            elif path.suffix == ".cert":
                trust.load_cert_chain(path, path.with_suffix(".key"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cert-dir {directory}: {error.strerror or error}") from None


def _without_login(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{mark}{authority.rpartition('@')[2]}{slash}{path}"
