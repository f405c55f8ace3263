"""A request's way: parse, check access, handle. Three hops, and one place where errors end.

There is one catch-all; `HANDLERS` says which endpoints exist, `registry.access.needs` who may use
them.
"""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import replace

from aiohttp.web_response import StreamResponse

from mayfly.registry import log
from mayfly.registry.access.guard import Caller, Guard
from mayfly.registry.api import blobs, errors, health, listings, manifests, request, token, uploads
from mayfly.registry.api.context import JSON, Context, Handler, Lifeline, Names, answer, as_asked
from mayfly.registry.api.manifest_cache import ManifestCache
from mayfly.registry.api.request import Endpoint
from mayfly.registry.http.body import HTTPRequest
from mayfly.storage.bundle.errors import NameAmbiguous
from mayfly.storage.errors import NameInvalid, StorageFull, of_disk
from mayfly.storage.interface import Store

logger = logging.getLogger("mayfly")

_ABSOLUTE = re.compile(r"\Ahttps?://[^/?]*(?=/)", re.IGNORECASE)
"""What an absolute request target has before its path (RFC 9112, 3.2.2); no host is ours alone."""

PROBES = frozenset({Endpoint.BASE, Endpoint.ROOT, Endpoint.LIVE, Endpoint.READY, Endpoint.TOKEN})
"""Endpoints that do not count as activity."""

_OF_A_NODE = frozenset({Endpoint.MANIFEST, Endpoint.BLOB})
"""Endpoints that a credential for an unlisted node may not use: its pulls would never count."""

HANDLERS: dict[tuple[Endpoint, str], Handler] = {
    (Endpoint.BASE, "GET"): health.base,
    (Endpoint.BASE, "HEAD"): health.base,
    (Endpoint.ROOT, "GET"): health.root,
    (Endpoint.ROOT, "HEAD"): health.root,
    (Endpoint.LIVE, "GET"): health.alive,
    (Endpoint.LIVE, "HEAD"): health.alive,
    (Endpoint.READY, "GET"): health.ready,
    (Endpoint.READY, "HEAD"): health.ready,
    (Endpoint.TOKEN, "GET"): token.get,
    (Endpoint.TOKEN, "POST"): token.post,
    (Endpoint.CATALOG, "GET"): listings.catalog,
    (Endpoint.TAGS, "GET"): listings.tags,
    (Endpoint.REFERRERS, "GET"): listings.referrers,
    (Endpoint.MANIFEST, "GET"): manifests.get,
    (Endpoint.MANIFEST, "HEAD"): manifests.get,
    (Endpoint.MANIFEST, "PUT"): manifests.put,
    (Endpoint.MANIFEST, "DELETE"): manifests.delete,
    (Endpoint.BLOB, "GET"): blobs.get,
    (Endpoint.BLOB, "HEAD"): blobs.get,
    (Endpoint.BLOB, "DELETE"): blobs.delete,
    (Endpoint.UPLOADS, "POST"): uploads.begin,
    (Endpoint.UPLOAD, "GET"): uploads.status,
    (Endpoint.UPLOAD, "PATCH"): uploads.patch,
    (Endpoint.UPLOAD, "PUT"): uploads.finish,
    (Endpoint.UPLOAD, "DELETE"): uploads.cancel,
}


class App:
    """The registry as a function from request to response."""

    def __init__(
        self,
        store: Store,
        guard: Guard,
        lifeline: Lifeline,
        names: Names = as_asked,
        prefix: str = "",
    ) -> None:
        self._store = store
        self._manifests = ManifestCache()
        self._guard = guard
        self._lifeline = lifeline
        self._names = names
        self._prefix = prefix

    async def __call__(self, http: HTTPRequest) -> StreamResponse:
        """Answer one request; what goes wrong becomes an OCI error document."""
        response = await self._answer(http)
        if self._prefix and not response.prepared:
            self._below_prefix(response)
        if http.body is not None and not http.body.skip_held():
            response.force_close()
        return response

    async def _answer(self, http: HTTPRequest) -> StreamResponse:
        try:
            path, _, query = _ABSOLUTE.sub("", http.raw_path, count=1).partition("?")
            if self._prefix and path.startswith(self._prefix + "/"):
                path = path[len(self._prefix) :]  # a proxy may strip it, or leave it
            asked = request.parse(http.method, path, query)
            try:
                understood = self._resolve(asked)
            except (NameAmbiguous, NameInvalid):
                # The names of upstreams are for callers who may pull from them.
                await self._guard.admit(http, asked)
                raise
            caller = await self._guard.admit(http, understood, asked)
            if understood.endpoint in PROBES:
                return await self._handle(http, understood, caller)
            activity = self._lifeline.activity
            activity.begin()
            try:
                return await self._handle(http, understood, caller)
            finally:
                activity.end()
        except ConnectionError:
            raise
        except Exception as error:
            return refusal(error, http)

    def _below_prefix(self, response: StreamResponse) -> None:
        """Put the prefix of ``--external-url`` before the paths in response headers."""
        for name, start in (("Location", "/"), ("Link", "</")):
            value = response.headers.get(name, "")
            if value.startswith(start):
                response.headers[name] = f"{start[:-1]}{self._prefix}{value[len(start) - 1 :]}"

    async def _handle(
        self, http: HTTPRequest, understood: request.Request, caller: Caller
    ) -> StreamResponse:
        observer = self._lifeline.observer
        agent = http.headers.get("User-Agent", "")
        if understood.endpoint in _OF_A_NODE and observer.nodes.is_unknown(caller.identity.node):
            message = f"this credential is for node {caller.identity.node}, which --nodes lacks"
            raise errors.AccessDenied(message)
        peer = observer.caller(caller.identity.name, caller.identity.node, http.remote, agent)
        self._lifeline.drain.admit(peer.node, understood)
        context = Context(
            self._store, self._manifests, self._guard, self._names, observer, caller, peer
        )
        handler = HANDLERS[understood.endpoint, understood.method]
        return await handler(context, http, understood)

    def _resolve(self, understood: request.Request) -> request.Request:
        """The same request for the repositories that its names and ``ns`` mean in the bundles."""
        if self._names is as_asked or not understood.repository:
            return understood
        ns = understood.parameter("ns")
        query = understood.query
        if source := understood.parameter("from"):
            # An unknown or ambiguous source is none: the mount becomes an upload.
            with contextlib.suppress(NameAmbiguous, NameInvalid):
                query = query | {"from": [self._names(source, ns)]}
        name = self._names(understood.repository, ns)
        return replace(understood, repository=name, query=query)


def refusal(error: Exception, http: HTTPRequest) -> StreamResponse:
    """The response to an error: by the table, or an opaque 500 whose cause only the log has.

    Raises:
        ConnectionResetError: part of a response is already out; only a cut is honest now.
    """
    cause = error
    if isinstance(error, OSError):
        error = of_disk(error) or error
    status, code = errors.TABLE.get(type(error), errors.UNKNOWN)
    if (status, code) == errors.UNKNOWN:
        unexpected = None if type(error) in errors.TABLE else error
        level = logging.DEBUG if getattr(error, "reported", False) else logging.ERROR
        failed = "%s %s failed: %s"
        logger.log(level, failed, http.method, http.raw_path, cause, exc_info=unexpected)
    elif isinstance(error, StorageFull):
        log.tell(
            logging.ERROR, "disk_full", "the disk is full: pushes are refused; free some space"
        )
    if http.writer.output_size > 0:
        if http.transport is not None:
            http.transport.abort()
        raise ConnectionResetError("response was cut") from error
    message = getattr(error, "message", "internal error; the server's log has the details")
    body = errors.body(code, message, getattr(error, "detail", None))
    return answer(status, body, JSON, errors.headers_of(error))
