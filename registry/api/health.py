"""Handlers of ``/``, ``/v2/``, ``/livez`` and ``/readyz``."""

from __future__ import annotations

from mayfly.registry.api.context import JSON, Context, answer
from mayfly.registry.api.request import Request
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response


async def root(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET ``/``: answer load balancers and browsers."""
    return answer(body=b"Mayfly, a container registry\n", content_type="text/plain")


async def base(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET ``/v2/``: confirm that this registry speaks the v2 protocol."""
    return answer(body=b"{}", content_type=JSON)


async def alive(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET ``/livez``: confirm that the process answers."""
    return answer(body=b"ok\n", content_type="text/plain")


async def ready(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET ``/readyz``: confirm that requests are served.

    A draining registry is also ready: pulls under way continue, and Kubernetes sends their next
    connections only to a server that is ready.
    """
    return answer(body=b"ok\n", content_type="text/plain")
