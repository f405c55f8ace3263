"""`mayfly report`: the report of a run as text, as JSON, and as a page."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from mayfly.registry.cli.report import command
from mayfly.registry.control.report_page import render
from tests.cli.test_json_output import check
from tests.control.test_report import REPORT
from tests.support.commands import assert_refused, command_line, environment, mayfly, started
from tests.support.process import PATIENCE


def test_a_page_has_what_the_report_has() -> None:
    """The result, each node with each image, and what went wrong."""
    page = render(REPORT)
    lacks = "node-b: docker.io/library/nginx:1.25, quay.io/team/app:2 (failed)"
    for text in ("1 of 2 nodes has every image", lacks, "node-a"):
        assert text in page
    assert "summary short" in page
    covered = copy.deepcopy(REPORT)
    assert covered["coverage"] is not None
    covered["coverage"]["complete"] = True
    assert "summary done" in render(covered)
    covered["coverage"] = None
    assert "The registry has ended" in render(covered)


def test_the_command(tmp_path: Path) -> None:
    """It reads the last report of a state directory, or the file that is given."""
    file = tmp_path / "report.json"
    file.write_text(json.dumps(REPORT))
    shown = mayfly("report", "--state-dir", tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "coverage: 1 of 2 nodes" in shown.stdout
    document = json.loads(mayfly("report", file, "--json").stdout)
    assert document == json.loads(json.dumps(REPORT))
    check("report", document)
    page = tmp_path / "report.html"
    assert mayfly("report", file, "--html", page).stdout == ""
    assert page.read_text() == render(REPORT)
    assert mayfly("report", file, "--html", "-").stdout == render(REPORT)
    both = mayfly("report", file, "--html", page, "--json")
    assert json.loads(both.stdout) == document
    assert page.read_text() == render(REPORT)
    assert_refused(mayfly("report", file, "--html", "-", "--json"), "--html -", "--json")


def test_a_report_while_another_run_is_under_way(tmp_path: Path) -> None:
    """An earlier run's report is not taken for this one's; without one, the message has the way."""
    state = ("--state-dir", tmp_path / "state")
    serve = ("serve", *state, "--root", tmp_path / "root", "--listen", "127.0.0.1:0")
    with started(*serve) as server:
        assert mayfly("wait", "--ready", *state).returncode == 0
        says = "a Mayfly runs with the state directory"
        assert_refused(mayfly("report", *state), "report.json: No such file", says)
        (tmp_path / "state/report.json").write_text(json.dumps(REPORT))
        shown = mayfly("report", *state)
        assert shown.returncode == 0
        assert "coverage: 1 of 2 nodes" in shown.stdout
        assert shown.stderr.startswith(f"this is the report of an earlier run: {says}")
        assert mayfly("report", *state, "--json").stderr == ""
        assert mayfly("report", tmp_path / "state/report.json").stderr == ""
        server.terminate()
        assert server.wait(PATIENCE) == 0
    assert mayfly("report", *state).stderr == ""


def test_a_page_is_utf_8_everywhere(tmp_path: Path) -> None:
    """Also on the standard output of a locale with another encoding."""
    file = tmp_path / "report.json"
    report = copy.deepcopy(REPORT)
    report["version"] = "Straße"
    file.write_text(json.dumps(report))
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        command_line("report", file, "--html", "-"), env=environment(**env), capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == render(report)
    assert "Straße".encode() in done.stdout


def test_only_what_is_printed_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON takes neither the page nor the text."""

    def fail(*_: object) -> str:
        raise AssertionError("made for nothing")

    file = tmp_path / "report.json"
    file.write_text(json.dumps(REPORT))
    monkeypatch.setattr("mayfly.registry.control.report_page.render", fail)
    monkeypatch.setattr("mayfly.registry.control.status_text.report_text", fail)
    done = CliRunner().invoke(command, [str(file), "--json"], standalone_mode=False)
    assert json.loads(done.output) == json.loads(json.dumps(REPORT))


def test_what_is_no_report(tmp_path: Path) -> None:
    """The message names the file; nothing is written."""
    for content in (b"", b"[]", b"{}", b"\xff", b'{"coverage": 1}', b"[" * 100_000):
        file = tmp_path / "report.json"
        file.write_bytes(content)
        done = mayfly("report", file, "--html", tmp_path / "page.html")
        assert done.returncode == 2
        assert f"{file}: not a report" in done.stderr
        assert_refused(mayfly("report", file, "--json"), f"{file}: not a report")
    done = mayfly("report", tmp_path / "none")
    assert done.returncode == 2
    assert "No such file" in done.stderr
    assert not (tmp_path / "page.html").exists()
