"""Metrics as a real Prometheus reads them; alert rules and dashboard against what is served."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.process import (
    PATIENCE,
    REPO,
    Mayfly,
    Process,
    find_program,
    free_port,
    need,
)
from tests.telemetry.test_metrics import served_names

MONITORING = REPO / "deploy/monitoring"
_METRIC = re.compile(r"\b((?:mayfly|registry|process)_[a-z_]+)")


def _promtool(*words: str | Path) -> str:
    need("promtool")
    program = find_program("promtool")
    assert program is not None
    done = subprocess.run(
        [program, *words], cwd=MONITORING, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_are_valid_and_raise_what_they_should() -> None:
    """Prometheus's own checks; a run that goes well raises nothing, each trouble its alert."""
    _promtool("check", "rules", "alerts.yaml")
    _promtool("test", "rules", "alerts.test.yaml")


def test_every_alert_is_tested_both_ways() -> None:
    """Each rule is in the run that goes well and in the one with all troubles."""
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    for run in yaml.safe_load((MONITORING / "alerts.test.yaml").read_text())["tests"]:
        assert [one["alertname"] for one in run["alert_rule_test"]] == names


def _expressions() -> Iterator[str]:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    for group in rules["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def test_alerts_and_dashboard_ask_for_what_is_served() -> None:
    """Each metric that they name is one of the server's."""
    named = {name for text in _expressions() for name in _METRIC.findall(text)}
    assert len(named) > 12
    assert sorted(named - served_names()) == []


def test_panels_do_not_overlap() -> None:
    """Each place of the dashboard has one panel at most."""
    taken: dict[tuple[int, int], str] = {}
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]
        assert place["x"] + place["w"] <= 24


def test_queries_are_valid(tmp_path: Path) -> None:
    """Prometheus's own parser reads each query of the dashboard."""
    rules = [
        {"record": f"dashboard:{number}", "expr": text.replace("$instance", ".*")}
        for number, text in enumerate(_expressions())
    ]
    groups = {"groups": [{"name": "queries", "rules": rules}]}
    (tmp_path / "queries.yaml").write_text(json.dumps(groups))
    _promtool("check", "rules", tmp_path / "queries.yaml")


def _query(port: int, text: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': text})}"
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            found: list[dict[str, Any]] = json.loads(response.read())["data"]["result"]
    except OSError:
        return []
    return found


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Mayfly]:
    """A registry with TLS and users that serves its metrics."""
    options = ("--tls", "auto", "--auth", "auto", "--metrics", "on")
    with Mayfly(tmp_path / "root", tmp_path / "state", *options) as server:
        yield server


def test_prometheus_reads_them(secured: Mayfly, tmp_path: Path) -> None:
    """Over TLS, with a user of the registry, by the configuration that deploy/monitoring shows."""
    need("prometheus", "promtool")
    users = json.loads((secured.state_dir / "credentials.json").read_text())
    place = tmp_path / "prometheus"
    place.mkdir()
    shutil.copy(MONITORING / "alerts.yaml", place)
    shutil.copy(secured.state_dir / "ca.crt", place)
    (place / "mayfly-password").write_text(users["admin"])
    text = (MONITORING / "prometheus.yaml").read_text()
    for shown, real in (
        ("registry.example:5000", secured.host),
        ("username: prometheus", "username: admin"),
        ("scrape_interval: 15s", "scrape_interval: 1s"),
    ):
        assert shown in text
        text = text.replace(shown, real)
    (place / "prometheus.yaml").write_text(text)
    _promtool("check", "config", place / "prometheus.yaml")
    port = free_port()
    prometheus = Process(
        [
            find_program("prometheus") or "prometheus",
            f"--config.file={place}/prometheus.yaml",
            f"--storage.tsdb.path={place}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        tmp_path / "prometheus.log",
    )
    try:
        found = prometheus.wait_for(lambda: _query(port, 'up{job="mayfly"} == 1'))
        assert len(found) == 1
        seen = prometheus.wait_for(
            lambda: _query(port, 'registry_http_requests_total{handler="metrics"} > 1')
        )
        assert seen[0]["metric"]["code"] == "200"
        assert _query(port, "mayfly_info")[0]["metric"]["version"]
    finally:
        prometheus.stop()
