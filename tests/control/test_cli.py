"""`mayfly status`, `stop` and `wait` against a server in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from mayfly.registry.cli import control, run
from mayfly.registry.control.client import TimedOut, ask
from mayfly.registry.errors import LifetimeError, NotRunning
from tests.support.process import poll
from tests.support.stubs import Stub, pull, pulling

Start = Callable[..., Stub]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "IMAGES.txt"
    path.write_text("team/app:1\n")
    return path


def invoke(command: click.Command, *arguments: str | Path) -> tuple[Any, str, str]:
    """Exit code, output and errors, as `registry.cli.execute` has them."""
    result = CliRunner().invoke(command, list(map(str, arguments)), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.stdout, result.stderr


def test_status(start: Start, images: Path) -> None:
    """Status shows state, transfers and matrix, for people and for programs."""
    stub = start(until_pulled=images, nodes="2", rate=20_000.0).ready()
    with pulling(stub.port) as response:
        code, out, _ = invoke(control.status, "--state-dir", stub.state_dir)
        assert code == 0
        assert "serving" in out
        flows = next(line for line in out.splitlines() if line.startswith("pull by node-a"))
        assert "team/app@sha256:" in flows
        assert flows.endswith("/s")
        assert "coverage: 0 of 2 nodes" in out
        row = next(line for line in out.splitlines() if line.startswith("node-a"))
        assert row.split() == ["node-a", "0", "of", "1", "team/app:1", "(pulling)"]
        assert out.splitlines()[-1] == "1 more node pulled nothing yet"
        response.read()
    poll(lambda: not ask(stub.state_dir, "status")["requests"])
    code, out, _ = invoke(control.status, "--state-dir", stub.state_dir, "--json")
    assert code == 0
    status = json.loads(out)
    assert status["state"] == "serving"
    assert status["pid"] == stub.pid
    assert status["coverage"]["matrix"] == {"team/app:1": {"node-a": "served"}}
    assert status["coverage"]["missing"] == []
    assert stub.stop() == 3


def test_status_without_coverage(start: Start) -> None:
    """Without a list of images there is no matrix."""
    stub = start().ready()
    _, out, _ = invoke(control.status, "--state-dir", stub.state_dir, "--json")
    assert json.loads(out)["coverage"] is None


def test_stop(start: Start) -> None:
    """Stop drains, returns after the end, and shows the result."""
    stub = start(rate=200_000.0).ready()
    with pulling(stub.port) as response:
        rest: list[bytes] = []
        reader = threading.Thread(target=lambda: rest.append(response.read()))
        reader.start()
        code, out, _ = invoke(control.stop, "--state-dir", stub.state_dir)
        reader.join()
    assert len(rest[0]) == 99_999
    report = stub.state_dir / "report.json"
    assert (code, out) == (0, f"stopped with exit code 0; report: {report}\n")
    assert stub.code() == 0


def test_stop_under_a_command(start: Start, tmp_path: Path) -> None:
    """Stop also ends the command, whose exit code is the server's."""
    script = "trap 'exit 6' TERM; touch $1/trapped; sleep 60 & wait"
    stub = start("sh", "-c", script, "sh", str(tmp_path)).ready()
    poll((tmp_path / "trapped").exists)
    code, out, _ = invoke(control.stop, "--state-dir", stub.state_dir, "--json")
    assert code == 0
    assert json.loads(out)["exit_code"] == stub.code() == 6


def test_wait_for_ready(start: Start) -> None:
    """A script may wait before the state directory exists."""
    stub = start()
    code, out, _ = invoke(
        control.wait, "--ready", "--state-dir", stub.state_dir, "--timeout", "20s"
    )
    assert (code, out) == (0, "")
    assert (stub.state_dir / "ready.json").exists()


def test_wait_for_coverage(start: Start, images: Path) -> None:
    """Waiting ends with coverage, and with exit code 3 when it does not come."""
    stub = start(until_pulled=images, nodes="1", idle_timeout=60.0, until_all=True).ready()
    arguments = ("--covered", "--state-dir", stub.state_dir, "--timeout")
    code, _, errors = invoke(control.wait, *arguments, "0s")
    missing = "0 of 1 node covered; missing: 1 that pulled nothing yet"
    assert (code, errors) == (3, f"mayfly: timed out after 0s: {missing}\n")
    pull(stub.port, "node-a")
    code, out, _ = invoke(control.wait, *arguments, "20s", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["reached"], found["ended"]) == (True, False)
    assert found["coverage"]["complete"]


def test_wait_for_coverage_that_does_not_come(start: Start, images: Path) -> None:
    """If the server ends first, the missing images are shown, and the exit code is 3."""
    stub = start(until_pulled=images, nodes="1", unused_timeout=6.0).ready()
    code, out, errors = invoke(control.wait, "--covered", "--state-dir", stub.state_dir)
    assert code == 3
    assert out == ""
    missing = "0 of 1 node covered; missing: 1 that pulled nothing yet"
    assert errors == f"mayfly: the server ended: {missing}\n"
    assert stub.code() == 3


def test_wait_without_coverage(start: Start) -> None:
    """Waiting for coverage fails if the server has no list of images."""
    stub = start().ready()
    with pytest.raises(LifetimeError, match="--until-pulled and --nodes") as refused:
        invoke(control.wait, "--covered", "--state-dir", stub.state_dir)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("command", [control.status, control.stop, control.wait])
def test_no_server(tmp_path: Path, command: click.Command) -> None:
    """Without a server the exit code is 6, and one line says what to do."""
    arguments = ["--covered"] if command is control.wait else []
    with pytest.raises(NotRunning, match=r"no Mayfly runs with .*; start one") as refused:
        invoke(command, *arguments, "--state-dir", tmp_path)
    assert refused.value.exit_code == 6


def test_server_that_does_not_come(tmp_path: Path) -> None:
    """Waiting for a server that does not start times out with exit code 3."""
    with pytest.raises(TimedOut, match=r"timed out after 0s: no Mayfly runs with") as refused:
        invoke(control.wait, "--ready", "--timeout", "0s", "--state-dir", tmp_path)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((), "--covered or --safe-to-stop"), (("--ready", "--timeout", "5"), "90s")],
)
def test_wait_usage(arguments: tuple[str, ...], says: str) -> None:
    """Invalid events and timeouts to wait for are usage errors."""
    with pytest.raises(click.UsageError, match=says):
        invoke(control.wait, *arguments)


def test_run_takes_its_command_off() -> None:
    """Options after the separator belong to the command; a missing command is a usage error."""
    with pytest.raises(click.UsageError, match="COMMAND is missing"):
        invoke(run.command, "--listen", "127.0.0.1:0")
    with pytest.raises(click.UsageError, match="COMMAND is missing"):
        invoke(run.command, "--")
    help_text = subprocess.run(
        [sys.executable, "-c", "from mayfly.registry.cli.run import command; command(['--help'])"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert "-- COMMAND [ARG]..." in help_text


def test_run_hands_words_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command gets its arguments unchanged, and its exit code is Mayfly's."""
    import mayfly.registry.startup

    given: list[tuple[str, ...]] = []

    class Server:
        @staticmethod
        def run(settings: object, *, command: tuple[str, ...]) -> int:
            given.append(command)
            return 9

    monkeypatch.setattr(mayfly.registry.startup, "import_server", lambda **_: Server)
    options = ("--state-dir", tmp_path, "--listen", "127.0.0.1:0")
    code, _, _ = invoke(run.command, *options, "--", "cmd", "--json", "--", "-x")
    assert code == 9
    assert given == [("cmd", "--json", "--", "-x")]
