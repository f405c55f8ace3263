"""What operators are told of a registry that is served below a path of a proxy."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import run_mayfly
from tests.support.process import Mayfly

URL = "https://registry.example:8443/hub"
HOST = "registry.example:8443"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mayfly]:
    """One with users, reached by an external URL with a path."""
    place = tmp_path_factory.mktemp("external")
    options = ("--auth", "auto", "--external-url", URL)
    found = Mayfly(place / "root", place / "state", *options)
    yield found
    found.stop()


def ask(server: Mayfly, *argv: str) -> str:
    return run_mayfly(*argv, "--state-dir", server.state_dir)


def test_credentials(server: Mayfly) -> None:
    """Every format that has a host has the external one, without the path: so do image names."""
    assert json.loads(ask(server, "credentials", "--json"))["hosts"] == [HOST]
    docker = json.loads(ask(server, "credentials", "--format", "docker"))
    assert list(docker["auths"]) == [HOST]
    secret = json.loads(ask(server, "credentials", "--format", "secret"))
    kept = json.loads(base64.b64decode(secret["data"][".dockerconfigjson"]))
    assert list(kept["auths"]) == [HOST]
    assert len(ask(server, "credentials").split()) == 2


def test_instructions(server: Mayfly) -> None:
    """The log points to node-config though the listener is local, and that has the whole URL."""
    assert f"ready at {URL}" in server.output()
    assert "to set up nodes: mayfly node-config show" in server.output()
    assert f"Registry: {URL}\n" in ask(server, "node-config", "show")
    shown = ask(server, "node-config", "show", "--runtime", "containerd")
    assert f'server = "{URL}/v2"' in shown
    ready = json.loads((Path(server.state_dir) / "ready.json").read_text())
    assert ready["url"] == URL
