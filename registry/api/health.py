"""Handlers of ``/``, ``/v2/``, ``/livez`` and ``/readyz``."""

from __future__ import annotations

from aiohttp.web_response import StreamResponse

from mayfly.registry.api.context import JSON, Context, answer
from mayfly.registry.api.request import Request
from mayfly.registry.http.body import HTTPRequest


async def root(context: Context, http: HTTPRequest, request: Request) -> StreamResponse:
    """GET ``/``: load balancers and browsers ask here whether somebody answers."""
    return answer(body=b"Mayfly, a container registry\n", content_type="text/plain")


async def base(context: Context, http: HTTPRequest, request: Request) -> StreamResponse:
    """GET ``/v2/``: this is a registry of the v2 protocol."""
    return answer(body=b"{}", content_type=JSON)


async def alive(context: Context, http: HTTPRequest, request: Request) -> StreamResponse:
    """GET ``/livez``: the process answers."""
    return answer(body=b"ok\n", content_type="text/plain")


async def ready(context: Context, http: HTTPRequest, request: Request) -> StreamResponse:
    """GET ``/readyz``: requests are served.

    While the registry drains, too: pulls that are under way go on, and Kubernetes sends their next
    connections only to where this says yes.
    """
    return answer(body=b"ok\n", content_type="text/plain")
