"""The system's kubectl: the words it is run with, its answers, and how it fails."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mayfly.registry.errors import LifetimeError
from mayfly.registry.exit_codes import Exit
from mayfly.registry.nodes.kubectl import Kubectl, read_object
from mayfly.registry.settings.errors import ConfigError

CLUSTER = Kubectl(Path("/k"), "c")


def _stub(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = directory / "kubectl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_words() -> None:
    """The operator's configuration, unless another is given."""
    assert Kubectl().words("get", "pods") == ["kubectl", "get", "pods"]
    start = ["kubectl", "--kubeconfig", "/k", "--context", "c"]
    assert CLUSTER.words("get", "pods") == [*start, "get", "pods"]


def test_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content goes by standard input; a document comes back."""
    _stub(tmp_path, monkeypatch, 'cat; printf \'{"a":\\n "%s"}\' "$*" >"$0.out"; cat "$0.out"')
    assert asyncio.run(CLUSTER.read("get", "pods")) == {
        "a": "--kubeconfig /k --context c get pods -o json"
    }
    _stub(tmp_path, monkeypatch, "cat")
    assert asyncio.run(CLUSTER.ask("apply", content=b"x\ny")) == b"x\ny\n"


def test_preferences_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of kuberc may have `get` leave objects out, and `delete` ask first."""
    _stub(tmp_path, monkeypatch, "printenv KUBERC")
    monkeypatch.setenv("KUBERC", "/home/me/kuberc")
    assert asyncio.run(CLUSTER.ask("get", "pods")) == b"off\n"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'The connection was refused' >&2; exit 1", "The connection was refused"),
        ("exit 7", "exit code 7"),
        ("sleep 100", "no answer in 1 s"),
        ("echo '[]'", "not a JSON object"),
        ("echo '{'", "not a JSON object"),
        ("head -c 100000 /dev/zero", "more than 1000 bytes"),
        ("yes", "more than 1000 bytes"),
    ],
)
def test_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, problem: str
) -> None:
    """Each has kubectl's own words, and exit code 3."""
    _stub(tmp_path, monkeypatch, script)
    seconds, arguments = 1.0 if "sleep" in script else 60.0, ("get", "pods", "--selector=x")
    with pytest.raises(LifetimeError, match=problem) as caught:
        answer = asyncio.run(Kubectl().ask(*arguments, seconds=seconds, most=1000))
        read_object(answer, arguments)
    assert caught.value.exit_code == Exit.INCOMPLETE
    assert caught.value.message.startswith("kubectl get pods: ")


def test_no_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="kubectl: command not found"):
        asyncio.run(Kubectl().ask("version"))
