"""The request pipeline: parse, check access, call the handler; errors become OCI documents here.

`registry.api.routes` lists the endpoints and their access rules.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mayfly.registry import log
from mayfly.registry.access.errors import AccessDenied
from mayfly.registry.access.guard import Caller, Guard
from mayfly.registry.api import errors
from mayfly.registry.api.context import (
    AS_WRITTEN,
    JSON,
    NO_MIRROR,
    Context,
    LifecycleHooks,
    Mirror,
    NameResolver,
    answer,
)
from mayfly.registry.api.manifest_cache import ManifestCache
from mayfly.registry.api.parse import parse
from mayfly.registry.api.request import Request
from mayfly.registry.api.status import StatusDocument
from mayfly.registry.http.receive import Receiver
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.http.send import ContentSender
from mayfly.registry.settings.settings import Settings
from mayfly.registry.state.scripts import Scripts
from mayfly.storage.bundle.errors import NameAmbiguous
from mayfly.storage.errors import DoesNotFit, NameInvalid, StorageFull, of_disk
from mayfly.storage.interface import Store

if TYPE_CHECKING:
    from mayfly.registry.telemetry.events import Event
    from mayfly.registry.telemetry.metrics import Metrics

logger = logging.getLogger("mayfly")

_ABSOLUTE = re.compile(r"\Ahttps?://[^/?]*(?=/)", re.IGNORECASE)
"""The part of an absolute request target before its path (RFC 9112, 3.2.2); any authority is
accepted."""


class App:
    """The registry as a function from request to response."""

    def __init__(
        self,
        store: Store,
        guard: Guard,
        hooks: LifecycleHooks,
        content: ContentSender,
        settings: Settings,
        names: NameResolver = AS_WRITTEN,
        prefix: str = "",
        mirror: Mirror = NO_MIRROR,
        put_event: Callable[[Event], None] | None = None,
        scripts: Scripts | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics
        self._guard = guard
        self._hooks = hooks
        self._names = names
        self._prefix = prefix
        self._root = settings.root
        self._put_event = put_event
        self._context = partial(
            Context,
            store,
            mirror,
            ManifestCache(),
            guard,
            content,
            Receiver(),
            names,
            hooks.observer,
            scripts,
            StatusDocument(hooks.status),
            hooks,
            metrics,
            settings,
        )

    def __call__(self, http: HTTPRequest) -> Coroutine[Any, Any, Response]:
        """Answer one request; errors become OCI error documents."""
        if self._metrics is None:
            return self._respond(http)
        return self._metrics.measure(http, lambda: self._respond(http))

    async def _respond(self, http: HTTPRequest) -> Response:
        response = await self._answer(http)
        if self._prefix and http.response is None:
            self._below_prefix(response)
        return response

    async def _answer(self, http: HTTPRequest) -> Response:
        try:
            target = http.raw_path
            if not target.startswith("/"):
                target = _ABSOLUTE.sub("", target, count=1)
            path, _, query = target.partition("?")
            if self._prefix and path.startswith(self._prefix + "/"):
                path = path[len(self._prefix) :]  # a proxy may strip it, or leave it
            asked = parse(http.method, path, query)
            http.endpoint = asked.route.endpoint
            request, caller = await self._admit(http, asked)
            if not request.route.counts:
                return await self._handle(http, request, caller)
            activity = self._hooks.activity
            activity.begin()
            try:
                return await self._handle(http, request, caller)
            finally:
                activity.end()
        except ConnectionError:
            raise
        except Exception as error:
            return refusal(error, http, self._root)

    def _below_prefix(self, response: Response) -> None:
        """Put the prefix of ``--external-url`` before the paths in response headers."""
        for name, start in (("Location", "/"), ("Link", "</")):
            value = response.headers.get(name, "")
            if value.startswith(start):
                response.headers[name] = f"{start[:-1]}{self._prefix}{value[len(start) - 1 :]}"

    async def _handle(self, http: HTTPRequest, request: Request, caller: Caller) -> Response:
        observer, route = self._hooks.observer, request.route
        agent = http.headers.get("User-Agent", "")
        if route.listed_nodes_only and observer.nodes.is_unknown(caller.identity.node):
            message = f"this credential is for node {caller.identity.node}, which --nodes lacks"
            name = caller.identity.name
            self._guard.audit.refused(http, request.access(), name, "denied", message)
            raise AccessDenied(message)
        peer = observer.peer(caller.identity.name, caller.identity.node, http.remote, agent)
        self._hooks.drain.admit(peer.node, route.step, request.repository, request.digest)
        context = self._context(caller, peer, http.is_gone)
        if self._put_event is None:
            return await route.handler(context, http, request)
        # Imported only where events are recorded.
        from mayfly.registry.api import events

        return await events.handle(self._put_event, context, http, request)

    async def _admit(self, http: HTTPRequest, asked: Request) -> tuple[Request, Caller]:
        """Return an allowed request with its names resolved, and its caller.

        Rights are those in the repository that a name means, which may depend on whether the store
        has one of exactly that name. It is read only for a caller with rights in either: nobody
        else learns from the time of a refusal which names the bundles and the store have.
        """
        guard, written = self._guard, asked.access()
        if self._names is AS_WRITTEN or not asked.repository:
            caller = await guard.identify(http, written)
            guard.authorize(http, caller, written)
            return asked, caller
        meant = _renamed(asked, self._names.meant)
        caller = await guard.identify(http, written, meant.access())
        try:
            request = _renamed(asked, self._names.resolve)
        except NameAmbiguous as error:
            # A caller sees only the upstreams that the catalog shows them.
            named = [one for one in error.candidates if caller.can_list(one)]
            raise NameAmbiguous(error.name, named) from None
        guard.authorize(http, caller, request.access(), written)
        return request, caller


def _renamed(asked: Request, resolve: Callable[[str, str | None], str]) -> Request:
    """Return the request with its names mapped."""
    ns = asked.parameter("ns")
    query = asked.query
    if source := asked.parameter("from"):
        # Without a known source the mount becomes an upload.
        with contextlib.suppress(NameAmbiguous, NameInvalid):
            query = {**query, "from": (resolve(source, ns),)}
    return asked._replace(repository=resolve(asked.repository, ns), query=query)


def malformed_request(status: int, text: str) -> Response:
    """The response to a request that is not valid HTTP."""
    return answer(status, errors.body("UNSUPPORTED", text), JSON)


def refusal(error: Exception, http: HTTPRequest, root: Path) -> Response:
    """Return the response to an error: by the table, or a 500 whose cause only the log has.

    Args:
        error: of the request.
        http: the request.
        root: of the store, for the log.

    Raises:
        ConnectionResetError: part of a response is already sent, so the connection was aborted.
    """
    cause = error
    if isinstance(error, OSError):
        error = of_disk(error) or error
    status, code = errors.TABLE.get(type(error), errors.UNKNOWN)
    if (status, code) == errors.UNKNOWN:
        unexpected = None if type(error) in errors.TABLE else error
        level = logging.DEBUG if getattr(error, "reported", False) else logging.ERROR
        # Imported by the first failure, not by the start.
        from mayfly.registry.telemetry.trace import trace_id

        trace = trace_id(http.headers)
        failed = "%s %s failed: %s" + (f" (trace {trace})" if trace else "")
        logger.log(level, failed, http.method, http.raw_path, cause, exc_info=unexpected)
    elif isinstance(error, DoesNotFit):
        text = f"a push was refused: {error.message}; free some space for {root}"
        log.event(logging.WARNING, "does_not_fit", text, same="", **error.sizes)
    elif isinstance(error, StorageFull):
        text = f"the disk of {root} is full: pushes are refused; free some space"
        log.event(logging.ERROR, "disk_full", text, root=str(root))
    if http.response is not None:
        http.drop()
        raise ConnectionResetError("response was cut") from error
    message = getattr(error, "message", "internal error; the server's log has the details")
    body = errors.body(code, message, getattr(error, "detail", None))
    return answer(status, body, JSON, errors.headers_of(error))
