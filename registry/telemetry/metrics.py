"""Metrics for Prometheus, in its text format or as OpenMetrics, by `prometheus-client`.

Requests have the names and labels of CNCF distribution, so that dashboards and alerts made for it
work unchanged; names of Mayfly's own begin with ``mayfly_``. Most is read from the server's own
counts when the metrics are asked for. No label takes a value that a client chooses: nodes are named
only where ``--nodes`` lists them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

import prometheus_client
from prometheus_client import Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mayfly.registry.telemetry.reading import Reading, UpstreamUse

_HANDLERS = {"uploads": "blob_upload", "upload": "blob_upload_chunk"}
"""Endpoints that distribution names otherwise (its ``registry/api/v2/routes.go``)."""

_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"})
_OTHER = "other"

CUT = "499"
"""The code of a request whose client left before the response began, as nginx has it."""

FRESH_SECONDS = 1.0
"""For which metrics are given out again: to read them takes time with many nodes and images."""

_OPENMETRICS = "application/openmetrics-text"
_TEXT = "text/plain"

_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0, 1800.0)
_KIB = 1024.0
_BYTES = (_KIB, 64 * _KIB, _KIB**2, 16 * _KIB**2, 256 * _KIB**2, _KIB**3)


class Answer(Protocol):
    """A response, as metrics see it."""

    status: int

    @property
    def content_length(self) -> int:
        """Bytes of the body."""


class Exchange(Protocol):
    """A request and its response, as metrics see them."""

    method: str
    endpoint: str
    sent: int

    @property
    def response(self) -> Answer | None:
        """The response whose head was sent; None before that."""

    @property
    def announced_length(self) -> int:
        """The length of the request's body in bytes; 0 if none is announced."""


A = TypeVar("A", bound=Answer)


class Metrics:
    """Counts requests, and writes all metrics; for the event loop's thread only.

    Args:
        read: returns the server's own counts.
        version: of the server.
        fresh: seconds for which metrics are given out again.
    """

    def __init__(
        self, read: Callable[[], Reading], version: str, fresh: float = FRESH_SECONDS
    ) -> None:
        self._fresh = fresh
        self._registry = prometheus_client.CollectorRegistry()
        labels = ("handler", "method")

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

        self._requests = prometheus_client.Counter(
            "registry_http_requests",
            "Requests that were answered, or whose client left.",
            (*labels, "code"),
            registry=self._registry,
        )
        self._seconds = histogram(
            "registry_http_request_duration_seconds",
            "Time from the head of a request to the end of its response.",
            _SECONDS,
        )
        self._request_bytes = histogram(
            "registry_http_request_size_bytes", "Bodies of requests, as announced.", _BYTES
        )
        self._response_bytes = histogram(
            "registry_http_response_size_bytes",
            "Bodies of responses, as far as they were sent.",
            _BYTES,
        )
        self._open: dict[int, Exchange] = {}
        self._exposed: dict[str, tuple[float, bytes]] = {}
        prometheus_client.ProcessCollector(registry=self._registry)
        self._registry.register(_Readings(read, version, self._in_flight))

    async def measure(self, http: Exchange, answer: Callable[[], Awaitable[A]]) -> A:
        """Answer a request and count it.

        Args:
            http: the request; its ``endpoint`` is read when the response is there.
            answer: answers it.
        """
        started = time.perf_counter()
        self._open[id(http)] = http
        code, size = CUT, 0
        try:
            response = await answer()
            code, size = str(response.status), response.content_length
            return response
        except ConnectionError:
            if http.response is not None:
                code = str(http.response.status)
            raise
        finally:
            del self._open[id(http)]
            labels = _handler(http), _method(http)
            self._requests.labels(*labels, code).inc()
            self._seconds.labels(*labels).observe(time.perf_counter() - started)
            self._request_bytes.labels(*labels).observe(http.announced_length)
            body = 0 if http.method == "HEAD" else size
            self._response_bytes.labels(*labels).observe(http.sent or body)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their content type; they are a second old at most.

        Args:
            accept: the formats that the client takes, as in its ``Accept`` header.
        """
        # The library takes versions out of the header and puts them into the content type, so that
        # each request could make a text of its own: it is shown the name of a format alone.
        wanted = _OPENMETRICS if _OPENMETRICS in accept else _TEXT
        encode, content_type = choose_encoder(wanted)
        made, body = self._exposed.get(content_type, (-self._fresh, b""))
        now = time.monotonic()
        if now - made >= self._fresh:
            body = encode(self._registry)
            self._exposed[content_type] = now, body
        return body, content_type

    def _in_flight(self) -> Mapping[str, int]:
        return Counter(_handler(http) for http in self._open.values())


def _handler(http: Exchange) -> str:
    return _HANDLERS.get(http.endpoint, http.endpoint) or _OTHER


def _method(http: Exchange) -> str:
    return http.method if http.method in _METHODS else _OTHER


class _Readings(Collector):
    """Metrics that are read when they are asked for."""

    def __init__(
        self,
        read: Callable[[], Reading],
        version: str,
        in_flight: Callable[[], Mapping[str, int]],
    ) -> None:
        self._read = read
        self._version = version
        self._in_flight = in_flight

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the names need no check when this is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        found = self._read()
        yield InfoMetricFamily("mayfly", "The server.", value={"version": self._version})
        yield _gauge(
            "registry_http_in_flight_requests",
            "Requests that are being answered.",
            self._in_flight(),
            "handler",
        )
        if found.nodes is not None:
            wanted, covered = found.nodes
            text = "Nodes that are waited for: all, and those that have every image."
            nodes = {"wanted": wanted, "covered": covered}
            yield _gauge("mayfly_coverage_nodes", text, nodes, "kind")
            yield GaugeMetricFamily(
                "mayfly_coverage_images", "Images that are waited for.", value=found.images
            )
            text = "Pairs of a node and an image that is waited for."
            yield _gauge("mayfly_coverage_pairs", text, found.pairs, "state")
        yield _counter(
            "mayfly_node_bytes", "Content that was sent to a node.", found.node_bytes, "node"
        )
        yield _gauge(
            "mayfly_transfers_in_flight", "Transfers under way.", found.transfers, "direction"
        )
        text = "Bodies that were received and sent."
        both = {"in": found.bytes_in, "out": found.bytes_out}
        yield _counter("mayfly_bytes", text, both, "direction")
        text = "Time until a condition ends the server if nothing happens meanwhile."
        yield _gauge("mayfly_end_condition_seconds", text, found.ends, "condition")
        text = "Blobs of bundles that were found corrupt."
        yield CounterMetricFamily("mayfly_bundle_corrupt", text, value=found.corrupt)
        yield _counter("mayfly_denied", "Requests that were refused.", found.denied, "reason")
        yield from _upstreams(found.upstreams)


def _upstreams(records: Iterable[UpstreamUse]) -> Iterator[Metric]:
    records = list(records)
    if not records:
        return
    for name, key, text in (
        ("mayfly_upstream_hits", "hits", "Requests answered from the cache."),
        ("mayfly_upstream_misses", "misses", "Requests that waited for the upstream."),
        ("mayfly_upstream_stale", "stale", "Requests answered by a tag that was not compared."),
        ("mayfly_upstream_downloads", "downloads", "Blobs that were fetched."),
        ("mayfly_upstream_bytes", "bytes", "Bytes that were fetched."),
    ):
        values = {record["host"]: int(record[key]) for record in records}
        yield _counter(name, text, values, "upstream")
    up = {record["host"]: int(record["reachable"]) for record in records}
    yield _gauge("mayfly_upstream_reachable", "1 if the last lookup succeeded.", up, "upstream")


def _gauge(name: str, text: str, values: Mapping[str, float], label: str) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=[label]), values)


def _counter(name: str, text: str, values: Mapping[str, float], label: str) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=[label]), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> Metric:
    for value, number in values.items():
        family.add_metric([value], number)
    return family
