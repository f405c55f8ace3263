"""The rule for skips: each is named with what it lacks, and in CI each is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.process import REPO

SKIPS = {
    "program": """
        from tests.process import need

        def test_it():
            need("a-program-nobody-has")
    """,
    "fixture": """
        import pytest

        @pytest.fixture
        def absent():
            pytest.skip("a-program-nobody-has")

        def test_it(absent):
            pass
    """,
    "marker": """
        import pytest

        @pytest.mark.skip(reason="a-program-nobody-has")
        def test_it():
            pass
    """,
    "module": """
        import pytest

        pytest.skip("a-program-nobody-has", allow_module_level=True)
    """,
}
EXPECTED_FAILURE = """
    import pytest

    @pytest.mark.xfail(strict=True)
    def test_it():
        assert False
"""


def run_pytest(directory: Path, source: str, **environment: str) -> tuple[int, str]:
    """Run one test module under the rule: the exit code and what was printed."""
    (directory / "test_module.py").write_text(textwrap.dedent(source))
    (directory / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "."],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPO), "MAYFLY_REQUIRE_ALL": "", **environment},
        timeout=60,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("how", SKIPS)
def test_skip_is_told(tmp_path: Path, how: str) -> None:
    """However a test skips, the run's end has a section that says why."""
    _, output = run_pytest(tmp_path, SKIPS[how])
    section = output.partition("not tested on this machine")[2]
    assert "a-program-nobody-has" in section
    assert "1 skipped" in section


@pytest.mark.parametrize("how", SKIPS)
def test_skip_fails_where_all_is_required(tmp_path: Path, how: str) -> None:
    """With MAYFLY_REQUIRE_ALL=1 the same skip is a failure with the same reason."""
    code, output = run_pytest(tmp_path, SKIPS[how], MAYFLY_REQUIRE_ALL="1")
    assert code != 0
    assert "MAYFLY_REQUIRE_ALL=1 allows no skip: " in output
    assert "a-program-nobody-has" in output
    assert " skipped in" not in output


def test_expected_failure_is_no_skip(tmp_path: Path) -> None:
    """A failure that was marked as expected stays one where all is required."""
    code, output = run_pytest(tmp_path, EXPECTED_FAILURE, MAYFLY_REQUIRE_ALL="1")
    assert code == 0
    assert "1 xfailed" in output
