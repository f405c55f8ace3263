"""``/metrics``: on the registry's own addresses, for callers with rights, or on one of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mayfly.registry.api.context import Context, answer
from mayfly.registry.api.errors import EndpointUnknown
from mayfly.registry.api.request import Request
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response

if TYPE_CHECKING:
    from mayfly.registry.telemetry.metrics import Metrics

PATH = "/metrics"


async def get(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET: all metrics.

    Raises:
        EndpointUnknown: they are off.
    """
    if context.metrics is None:
        raise EndpointUnknown("metrics are off: start the server with --metrics on")
    return _answer(context.metrics, http)


class MetricsApp:
    """Answers requests on the address that is for metrics alone, without a login.

    Args:
        metrics: all of them.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, http: HTTPRequest) -> Response:
        """Answer a request for ``/metrics``; 404 for all others."""
        path = http.raw_path.partition("?")[0]
        if path != PATH or http.method not in ("GET", "HEAD"):
            return answer(404, f"there is only GET {PATH}\n".encode(), "text/plain")
        return _answer(self._metrics, http)


def _answer(metrics: Metrics, http: HTTPRequest) -> Response:
    body, content_type = metrics.expose(http.headers.get("Accept", ""))
    return answer(body=body, content_type=content_type, headers={"Cache-Control": "no-store"})
