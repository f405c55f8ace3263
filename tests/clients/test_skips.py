"""The rule for skips: each is named with what it lacks, and in CI each is a failure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.support.process import REPO

SKIPS = {
    "program": """
        from pathlib import Path
        from tests.support.process import need

        def test_it():
            need("curl", directory=Path("a-program-nobody-has"))
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
# A module that does not load would keep the others from being run.
GO_ON = "--continue-on-collection-errors"
EXPECTED_FAILURE = """
    import pytest

    @pytest.mark.xfail(strict=True)
    def test_it():
        assert False
"""


def run_pytest(directory: Path, modules: dict[str, str], **environment: str) -> tuple[int, str]:
    """Run test modules under the rule: the exit code and what was printed."""
    for name, source in modules.items():
        (directory / f"test_{name}.py").write_text(textwrap.dedent(source))
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


def test_skips_are_told(tmp_path: Path) -> None:
    """However a test skips, the run's end has a section that says why."""
    _, output = run_pytest(tmp_path, SKIPS)
    section = output.partition("not tested on this machine")[2]
    for how in SKIPS:
        (told,) = [line for line in section.splitlines() if line.startswith(f"test_{how}.py")]
        assert "a-program-nobody-has" in told
    assert f"{len(SKIPS)} skipped" in section


def test_skips_fail_where_all_is_required(tmp_path: Path) -> None:
    """With MAYFLY_REQUIRE_ALL=1 the same skips are failures with the same reason."""
    code, output = run_pytest(tmp_path, SKIPS, MAYFLY_REQUIRE_ALL="1", PYTEST_ADDOPTS=GO_ON)
    assert code == 1
    lines = output.splitlines()
    reasons = [line for line in lines if line.startswith("skipped, but MAYFLY_REQUIRE_ALL=1")]
    assert len(reasons) == len(SKIPS)
    assert all("a-program-nobody-has" in reason for reason in reasons)
    failed = "\n".join(line for line in lines if re.match("(FAILED|ERROR) ", line))
    for how in SKIPS:
        assert f"test_{how}.py" in failed
    assert "skipped" not in lines[-1]


def test_expected_failure_is_no_skip(tmp_path: Path) -> None:
    """A failure that was marked as expected stays one where all is required."""
    code, output = run_pytest(tmp_path, {"expected": EXPECTED_FAILURE}, MAYFLY_REQUIRE_ALL="1")
    assert code == 0
    assert "1 xfailed" in output
