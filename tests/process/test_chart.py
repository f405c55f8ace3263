"""The Helm chart, and the plain manifests that are made from it.

``pytest tests/process/test_chart.py --record`` writes ``deploy/kubernetes/mayfly.yaml`` anew.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mayfly.registry.settings.readers import read_external_url
from mayfly.registry.settings.settings import ALL
from mayfly.registry.version import VERSION
from tests.clients.layout import Layout, layer
from tests.conftest import Record
from tests.support.chart import CHART, Object, rendered, template
from tests.support.commands import environment, run_mayfly
from tests.support.process import REPO, Mayfly, find_program, need

PLAIN = REPO / "deploy/kubernetes/mayfly.yaml"
PLAIN_VALUES = REPO / "deploy/kubernetes/values.yaml"

NODE_ADDRESS = "192.0.2.7"
"""From a block for documentation (RFC 5737)."""

HEADER = """\
# Mayfly as a Job for one upgrade, for clusters without Helm: docs/kubernetes.md. Made from the
# chart in deploy/helm/mayfly with the values of values.yaml beside this file. Before you apply it,
# put the names of your nodes for node-1 and node-2.
"""

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "node port": {
        "bundle": {"claim": "upgrade", "files": ["base.tar", "apps/delta.tar"]},
        "images": ["docker.io/library/nginx:1.27", "quay.io/x/y@sha256:" + "0" * 64],
        "nodes": 3,
        "network": {"mode": "nodePort", "nodePort": 31000},
    },
    "everything": {
        "node": "cp-1.example",
        "image": {"name": "r.example/m:1", "pullPolicy": "IfNotPresent", "pullSecrets": ["a", "b"]},
        "bundle": {"hostPath": "/srv/bundles"},
        "nodes": ["node-1", "10.0.0.7"],
        "accept": "proven",
        "network": {"mode": "host", "port": 5443, "address": "registry.example"},
        "maxLifetimeHours": 4,
        "drainSeconds": 10,
        "data": {"claim": "data"},
        "settings": {"IDLE_TIMEOUT": "30m", "LOG_FORMAT": "json"},
        "localRegistryHosting": True,
    },
    "text that YAML reads as something else": {
        "node": "1",
        "image": {"name": "0x1f", "pullPolicy": "Always", "pullSecrets": ["1e3"]},
        "bundle": {"hostPath": "/srv/{a,b}:#", "files": ["}", "x:#"]},
        "nodes": 2000000,
        "network": {"mode": "nodePort", "address": "[2001:db8::7]"},
        "data": {"claim": "012"},
        "drainSeconds": 3000000,
        "priorityClassName": "null",
    },
    "nothing optional": {
        "blockDrain": False,
        "priorityClassName": "",
        "tolerations": [],
        "data": {"hostPath": "/srv/data"},
        "node": "node-1",
    },
}


def validate(file: Path) -> str:
    """Check every object of a file as the API server does, down to unknown fields."""
    need("kubernetes-validate")
    argv = [find_program("kubernetes-validate") or "", "--strict", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def container_of(objects: dict[str, Object]) -> Object:
    """Mayfly's container, with its environment by name as ``variables``."""
    (container,) = objects["Job/mayfly"]["spec"]["template"]["spec"]["containers"]
    return {**container, "variables": {one["name"]: one.get("value") for one in container["env"]}}


def test_plain_manifests_are_the_charts(record: Record) -> None:
    """There is one source."""
    text = HEADER + template(PLAIN_VALUES)
    if not record(PLAIN, text):
        assert PLAIN.read_text() == text, (
            "made anew by: pytest tests/process/test_chart.py --record"
        )


def test_helm_finds_nothing_to_complain_about() -> None:
    """Not even a warning."""
    need("helm")
    argv = [find_program("helm") or "", "lint", "--strict", "--quiet", str(CHART)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_plain_manifests_are_valid() -> None:
    """They have every object, and the API server takes each."""
    told = validate(PLAIN)
    for kind in ("poddisruptionbudget", "configmap", "job"):
        assert f"resource {kind}/mayfly" in told


def test_the_example_is_valid(tmp_path: Path) -> None:
    """Its values, as docs/upgrade.md installs them, and the pods of the upgrade."""
    example = REPO / "examples/kubernetes"
    objects = rendered(tmp_path, yaml.safe_load((example / "values.yaml").read_text()))
    validate(tmp_path / "rendered.yaml")
    validate(example / "shop.yaml")
    images = set((example / "images.txt").read_text().split())
    pods = list(yaml.safe_load_all((example / "shop.yaml").read_text()))
    assert {pod["spec"]["containers"][0]["image"] for pod in pods} == images
    assert {pod["spec"]["nodeName"] for pod in pods} == set(
        objects["ConfigMap/mayfly"]["data"]["nodes.txt"].split()
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_valid(name: str, tmp_path: Path) -> None:
    """The API server takes all objects; all variables are settings."""
    objects = rendered(tmp_path, VARIANTS[name])
    validate(tmp_path / "rendered.yaml")
    variables = {v for v in container_of(objects)["variables"] if v.startswith("MAYFLY_")}
    assert variables <= {setting.variable for setting in ALL}


def test_settings_are_those_of_the_values(tmp_path: Path) -> None:
    """Bundles, lists, address and time limits reach Mayfly and the Job."""
    objects = rendered(tmp_path, VARIANTS["node port"])
    variables = container_of(objects)["variables"]
    assert variables["MAYFLY_BUNDLES"] == "/bundles/base.tar /bundles/apps/delta.tar"
    assert variables["MAYFLY_EXTERNAL_URL"] == "https://$(NODE_ADDRESS):31000"
    assert (variables["MAYFLY_NODES"], variables["MAYFLY_UNTIL_PULLED"]) == (
        "3",
        "/etc/mayfly/images.txt",
    )
    lists = objects["ConfigMap/mayfly"]["data"]
    assert lists == {"images.txt": "".join(f"{i}\n" for i in VARIANTS["node port"]["images"])}
    service = objects["Service/mayfly"]["spec"]
    assert service["externalTrafficPolicy"] == "Local"
    assert service["ports"][0]["nodePort"] == 31000

    objects = rendered(tmp_path, VARIANTS["everything"])
    container, job = container_of(objects), objects["Job/mayfly"]["spec"]
    assert container["variables"]["MAYFLY_HOSTNAME"] == "registry.example"
    assert container["variables"]["MAYFLY_IDLE_TIMEOUT"] == "30m"
    assert job["activeDeadlineSeconds"] > 4 * 3600
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] > 10
    assert job["template"]["spec"]["hostNetwork"] is True
    hosting = yaml.safe_load(
        objects["ConfigMap/local-registry-hosting"]["data"]["localRegistryHosting.v1"]
    )
    assert hosting["host"] == "registry.example:5443"
    assert "Service/mayfly" not in objects


def test_values_stay_text(tmp_path: Path) -> None:
    """They are quoted, and whole numbers are written with all their digits."""
    objects = rendered(tmp_path, VARIANTS["text that YAML reads as something else"])
    container, pod = container_of(objects), objects["Job/mayfly"]["spec"]["template"]["spec"]
    variables = container["variables"]
    assert (pod["nodeName"], container["image"], pod["priorityClassName"]) == ("1", "0x1f", "null")
    assert pod["imagePullSecrets"] == [{"name": "1e3"}]
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert volumes["bundles"]["hostPath"]["path"] == "/srv/{a,b}:#"
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "012"
    assert variables["MAYFLY_BUNDLES"] == "/bundles/} /bundles/x:#"
    assert variables["MAYFLY_EXTERNAL_URL"] == "https://[2001:db8::7]:30500"
    assert read_external_url(variables["MAYFLY_EXTERNAL_URL"]).host == "[2001:db8::7]:30500"
    assert (variables["MAYFLY_NODES"], variables["MAYFLY_DRAIN_TIMEOUT"]) == ("2000000", "3000000s")


@pytest.mark.parametrize("mode", ["host", "nodePort"])
def test_mayfly_announces_what_nodes_use(mode: str, tmp_path: Path) -> None:
    """Started with the container's variables: in its URL, its Secrets and its certificate."""
    values: Object = {
        "bundle": {"claim": "upgrade", "files": ["bundle.tar"]},
        "nodes": ["node-1"],
        "accept": "proven",
        "network": {"mode": mode, "nodePort": 31000},
    }
    objects = rendered(tmp_path, values)
    layout = Layout(tmp_path / "bundle")
    layout.add("docker.io/library/app:1", layer({"etc/app": b"1"}))
    layout.archive()
    (tmp_path / "nodes.txt").write_text(objects["ConfigMap/mayfly"]["data"]["nodes.txt"])
    variables = container_of(objects)["variables"]
    env = environment()
    for name, value in variables.items():
        if value is not None and name not in ("MAYFLY_ROOT", "MAYFLY_STATE_DIR", "MAYFLY_LISTEN"):
            value = value.replace("$(NODE_ADDRESS)", NODE_ADDRESS)
            env[name] = re.sub("^(/bundles|/etc/mayfly)", str(tmp_path), value)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    running = Mayfly(tmp_path / "root", tmp_path / "state", listen=f"0.0.0.0:{port}", env=env)
    try:
        announced = port if mode == "host" else 31000
        assert running.url == f"https://{NODE_ADDRESS}:{announced}"
        words = ("--state-dir", running.state_dir, "--node", "node-1")
        secret = json.loads(run_mayfly("credentials", "--format", "secret", *words))
        config = json.loads(base64.b64decode(secret["data"][".dockerconfigjson"]))
        assert list(config["auths"]) == [running.host]
        assert running.host in run_mayfly("node", "script", *words)
        context = ssl.create_default_context(cafile=str(running.state_dir / "ca.crt"))
        with socket.create_connection(("127.0.0.1", port)) as plain:
            # The handshake fails unless the certificate is valid for the node's address.
            context.wrap_socket(plain, server_hostname=NODE_ADDRESS).close()
    finally:
        running.kill()


def test_probes_are_not_activity(tmp_path: Path) -> None:
    """They ask for nothing else than the two endpoints that keep no idle registry alive."""
    container = container_of(rendered(tmp_path, {}))
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["path"] for probe in probes} == {"/readyz", "/livez"}
    assert {probe["scheme"] for probe in probes} == {"HTTPS"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"bundel": {}}, "bundel"),
        ({"nodes": 0}, "nodes"),
        ({"network": {"mode": "hostPort"}}, "mode"),
        ({"settings": {"IDLE_TIMEOUT": 30}}, "IDLE_TIMEOUT"),
        ({"bundle": {"hostPath": "/a", "claim": "b"}, "node": "n"}, "bundle.hostPath and"),
        ({"bundle": {"hostPath": "/a"}}, "give its name as node"),
        ({"data": {"hostPath": "/a"}}, "give its name as node"),
        ({"localRegistryHosting": True}, "give network.address"),
        ({"data": {"hostPath": "/a\n- b"}, "node": "n"}, "hostPath"),
        ({"bundle": {"claim": "b", "files": ["it's.tar"]}}, "files"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(values: Object, told: str, tmp_path: Path) -> None:
    """By the schema, or by the chart itself."""
    with pytest.raises(AssertionError, match=re.escape(told)):
        rendered(tmp_path, values)


def test_versions_are_mayflys() -> None:
    """Of the chart, and by that of the image's name."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


def test_schema_and_values_have_the_same_names() -> None:
    """And each of them has a comment above it, or above its group."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    text = (CHART / "values.yaml").read_text()

    def names(properties: Object) -> set[str]:
        return {
            f"{name}.{inner}" if inner else name
            for name, one in properties.items()
            for inner in one.get("properties", {"": {}})
        }

    values = yaml.safe_load(text)
    open_maps = ("settings", "resources")
    given = {
        f"{name}.{inner}" if inner else name
        for name, one in values.items()
        for inner in (one if isinstance(one, dict) and name not in open_maps else {"": 0})
    }
    assert names(schema["properties"]) - {"global"} == given
