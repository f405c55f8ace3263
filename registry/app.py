"""A request's way: parse, check access, handle. Three hops, and one place where errors end.

There is one catch-all; what exists is said by `HANDLERS`, who may use it by `registry.access`.
"""

from __future__ import annotations

import logging
import re
import socket
from dataclasses import replace

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from registry import blobs, errors, health, listings, manifests, request, token, uploads
from registry.context import JSON, Context, Handler, Lifeline, Names, answer, as_asked
from registry.guard import Caller, Guard
from registry.manifest_cache import ManifestCache
from registry.request import Endpoint
from storage.errors import of_disk
from storage.interface import Store

logger = logging.getLogger("mayfly")

READ_BUFFER = 256 * 1024
"""Bytes of a body that a connection may hold before its sender is paused (aiohttp doubles it)."""

SMALLEST_READ_BUFFER = 16 * 1024
READ_BUFFERS = 32 * 1024 * 1024
"""Bytes shared by the buffers of all connections, the later ones of a crowd getting smaller ones,
as far as `SMALLEST_READ_BUFFER` allows."""

_ABSOLUTE = re.compile(r"\Ahttps?://[^/?]*(?=/)", re.IGNORECASE)
"""What an absolute request target has before its path (RFC 9112, 3.2.2); no host is ours alone."""

PROBES = frozenset({Endpoint.BASE, Endpoint.LIVE, Endpoint.READY, Endpoint.TOKEN})
"""What keeps no idle server alive."""

HANDLERS: dict[tuple[Endpoint, str], Handler] = {
    (Endpoint.BASE, "GET"): health.base,
    (Endpoint.BASE, "HEAD"): health.base,
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
        self, store: Store, guard: Guard, lifeline: Lifeline, names: Names = as_asked
    ) -> None:
        self._store = store
        self._manifests = ManifestCache()
        self._guard = guard
        self._lifeline = lifeline
        self._names = names

    async def __call__(self, http: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; what goes wrong becomes an OCI error document."""
        try:
            path, _, query = _ABSOLUTE.sub("", http.raw_path, count=1).partition("?")
            understood = self._resolve(request.parse(http.method, path, query))
            caller = await self._guard.admit(http, understood)
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

    async def _handle(
        self, http: web.BaseRequest, understood: request.Request, caller: Caller
    ) -> web.StreamResponse:
        observer = self._lifeline.observer
        peer = observer.caller(caller.identity.name, caller.identity.node, http.remote)
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
            query = query | {"from": [self._names(source, ns)]}
        name = self._names(understood.repository, ns)
        return replace(understood, repository=name, query=query)


def refusal(error: Exception, http: web.BaseRequest) -> web.StreamResponse:
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
        logger.error("%s %s failed: %s", http.method, http.raw_path, cause, exc_info=unexpected)
    if http.writer.output_size > 0:
        if http.transport is not None:
            http.transport.abort()
        raise ConnectionResetError("response was cut") from error
    message = getattr(error, "message", "internal error; the server's log has the details")
    body = errors.body(code, message, getattr(error, "detail", None))
    return answer(status, body, JSON, errors.headers_of(error))


class Protocol(RequestHandler):
    """aiohttp's connection handler, with its own refusals of broken HTTP as OCI errors.

    It also says what its client is about (`registry.sweep`).
    """

    @property
    def socket(self) -> socket.socket | None:
        """Of the connection, None once it is closed."""
        if self.transport is None:
            return None
        found: socket.socket | None = self.transport.get_extra_info("socket")
        return found

    @property
    def requests(self) -> int:
        """Whose headers were complete."""
        return self._request_count

    @property
    def serving(self) -> bool:
        """Whether a request is being handled."""
        return self._request_in_progress or bool(self._messages)

    @property
    def awaits_body(self) -> bool:
        """Whether we wait for more of a request's body."""
        request = self._current_request
        return request is not None and not request.content.is_eof() and not self._reading_paused

    @property
    def is_writing(self) -> bool:
        """Whether something is still on its way to the kernel."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    def connection_lost(self, exc: BaseException | None) -> None:
        # Beside a request, aiohttp may be waiting for the rest of a body that was refused; it would
        # wait for its whole lingering time though nobody is there to send it.
        lingering = None if self._request_in_progress else self._task_handler
        super().connection_lost(exc)
        if lingering is not None:
            lingering.cancel()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        logger.info("refused broken HTTP from %s: %s", request.remote, message or exc)
        text = "the request is not valid HTTP" if status < 500 else "internal error"
        response = answer(status, errors.body("UNSUPPORTED", text), JSON)
        response.force_close()
        return response


class HTTPServer(web.Server):
    """aiohttp's low-level server over an `App`: no router, no middleware, nothing decompressed."""

    def __init__(self, app: App) -> None:
        super().__init__(app, access_log=None)
        self._options = {
            "access_log": None,
            "auto_decompress": False,
            "logger": logger,
        }

    @property
    def open_count(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    def open_connections(self) -> list[Protocol]:
        """All there are, some of them about to end."""
        return [one for one in self.connections if isinstance(one, Protocol)]

    def __call__(self) -> RequestHandler:
        share = READ_BUFFERS // (len(self._connections) + 1)
        buffer = max(SMALLEST_READ_BUFFER, min(READ_BUFFER, share))
        return Protocol(
            self,
            loop=self._loop,
            read_bufsize=buffer,
            **self._options,  # type: ignore[arg-type]
        )
