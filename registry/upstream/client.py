"""Ask another registry, as docker and containerd do (OCI distribution-spec, "Pull").

One `Registry` is one host. It speaks HTTPS, or HTTP where the host is loopback or was named as
insecure; gets tokens by the challenge of the first 401; and retries after errors that may pass:

    ask ──200/206──► answer
     │ 401, once: get a token, ask again
     │ 3xx: follow, without credentials when the host differs
     │ 429, 5xx, broken connection: wait (Retry-After, or 2 s doubling to 30 s), ask again

Nothing here trusts the other side: every body has a limit and a slowest rate, digests are computed
and compared, tokens come by HTTPS or from the registry itself, and credentials never follow a
redirect to another host.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import re
import ssl
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit
from weakref import WeakValueDictionary

import aiohttp

from mayfly.registry.threads import in_thread
from mayfly.registry.upstream.credentials import Credentials, CredentialStore
from mayfly.registry.upstream.errors import (
    ContentWrong,
    LoginRefused,
    NotThere,
    RequestRefused,
    UpstreamError,
)
from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import DigestInvalid, StorageError
from mayfly.storage.manifest import DOCKER_LIST, DOCKER_MANIFEST, MAX_SIZE, OCI_INDEX, OCI_MANIFEST
from mayfly.storage.text import counted, counted_of

ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*;q=0.1"))
ATTEMPTS = 5
PIECE = 1024 * 1024
"""Bytes of a blob handed on at once."""

_MAX_REDIRECTS = 5
_REDIRECTS_OF_BODIES = (307, 308)
_REDIRECTS = (301, 302, 303, *_REDIRECTS_OF_BODIES)
_MAX_DOCUMENT = 8 * 1024 * 1024
"""Largest list of tags or referrers in one page."""

_MAX_LIST = 64 * 1024 * 1024
"""Most bytes of all pages of a list."""

_MAX_TOKEN = 256 * 1024
_MOST_TOKENS = 1000
_MAX_REASON = 16 * 1024
_REASON_SECONDS = 5.0
_MAX_PAGES = 10_000
_FIRST_WAIT, _LONGEST_WAIT = 2.0, 30.0
_LONGEST_RETRY_AFTER = 600.0
_TOKEN_MARGIN = 30.0
"""Seconds before its end in which a token is no longer used."""

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
_HEAD_SECONDS = 120.0
"""For a connection and the head of an answer."""

_START_SECONDS = 120.0
_SLOWEST = 32 * 1024
"""Bytes a second of the slowest body that is waited for, after some time to start."""

_CHALLENGE_FIELD = re.compile(r'\b([A-Za-z_]+)="([^"]*)"')
_NEXT = re.compile(r'<([^<>]{1,4096})>\s*;\s*rel="?next"?')


@dataclass(frozen=True, slots=True)
class Fetched:
    """A manifest as a registry gave it: its exact bytes, verified where a digest was asked for."""

    body: bytes
    media_type: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Access:
    """How a registry is reached.

    Attributes:
        url: scheme, host and port, and a path prefix; without a slash at the end.
        namespace: the value of ``ns``, when the URL is a mirror of another host; otherwise None.
        ssl: the trust for HTTPS.
    """

    url: str
    namespace: str | None
    ssl: ssl.SSLContext

    @property
    def own_url(self) -> str | None:
        """The URL of the registry itself; None of a mirror."""
        return self.url if self.namespace is None else None

    def login_host(self, host: str) -> str:
        """The host whose login is used: a mirror's own host, never the one that it mirrors."""
        return host if self.namespace is None else urlsplit(self.url).netloc


class Registry:
    """One registry.

    Args:
        session: shared by all registries of a job; its cookies and redirects are not used.
        host: as it stands in image names, for messages and credentials.
        reached: see `Access`.
        credentials: where logins are found.
        slept: waits between attempts; replaced in tests.
        attempts: how often a request is made that fails for a reason that may pass.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        host: str,
        reached: Access,
        credentials: CredentialStore,
        slept: Callable[[float], Awaitable[None]] = asyncio.sleep,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.host = host
        self._session = session
        self._access = reached
        self._credentials = credentials
        self._sleep = slept
        self._attempts = attempts
        self._tokens: dict[str, tuple[str, float]] = {}
        """Repository to the ``Authorization`` value and the monotonic time of its end."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._resumes_at = 0.0
        """Monotonic time until which the registry wants no request (``Retry-After``)."""

    @property
    def paused_for(self) -> float:
        """Seconds for which the registry wants no request; 0 mostly."""
        return max(0.0, self._resumes_at - time.monotonic())

    @property
    def url(self) -> str | None:
        """Where it is; None for a mirror, which is not the registry that names say."""
        return self._access.own_url

    async def manifest(self, repository: str, reference: str) -> Fetched:
        """A manifest by tag or digest.

        Raises:
            NotThere, LoginRefused, ContentWrong, UpstreamError.
        """
        where = f"{self.host}/{repository}{'@' if ':' in reference else ':'}{reference}"
        url = self._url(f"/v2/{repository}/manifests/{reference}")
        headers = {"Accept": ACCEPT}
        response, body = await self._read(url, repository, where, headers, MAX_SIZE)
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        announced = response.headers.get("Docker-Content-Digest")
        wanted = reference if ":" in reference else announced
        try:
            digest = digests.parse(wanted) if wanted else digests.of(body)
        except StorageError as error:
            raise ContentWrong(f"{where}: {error.message}") from None
        if digests.of(body, digest.algorithm) != digest:
            raise ContentWrong(f"{where}: the manifest that arrived does not have digest {digest}")
        return Fetched(body, media_type, digest)

    async def find_manifest(self, repository: str, reference: str) -> Fetched | None:
        """A manifest, None if the registry does not have it."""
        try:
            return await self.manifest(repository, reference)
        except NotThere:
            return None

    async def resolve(self, repository: str, tag: str) -> Digest | None:
        """The digest that a tag points at, by HEAD; None without the tag or such a header."""
        try:
            return await self.tag_digest(repository, tag)
        except NotThere:
            return None

    async def tag_digest(self, repository: str, tag: str) -> Digest | None:
        """The digest that a tag points at, by HEAD; None without such a header.

        Raises:
            NotThere, LoginRefused, UpstreamError.
        """
        url = self._url(f"/v2/{repository}/manifests/{tag}")
        where = f"{self.host}/{repository}:{tag}"
        async with self._asked("HEAD", url, repository, where, {"Accept": ACCEPT}) as response:
            try:
                return digests.parse(response.headers.get("Docker-Content-Digest", ""))
            except DigestInvalid:
                return None

    async def blob_size(self, repository: str, digest: Digest) -> int | None:
        """The size in bytes of a blob, by HEAD; None where the registry does not tell it.

        Raises:
            NotThere, LoginRefused, UpstreamError.
        """
        where = f"{self.host}/{repository}@{digest}"
        url = self._url(f"/v2/{repository}/blobs/{digest}")
        async with self._asked("HEAD", url, repository, where, {}) as response:
            return response.content_length

    async def has_blob(self, repository: str, digest: Digest) -> bool:
        """Whether the registry has a blob in a repository."""
        try:
            await self.blob_size(repository, digest)
        except NotThere:
            return False
        return True

    async def blob(
        self, repository: str, digest: Digest, size: int, start: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``start`` on, in pieces.

        A connection that breaks is resumed by Range where it broke. The caller hashes; here it is
        only held that not more than ``size`` bytes arrive, and not fewer.

        Raises:
            NotThere, LoginRefused, ContentWrong, UpstreamError.
        """
        where = f"{self.host}/{repository}@{digest}"
        url = self._url(f"/v2/{repository}/blobs/{digest}")
        at = start
        failures = 0
        while at < size or (at == size == 0):
            headers = {"Range": f"bytes={at}-{size - 1}"} if at else {}
            before = at
            try:
                async with self._asked("GET", url, repository, where, headers) as response:
                    skip = _skipped(response, at, where)
                    _check_length(response, size - at + skip, where)
                    async for piece in _pieces(response, where):
                        if skip:
                            piece, skip = piece[skip:], max(0, skip - len(piece))
                        at += len(piece)
                        if at > size:
                            announced = counted(size, "byte")
                            raise ContentWrong(f"{where}: longer than the {announced} announced")
                        if piece:
                            yield piece
                if at == size:
                    return
                problem = f"ended after {counted_of(at, size, 'byte')}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = described(error)
            failures = failures + 1 if at == before else 1
            if failures >= self._attempts:
                raise UpstreamError(f"{where}: {problem}")
            await self._sleep(pause_after(failures))

    async def tags(self, repository: str) -> list[str]:
        """Every tag of a repository, in the registry's order."""
        found: list[str] = []
        url: str | None = self._url(f"/v2/{repository}/tags/list", n="1000")
        async for page in self._pages(url, repository, f"{self.host}/{repository}: tags"):
            tags = page.get("tags") or []
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                raise UpstreamError(f"{self.host}/{repository}: its list of tags is damaged")
            found += tags
        return found

    async def referrers(self, repository: str, digest: Digest) -> list[Digest] | None:
        """Digests of a manifest's referrers; None if the registry has no referrers API."""
        found: list[Digest] = []
        where = f"{self.host}/{repository}@{digest}: referrers"
        try:
            url = self._url(f"/v2/{repository}/referrers/{digest}")
            async for page in self._pages(url, repository, where):
                entries = page.get("manifests") or []
                found += [digests.parse(str(entry["digest"])) for entry in entries]
        except (NotThere, RequestRefused):
            return None
        except (StorageError, KeyError, TypeError, AttributeError):
            raise UpstreamError(f"{where}: the list is damaged") from None
        return found

    async def repositories(self) -> list[str]:
        """Every repository that the registry lists (``_catalog``), in its order."""
        found: list[str] = []
        where = f"{self.host}: repositories"
        # Its scope is no repository's: a token for it is filed under no name.
        async for page in self._pages(self._url("/v2/_catalog", n="1000"), "", where):
            names = page.get("repositories") or []
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise UpstreamError(f"{where}: the list is damaged")
            found += names
        return found

    async def _pages(
        self, url: str | None, repository: str, where: str
    ) -> AsyncIterator[dict[str, Any]]:
        left = _MAX_LIST
        for _ in range(_MAX_PAGES):
            if url is None:
                return
            limit = min(_MAX_DOCUMENT, left)
            response, body = await self._read(url, repository, where, {}, limit)
            left -= len(body)
            link = _NEXT.search(response.headers.get("Link", ""))
            here = str(response.url)
            try:
                page = await in_thread(json.loads, body)
            except (ValueError, RecursionError):
                page = None
            if not isinstance(page, dict):
                raise UpstreamError(f"{where}: the answer is not a JSON object")
            yield page
            url = joined(here, link[1], where) if link else None
            if url is not None and origin_of(url) != origin_of(here):
                raise UpstreamError(f"{where}: its next page is on another host")
        raise UpstreamError(f"{where}: more than {_MAX_PAGES} pages")

    async def _read(
        self, url: str, repository: str, where: str, headers: dict[str, str], limit: int
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """Get a document of at most ``limit`` bytes, anew if the connection breaks in its body."""
        failures = 0
        while True:
            try:
                async with self._asked("GET", url, repository, where, headers) as response:
                    return response, await _limited(response, limit, where)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failures += 1
                if failures >= self._attempts:
                    raise UpstreamError(f"{where}: {described(error)}") from None
                await self._sleep(pause_after(failures))

    def _url(self, path: str, **query: str) -> str:
        if self._access.namespace:
            query["ns"] = self._access.namespace
        end = "&".join(f"{key}={value}" for key, value in query.items())
        return f"{self._access.url}{path}" + (f"?{end}" if end else "")

    @asynccontextmanager
    async def _asked(
        self,
        method: str,
        url: str,
        repository: str,
        where: str,
        headers: dict[str, str],
        body: bytes = b"",
        wanted: Collection[int] = (200, 206),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful answer, after as many attempts as it takes."""
        response = await self._attempted(method, url, repository, where, headers, body, wanted)
        try:
            yield response
        finally:
            let_go(response)

    async def _attempted(
        self,
        method: str,
        url: str,
        repository: str,
        where: str,
        headers: dict[str, str],
        body: bytes,
        wanted: Collection[int],
    ) -> aiohttp.ClientResponse:
        authorization = await self._authorization(repository)
        is_renewed = False
        failures = 0
        while True:
            if paused := self.paused_for:
                await self._sleep(paused)
            try:
                response = await self._followed(method, url, headers, authorization, where, body)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failures += 1
                if failures >= self._attempts or isinstance(error, aiohttp.ClientSSLError):
                    raise UpstreamError(f"{where}: {described(error)}") from None
                await self._sleep(pause_after(failures))
                continue
            if response.status in wanted:
                return response
            challenge = response.headers.get("WWW-Authenticate", "")
            asked_pause = response.headers.get("Retry-After", "")
            status = response.status
            reason = await refusal(response)
            let_go(response)
            if status == 401 and not is_renewed:
                is_renewed = True
                authorization = await self._authenticated(challenge, repository, where)
            elif status in (401, 403):
                raise LoginRefused(
                    f"{where}: access denied ({status}); log in to {self.host} with docker login "
                    "or podman login"
                )
            elif status == 404:
                raise NotThere(f"{where}: {self.host} does not have it")
            elif status == 429 or status >= 500:
                failures += 1
                if failures >= self._attempts:
                    raise UpstreamError(
                        f"{where}: {self.host} answered {status} {counted(failures, 'time')}"
                    )
                if asked := retry_after(asked_pause):
                    await self._pause(asked)
                else:
                    await self._sleep(pause_after(failures))
            else:
                kind = RequestRefused if 400 <= status < 500 else UpstreamError
                raise kind(f"{where}: {self.host} answered {status}{reason}")

    async def _pause(self, seconds: float) -> None:
        """Wait, and have all requests to this registry wait until then."""
        until = time.monotonic() + seconds
        self._resumes_at = max(self._resumes_at, until)
        await self._sleep(seconds)
        if self._resumes_at == until:
            self._resumes_at = 0.0

    async def _followed(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        authorization: str | None,
        where: str,
        body: bytes | AsyncIterable[bytes] = b"",
        limits: aiohttp.ClientTimeout = _TIMEOUT,
    ) -> aiohttp.ClientResponse:
        # Also a URL that the registry itself gave may be on another host.
        first = origin_of(self._access.url)
        for _ in range(_MAX_REDIRECTS + 1):
            # A compressed answer could expand to any size, and would not have the content's digest.
            own = {**headers, "Accept-Encoding": "identity"}
            if authorization and origin_of(url) == first:
                own["Authorization"] = authorization
            # Without a limit of its own a head could come a byte a minute.
            async with asyncio.timeout(_HEAD_SECONDS if method in ("GET", "HEAD") else None):
                response = await self._session.request(
                    method,
                    url,
                    headers=own,
                    data=body or None,
                    allow_redirects=False,
                    timeout=limits,
                    ssl=self._access.ssl,
                )
            if response.status not in _REDIRECTS:
                return response
            if method not in ("GET", "HEAD") and response.status not in _REDIRECTS_OF_BODIES:
                return response  # the request would become another one
            response.close()
            url = joined(url, response.headers.get("Location", ""), where)
            if not url.startswith(
                ("https://",) if first[0] == "https" else ("https://", "http://")
            ):
                raise UpstreamError(f"{where}: it redirects to {shown(url)}: not followed")
        raise UpstreamError(f"{where}: it redirects more than {_MAX_REDIRECTS} times")

    async def _authorization(self, repository: str) -> str | None:
        value, end = self._tokens.get(repository, ("", 0.0))
        return value if value and time.monotonic() < end else None

    async def _authenticated(self, challenge: str, repository: str, where: str) -> str | None:
        """The ``Authorization`` that answers a challenge; one request for a repository at once."""
        host = self._access.login_host(self.host)
        login = await self._credentials.find(host, repository)
        scheme = challenge.partition(" ")[0].lower()
        if scheme == "basic":
            if login is None or login.basic is None:
                raise LoginRefused(f"{where}: {host} asks for a login; use docker login {host}")
            self._remember(repository, login.basic, float("inf"))
            return login.basic
        if scheme != "bearer":
            raise LoginRefused(f"{where}: {self.host} asks for authentication of an unknown kind")
        used = self._tokens.get(repository)
        async with self._locks.setdefault(repository, asyncio.Lock()):
            renewed = self._tokens.get(repository)
            if renewed is not None and renewed != used:
                return renewed[0]
            value, seconds = await self._token(challenge, login, repository, where)
            end = time.monotonic() + max(seconds - _TOKEN_MARGIN, seconds / 2)
            self._remember(repository, f"Bearer {value}", end)
            return f"Bearer {value}"

    def _remember(self, repository: str, authorization: str, end: float) -> None:
        # A server's clients choose the names that it asks for.
        if len(self._tokens) >= _MOST_TOKENS:
            self._tokens.clear()
        self._tokens[repository] = authorization, end

    async def _token(
        self, challenge: str, login: Credentials | None, repository: str, where: str
    ) -> tuple[str, float]:
        fields = dict(_CHALLENGE_FIELD.findall(challenge[:16384]))
        realm = fields.get("realm", "")
        if not _may_ask(realm, self._access.url):
            raise LoginRefused(
                f"{where}: the tokens of {self.host} come from elsewhere and not by HTTPS: "
                f"{shown(realm)}"
            )
        scopes = self._scopes(repository)
        service = fields.get("service", "")
        if login is not None and login.identity_token:
            form = {
                "service": service,
                "scope": " ".join(scopes),
                "grant_type": "refresh_token",
                "refresh_token": login.identity_token,
                "client_id": "mayfly",
            }
            request = self._session.post(
                realm, data=form, ssl=self._access.ssl, timeout=_TIMEOUT, allow_redirects=False
            )
        else:
            headers = {"Authorization": login.basic} if login and login.basic else {}
            request = self._session.get(
                realm,
                params=[("service", service), *(("scope", scope) for scope in scopes)],
                headers=headers,
                ssl=self._access.ssl,
                timeout=_TIMEOUT,
                allow_redirects=False,
            )
        try:
            async with request as response:
                if response.status in (401, 403):
                    raise LoginRefused(f"{where}: {self.host} does not accept these credentials")
                if response.status != 200:
                    raise UpstreamError(f"{where}: {shown(realm)} answered {response.status}")
                document = json.loads(await _limited(response, _MAX_TOKEN, where))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamError(f"{where}: {shown(realm)}: {described(error)}") from None
        except (ValueError, RecursionError):
            document = None
        document = document if isinstance(document, dict) else {}
        value = document.get("token") or document.get("access_token")
        if not isinstance(value, str) or not value.isprintable():
            raise UpstreamError(f"{where}: {shown(realm)} gave no token")
        return value, _lifetime(document.get("expires_in"))

    def _scopes(self, repository: str) -> list[str]:
        """The scopes that a token is asked for (distribution's token spec, "scope")."""
        return [f"repository:{repository}:pull" if repository else "registry:catalog:*"]


def _may_ask(realm: str, registry: str) -> bool:
    """Whether credentials may be sent to a realm: by HTTPS, or to the registry itself."""
    try:
        return realm.startswith("https://") or origin_of(realm) == origin_of(registry)
    except ValueError:
        return False


def _lifetime(expires_in: object) -> float:
    """Seconds that a token lives; 60 where the answer does not say (distribution's token spec)."""
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float):
        return 60.0
    return float(max(60, min(expires_in, 86400)))


def let_go(response: aiohttp.ClientResponse) -> None:
    """End an answer; its connection is used again if the body was read to its end."""
    response.release() if response.content.is_eof() else response.close()


async def refusal(response: aiohttp.ClientResponse) -> str:
    """Return the first error of an OCI error document, to be added to a message; "" without one."""
    try:
        async with asyncio.timeout(_REASON_SECONDS):
            document = json.loads(await response.content.read(_MAX_REASON))
        first = document["errors"][0]
        text = f"{first['code']}: {first.get('message', '')}"
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return f" ({text[:300]})"


def _skipped(response: aiohttp.ClientResponse, start: int, where: str) -> int:
    """How many bytes of an answer lie before ``start``: all of them where Range was ignored."""
    if response.status != 206:
        return start
    found = re.fullmatch(r"bytes ([0-9]{1,19})-.*", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != start:
        raise ContentWrong(f"{where}: asked from byte {start}, the answer is another part")
    return 0


def _check_length(response: aiohttp.ClientResponse, size: int, where: str) -> None:
    """See that an answer, where it tells its length, has the one that is expected."""
    announced = response.content_length
    if announced is not None and announced != size:
        length = counted(announced, "byte")
        raise ContentWrong(f"{where}: would be {length} long, expected are {size}: not taken")


async def _pieces(response: aiohttp.ClientResponse, where: str) -> AsyncIterator[bytes]:
    """A body in pieces, as long as it does not arrive too slowly.

    Raises:
        UpstreamError: it does. Only the time spent waiting for it counts.
    """
    received = 0
    waited = 0.0
    while True:
        began = time.monotonic()
        piece = await response.content.read(PIECE)
        waited += time.monotonic() - began
        received += len(piece)
        if waited > _START_SECONDS + received / _SLOWEST:
            raise UpstreamError(
                f"{where}: it arrives too slowly: {received} bytes in {waited:.0f}s"
            )
        if not piece:
            return
        yield piece


async def _limited(response: aiohttp.ClientResponse, limit: int, where: str) -> bytes:
    """A whole body, if it is not longer than it may be."""
    body = bytearray()
    if (response.content_length or 0) > limit:
        raise ContentWrong(f"{where}: the answer is longer than {limit} bytes")
    async for piece in _pieces(response, where):
        body += piece
        if len(body) > limit:
            raise ContentWrong(f"{where}: the answer is longer than {limit} bytes")
    return bytes(body)


def joined(base: str, target: str, where: str) -> str:
    """Return an absolute URL that `_origin` can read.

    Raises:
        UpstreamError: the target is no URL.
    """
    try:
        url = urljoin(base, target)
        origin_of(url)
    except ValueError:
        raise UpstreamError(f"{where}: it leads to {shown(target)}, which is no URL") from None
    return url


def shown(url: str) -> str:
    """Return a URL for messages, without its query and login, which may be secrets."""
    bare = url.partition("?")[0].partition("#")[0]
    scheme, mark, rest = bare.rpartition("://")
    authority, slash, path = rest.partition("/")
    return repr(f"{scheme}{mark}{authority.rpartition('@')[2]}{slash}{path}"[:200])


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port of a URL.

    Raises:
        ValueError: it is no URL.
    """
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def pause_after(failures: int) -> float:
    """Seconds before the next attempt, with some chance in it so that clients do not march."""
    longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (failures - 1))
    return longest * random.uniform(0.5, 1.0)


def retry_after(value: str) -> float | None:
    """Seconds that a ``Retry-After`` asks for (RFC 9110, 10.2.3), at most ten minutes."""
    if value.isascii() and value.isdigit() and len(value) < 10:
        return min(float(value), _LONGEST_RETRY_AFTER)
    try:
        date = email.utils.parsedate_to_datetime(value[:100])
    except ValueError:
        return None
    if date.tzinfo is None:
        return None
    return min(max(date.timestamp() - time.time(), 0.0), _LONGEST_RETRY_AFTER)


def described(error: BaseException) -> str:
    """Describe a broken connection in a message."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return (
            f"its certificate is not trusted ({error.certificate_error.args[-1]}); "
            "give its CA with --ca FILE"
        )
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = error.os_error.strerror or type(error.os_error).__name__
        return f"cannot connect to {error.host}:{error.port}: {reason}"
    if isinstance(error, aiohttp.InvalidURL):
        return f"{shown(str(error.url))} is no URL that can be asked"
    return str(error) or type(error).__name__
