"""Push to another registry, as docker and containerd do (OCI distribution-spec, "Push").

A blob is sent in one session, and resumes where it broke as far as the registry has kept it:

    mount ──201──► there, without a transfer
      │ 202, or no source to mount from
      ▼
    session ──PUT the rest──► there
      ▲  │ broken, 429, 5xx, 416: ask for the offset; continue from there
      │  │ 413: send pieces by PATCH, PUT the last one
      └──┘ 404, or the offset is not told: a new session, unless the blob is there

The registry compares the digest, and the last bytes are only sent once they are proven here
(`registry.upstream.streams`). A session's URL comes from the registry; credentials go to its own
host alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode

import aiohttp

from mayfly.registry.upstream.client import (
    ACCEPT,
    Registry,
    described,
    joined,
    let_go,
    origin_of,
    pause_after,
    refusal,
    retry_after,
    shown,
)
from mayfly.registry.upstream.errors import ContentWrong, LoginRefused, NotThere, UpstreamError
from mayfly.registry.upstream.streams import BlobStream
from mayfly.storage.digest import Digest

PIECE_SIZE = 10 * 1024 * 1024
"""Bytes of a piece where a registry, or a proxy before it, refuses larger bodies."""

_STALL_SECONDS = 120.0
"""Most time in which a registry takes no byte."""

_COMMIT_SECONDS = 900.0
"""Most time from the last byte to the answer: some registries copy the blob once more."""

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30)
"""Timeouts of a request with a blob, which `_Body` ends."""

_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
_CREATED, _ACCEPTED, _NO_CONTENT = 201, 202, 204
_STORED = (_CREATED, _NO_CONTENT)
_TAKEN = (_ACCEPTED, _NO_CONTENT)
_TOO_LARGE = 413

_MAX_SCOPES = 16
"""Repositories to mount from that one token covers; of others the bytes are sent."""

Progress = Callable[[int], None]
"""Told how many bytes more were sent; fewer than none where some have to be sent again."""


class PushRegistry(Registry):
    """A registry to which images may be pushed; see `registry.upstream.client.Registry`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mounted: dict[str, set[str]] = {}
        """By repository, those that its token has to let blobs be mounted from."""

    async def digest_at(self, repository: str, tag: str) -> Digest | None:
        """The digest that a tag points at; None without the tag.

        Raises:
            LoginRefused, ContentWrong, UpstreamError.
        """
        try:
            announced = await self.tag_digest(repository, tag)
        except NotThere:
            return None
        if announced is not None:
            return announced
        found = await self.find_manifest(repository, tag)
        return None if found is None else found.digest

    async def has_manifest(self, repository: str, digest: Digest) -> bool:
        """Whether a repository has a manifest."""
        url = self._url(f"/v2/{repository}/manifests/{digest}")
        where = f"{self.host}/{repository}@{digest}"
        try:
            async with self._asked("HEAD", url, repository, where, {"Accept": ACCEPT}):
                return True
        except NotThere:
            return False

    async def put_manifest(
        self, repository: str, reference: str, body: bytes, media_type: str
    ) -> bool:
        """Push a manifest whose content is there.

        Args:
            repository: to push to.
            reference: a tag, or the manifest's digest.
            body: its exact bytes.
            media_type: of it.

        Returns:
            Whether the registry lists it among the referrers of its subject (``OCI-Subject``).

        Raises:
            LoginRefused, UpstreamError.
        """
        where = f"{self.host}/{repository}{'@' if ':' in reference else ':'}{reference}"
        url = self._url(f"/v2/{repository}/manifests/{reference}")
        wanted = (200, _CREATED, _ACCEPTED)
        async with self._asked(
            "PUT", url, repository, where, {"Content-Type": media_type}, body, wanted
        ) as response:
            return "OCI-Subject" in response.headers

    async def mount(self, repository: str, digest: Digest, source: str) -> str | None:
        """Link a blob of another repository; see `push_blob` for the result.

        Returns:
            None if it is there now, otherwise the URL of a session, or "" if the registry refused.
        """
        self._allow_source(repository, source)
        where = f"{self.host}/{repository}@{digest}"
        query = urlencode({"mount": str(digest), "from": source})
        url = self._url(f"/v2/{repository}/blobs/uploads/?{query}")
        try:
            async with self._asked(
                "POST", url, repository, where, {}, wanted=(_CREATED, _ACCEPTED)
            ) as response:
                return None if response.status == _CREATED else self._session_of(response, where)
        except UpstreamError:
            return ""  # not every registry mounts, and not from everywhere: send the bytes

    async def push_blob(
        self,
        repository: str,
        stream: BlobStream,
        progress: Progress,
        session: str = "",
    ) -> None:
        """Send a blob.

        Args:
            repository: to push to.
            stream: its bytes.
            progress: see `Progress`.
            session: the URL of a session that is open already, by `mount`.

        Raises:
            ContentWrong: the bytes have another digest; by the registry's word, or ours.
            LoginRefused, UpstreamError: it cannot be sent, or not be fetched.
        """
        await _Sending(self, repository, stream, progress).run(session)

    async def begin(self, repository: str, where: str) -> str:
        """Open an upload session; its URL."""
        url = self._url(f"/v2/{repository}/blobs/uploads/")
        async with self._asked("POST", url, repository, where, {}, wanted=(_ACCEPTED,)) as response:
            return self._session_of(response, where)

    async def offset(self, repository: str, session: str, where: str) -> tuple[str, int] | None:
        """Where a session stands: its URL from now on, and the number of bytes; None without it."""
        try:
            async with self._asked(
                "GET", session, repository, where, {}, wanted=(_NO_CONTENT, 200, _ACCEPTED)
            ) as response:
                found = _RANGE.fullmatch(response.headers.get("Range", ""))
                # 0-0 is one byte, or none: registries differ.
                at = int(found[1]) + 1 if found and found[1] != "0" else 0
                location = response.headers.get("Location")
                return (self._session_of(response, where) if location else session), at
        except UpstreamError:
            return None

    async def send(
        self,
        method: str,
        url: str,
        repository: str,
        where: str,
        headers: dict[str, str],
        body: _Body,
    ) -> aiohttp.ClientResponse:
        """Make one request with a long body, and return its answer, good or bad.

        Raises:
            aiohttp.ClientError, OSError: the connection broke.
        """
        authorization = await self._authorization(repository)
        async with asyncio.timeout(None) as limit:
            body.watch(limit)
            return await self._followed(method, url, headers, authorization, where, body, _TIMEOUT)

    async def renew(self, response: aiohttp.ClientResponse, repository: str, where: str) -> None:
        """Log in anew, as a 401 asks for."""
        challenge = response.headers.get("WWW-Authenticate", "")
        await self._authenticated(challenge, repository, where)

    async def rest(self, failures: int, header: str = "") -> None:
        """Wait before the next attempt, as long as a ``Retry-After`` asks."""
        if asked := retry_after(header):
            await self._pause(asked)
        else:
            await self._sleep(pause_after(failures))

    @property
    def attempts(self) -> int:
        """How often something is tried that fails for a reason that may pass."""
        return self._attempts

    def session_of(self, response: aiohttp.ClientResponse, where: str, before: str) -> str:
        """The URL of a session after a request."""
        has_moved = "Location" in response.headers
        return self._session_of(response, where) if has_moved else before

    def _session_of(self, response: aiohttp.ClientResponse, where: str) -> str:
        url = joined(str(response.url), response.headers.get("Location", ""), where)
        is_plain = origin_of(url)[0] == "http" and origin_of(self._access.url)[0] == "https"
        if is_plain or origin_of(url)[0] not in ("http", "https"):
            raise UpstreamError(f"{where}: {self.host} takes uploads at {shown(url)}: not used")
        return url

    def _allow_source(self, repository: str, source: str) -> None:
        """Let the next token for a repository also allow pulls from another one."""
        sources = self._mounted.setdefault(repository, set())
        if source not in sources and len(sources) < _MAX_SCOPES:
            sources.add(source)
            value, _ = self._tokens.get(repository, ("", 0.0))
            if value.startswith("Bearer "):
                del self._tokens[repository]

    def _scopes(self, repository: str) -> list[str]:
        if not repository:
            return super()._scopes(repository)
        others = sorted(self._mounted.get(repository, ()))
        return [
            f"repository:{repository}:pull,push",
            *(f"repository:{other}:pull" for other in others),
        ]


class _Sending:
    """One blob on its way to a registry."""

    def __init__(
        self, registry: PushRegistry, repository: str, stream: BlobStream, progress: Progress
    ) -> None:
        self._registry = registry
        self._repository = repository
        self._stream = stream
        self._where = f"{registry.host}/{repository}@{stream.digest}"
        self._progress = progress
        self._reported = 0
        self._piece = max(1, stream.size)

    async def run(self, session: str) -> None:
        """Send it; see `PushRegistry.push_blob`."""
        try:
            await self._run(session or await self._begin())
        except BaseException:
            self._report(0)
            raise
        self._report(self._stream.size)

    async def _run(self, session: str) -> None:
        at = failures = 0
        while True:
            end = min(self._stream.size, at + self._piece)
            self._report(at)
            status, problem, asked_pause = 0, "", ""
            try:
                response = await self._request(session, at, end)
            except (aiohttp.ClientError, OSError) as error:
                if self._stream.problem is not None:
                    raise self._stream.problem from None
                problem = described(error)
            else:
                status, asked_pause = response.status, response.headers.get("Retry-After", "")
                problem = f"{self._registry.host} answered {status}{await refusal(response)}"
                let_go(response)
                if end == self._stream.size and status in _STORED:
                    return
                if end < self._stream.size and status in _TAKEN:
                    session = self._registry.session_of(response, self._where, session)
                    at, failures = end, 0
                    continue
                await self._judge(status, problem, response, failures)
            resumed = await self._resumed(session if status != _TOO_LARGE else "")
            if resumed is None:
                return
            session, kept = resumed
            failures = 1 if kept > at else failures + 1
            at = kept
            if failures >= self._registry.attempts:
                raise UpstreamError(f"{self._where}: {problem}")
            if status not in (401, _TOO_LARGE):
                await self._registry.rest(failures, asked_pause)

    async def _judge(
        self, status: int, problem: str, response: aiohttp.ClientResponse, failures: int
    ) -> None:
        """Prepare the next attempt after a refusal.

        Raises:
            LoginRefused, ContentWrong, UpstreamError: another attempt would not help.
        """
        if status == 401 and failures == 0:
            await self._registry.renew(response, self._repository, self._where)
        elif status in (401, 403):
            raise LoginRefused(f"{self._where}: access denied ({status})")
        elif status == _TOO_LARGE and self._piece > PIECE_SIZE:
            self._piece = PIECE_SIZE
        elif status == 400 and "DIGEST_INVALID" in problem:
            raise ContentWrong(f"{self._where}: {problem}")
        elif status not in (404, 416, 429) and status < 500:
            raise UpstreamError(f"{self._where}: {problem}")

    async def _request(self, session: str, at: int, end: int) -> aiohttp.ClientResponse:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - at),
        }
        is_last = end == self._stream.size
        if end > at and not (at == 0 and is_last):
            headers["Content-Range"] = f"{at}-{end - 1}"
        url = session
        if is_last:
            url += ("&" if "?" in session else "?") + f"digest={self._stream.digest}"
        body = _Body(self._stream, at, end, self._report)
        method = "PUT" if is_last else "PATCH"
        return await self._registry.send(method, url, self._repository, self._where, headers, body)

    async def _resumed(self, session: str) -> tuple[str, int] | None:
        """The session to continue, and its offset; None if the blob is there already."""
        if session:
            found = await self._registry.offset(self._repository, session, self._where)
            if found is not None and found[1] <= self._stream.size:
                return found
        # The answer to the last request may be all that was lost.
        if await self._registry.has_blob(self._repository, self._stream.digest):
            return None
        return await self._begin(), 0

    async def _begin(self) -> str:
        return await self._registry.begin(self._repository, self._where)

    def _report(self, at: int) -> None:
        if at != self._reported:
            self._progress(at - self._reported)
            self._reported = at


class _Body:
    """The bytes of a request; they can be asked for again, from their start."""

    def __init__(
        self, stream: BlobStream, start: int, end: int, report: Callable[[int], None]
    ) -> None:
        self._stream = stream
        self._start = start
        self._end = end
        self._report = report
        self._limit: asyncio.Timeout | None = None

    def watch(self, limit: asyncio.Timeout) -> None:
        """End the request if the registry takes nothing for too long."""
        self._limit = limit
        self._expect(_COMMIT_SECONDS)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        at = self._start
        # A source that is slow, or waits, has limits of its own.
        self._expect(None)
        async for piece in self._stream.pieces(self._start, self._end):
            self._expect(_STALL_SECONDS)
            yield piece
            self._expect(None)
            at += len(piece)
            self._report(at)
        self._expect(_COMMIT_SECONDS)

    def _expect(self, seconds: float | None) -> None:
        # Some registries answer before they have the whole body: the timeout has ended by then.
        with contextlib.suppress(RuntimeError):
            if self._limit is not None:
                loop = asyncio.get_running_loop()
                self._limit.reschedule(None if seconds is None else loop.time() + seconds)
