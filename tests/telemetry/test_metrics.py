"""Metrics: their names and values, and where they are served."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from mayfly.registry.http.response import Response
from mayfly.registry.telemetry.metrics import CUT, FRESH_SECONDS, Metrics
from mayfly.registry.telemetry.reading import Reading
from tests.support.process import REPO, Mayfly

READING = Reading(
    nodes=(3, 1),
    images=2,
    pairs={"missing": 4, "served": 2},
    node_bytes={"node-a": 7},
    transfers={"pull": 2},
    bytes_in=5,
    bytes_out=9,
    ends={"idle": 1.5},
    corrupt=1,
    denied={"denied": 6},
    upstreams=[
        {
            "host": "docker.io", "hits": 1, "misses": 2, "stale": 3, "downloads": 4, "bytes": 5,
            "reachable": True,
        }
    ],
)  # fmt: skip


class Asked:
    """A request, as metrics see it."""

    def __init__(self, method: str = "GET", endpoint: str = "blob", sent: int = 0) -> None:
        self.method = method
        self.endpoint = endpoint
        self.sent = sent
        self.response: Response | None = None
        self.announced_length = 0


Samples = dict[tuple[str, tuple[str, ...]], float]


def _samples(metrics: Metrics) -> Samples:
    """(name, values of the labels in the order of their names) → value; of all that is exposed."""
    body, _ = metrics.expose("")
    families = list(read_text(body.decode()))
    assert len({one.name for one in families}) == len(families)
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for one in families
        for sample in one.samples
    }


def test_readings() -> None:
    """Each count of the server under its name."""
    found = _samples(Metrics(lambda: READING, "1.2"))
    assert found["mayfly_info", ("1.2",)] == 1
    assert found["mayfly_coverage_nodes", ("wanted",)] == 3
    assert found["mayfly_coverage_nodes", ("covered",)] == 1
    assert found["mayfly_coverage_images", ()] == 2
    assert found["mayfly_coverage_pairs", ("missing",)] == 4
    assert found["mayfly_node_bytes_total", ("node-a",)] == 7
    assert found["mayfly_transfers_in_flight", ("pull",)] == 2
    assert found["mayfly_bytes_total", ("in",)] == 5
    assert found["mayfly_end_condition_seconds", ("idle",)] == 1.5
    assert found["mayfly_bundle_corrupt_total", ()] == 1
    assert found["mayfly_denied_total", ("denied",)] == 6
    assert found["mayfly_upstream_downloads_total", ("docker.io",)] == 4
    assert found["mayfly_upstream_reachable", ("docker.io",)] == 1


def test_without_coverage_and_upstreams() -> None:
    """Their metrics are left out, not 0."""
    names = {name for name, _ in _samples(Metrics(Reading, "1"))}
    assert not any("coverage" in name or "upstream" in name for name in names)
    assert "mayfly_bundle_corrupt_total" in names


async def test_requests() -> None:
    """Counted by endpoint, method and status; in flight until the answer."""
    metrics = Metrics(Reading, "1", 0.0)
    during: Samples = {}

    async def answer() -> Response:
        during.update(_samples(metrics))
        return Response(206, b"x" * 10)

    await metrics.measure(Asked(endpoint="upload"), answer)
    assert during["registry_http_in_flight_requests", ("blob_upload_chunk",)] == 1
    found = _samples(metrics)
    assert ("registry_http_in_flight_requests", ("blob_upload_chunk",)) not in found
    labels = ("blob_upload_chunk", "GET")
    assert found["registry_http_requests_total", ("206", *labels)] == 1
    assert found["registry_http_request_duration_seconds_count", labels] == 1
    assert found["registry_http_response_size_bytes_sum", labels] == 10


async def test_what_clients_choose_is_no_label() -> None:
    """Made-up methods and paths share one value, whatever their number."""
    metrics = Metrics(Reading, "1", 0.0)

    async def answer() -> Response:
        return Response(405)

    for number in range(50):
        await metrics.measure(Asked(method=f"M{number}", endpoint=""), answer)
    counted = {k: v for k, v in _samples(metrics).items() if k[0] == "registry_http_requests_total"}
    assert counted == {("registry_http_requests_total", ("405", "other", "other")): 50}


async def test_clients_that_leave() -> None:
    """Before the response they have a code of their own, after its head the response's."""
    metrics = Metrics(Reading, "1", 0.0)
    early, late = Asked(), Asked(sent=70)
    late.response = Response(200, length=100)

    async def leave() -> Response:
        raise ConnectionResetError

    for http in (early, late):
        with pytest.raises(ConnectionResetError):
            await metrics.measure(http, leave)
    found = _samples(metrics)
    assert found["registry_http_requests_total", (CUT, "blob", "GET")] == 1
    assert found["registry_http_requests_total", ("200", "blob", "GET")] == 1
    assert found["registry_http_response_size_bytes_sum", ("blob", "GET")] == 70
    assert not any(name == "registry_http_in_flight_requests" for name, _ in found)


def test_formats() -> None:
    """OpenMetrics where it is asked for, and each is valid."""
    metrics = Metrics(lambda: READING, "1")
    body, content_type = metrics.expose("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert list(read_openmetrics(body.decode()))
    _, content_type = metrics.expose("*/*")
    assert content_type.startswith("text/plain")


def test_read_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often, and by however many, they are asked for; each format for itself."""
    now, reads = 100.0, 0

    def read() -> Reading:
        nonlocal reads
        reads += 1
        return Reading()

    monkeypatch.setattr(time, "monotonic", lambda: now)
    metrics = Metrics(read, "1")
    for _ in range(10):
        metrics.expose("")
    assert reads == 1
    metrics.expose("application/openmetrics-text; version=1.0.0")
    assert reads == 2
    now += FRESH_SECONDS
    metrics.expose("")
    assert reads == 3


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version={}.0.0",
        "application/openmetrics-text; version=1.{}; escaping=x",
        "application/openmetrics-text; version=x{}",
        "text/plain; version={}; escaping=values",
        "application/openmetrics-text;version=,text/plain;version={}\t",
    ],
)
def test_what_clients_accept_makes_no_text_of_its_own(accept: str) -> None:
    """Versions that are made up are answered, and neither kept nor read anew."""
    reads = 0

    def read() -> Reading:
        nonlocal reads
        reads += 1
        return Reading()

    metrics = Metrics(read, "1", fresh=3600)
    types = {metrics.expose(accept.format(number))[1] for number in range(50)}
    assert len(types) == reads == 1


def test_page_lists_all_metrics() -> None:
    """docs/metrics.md has every metric, with its labels, and no other."""
    families = read_text(Metrics(lambda: READING, "1").expose("")[0].decode())
    served = {one.name for one in families if not one.name.startswith("process_")}
    served |= {
        "registry_http_requests",
        "registry_http_request_duration_seconds",
        "registry_http_request_size_bytes",
        "registry_http_response_size_bytes",
        "registry_http_in_flight_requests",
    }
    rows = re.findall(r"^\| `(\w+?)(?:_total)?(?:\{.*?\})?` \|", _page(), re.MULTILINE)
    assert sorted(rows) == sorted(served - {"mayfly"} | {"mayfly_info"})


def served_names() -> set[str]:
    """The names of all series, with those of requests, which none has made yet."""
    families = read_text(Metrics(lambda: READING, "1").expose("")[0].decode())
    names = {sample.name for one in families for sample in one.samples}
    names |= {"registry_http_requests_total", "registry_http_in_flight_requests"}
    return names | {"registry_http_request_duration_seconds_bucket"}


def _page() -> str:
    return (REPO / "docs/metrics.md").read_text()


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        return str(response.read().decode())


def _address(server: Mayfly) -> str | None:
    found = re.search(r"metrics at (http://\S+)", server.output())
    return found and found[1]


def test_on_an_address_of_their_own(tmp_path: Path) -> None:
    """It serves metrics without a login, and nothing else; the registry's own address has none."""
    with Mayfly(tmp_path / "root", tmp_path / "state", "--metrics", "127.0.0.1:0") as server:
        _get(f"{server.url}/v2/")
        url = server.wait_for(lambda: _address(server))
        text = _get(url)
        sample = 'registry_http_requests_total{code="200",handler="base",method="GET"} 1.0'
        assert sample in text.splitlines()
        assert "process_resident_memory_bytes" in text
        with pytest.raises(urllib.error.HTTPError, match="404"):
            _get(f"{url.removesuffix('/metrics')}/v2/_catalog")


def test_on_the_registry_s_address(tmp_path: Path) -> None:
    """With ``on``, beside the registry; scraping is no activity. Without, they are not there."""
    with Mayfly(tmp_path / "root", tmp_path / "state", "--metrics", "on") as server:
        assert "registry_http_requests_total" in _get(f"{server.url}/metrics")
    with (
        Mayfly(tmp_path / "root", tmp_path / "state") as server,
        pytest.raises(urllib.error.HTTPError, match="404"),
    ):
        _get(f"{server.url}/metrics")


def test_an_address_in_use(tmp_path: Path) -> None:
    """The start fails, and says which option to change."""
    with Mayfly(tmp_path / "root", tmp_path / "state") as first:
        own = first.host
        with pytest.raises(AssertionError, match=rf"cannot listen on {own}.*--metrics"):
            Mayfly(tmp_path / "other", tmp_path / "second", "--metrics", own)
