"""`mayfly report`: the report of a run as text, as JSON, and as a page."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from mayfly.registry.control.report_page import render
from tests.cli.test_json_output import check
from tests.control.test_report import REPORT
from tests.support.commands import mayfly


def test_a_page_has_what_the_report_has() -> None:
    """The result, each node with each image, and what went wrong."""
    page = render(REPORT)
    for text in ("1 of 2 nodes has every image", "node-b: quay.io/team/app:2 (failed)", "node-a"):
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


def test_what_is_no_report(tmp_path: Path) -> None:
    """The message names the file; nothing is written."""
    for content in (b"", b"[]", b"{}", b"\xff", b'{"coverage": 1}', b"[" * 100_000):
        file = tmp_path / "report.json"
        file.write_bytes(content)
        done = mayfly("report", file, "--html", tmp_path / "page.html")
        assert done.returncode == 2
        assert f"{file}: not a report" in done.stderr
    done = mayfly("report", tmp_path / "none")
    assert done.returncode == 2
    assert "No such file" in done.stderr
    assert not (tmp_path / "page.html").exists()
