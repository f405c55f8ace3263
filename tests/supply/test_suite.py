"""`python -m tests`: two runs of pytest, one exit code; which tests share a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import __main__ as suite
from tests.conftest import HUNG_SECONDS, INDEPENDENT, IS_SOAK, LONG, _places
from tests.support.process import REPO


@pytest.mark.parametrize(
    ("codes", "code"),
    [((0, 0), 0), ((0, 5), 0), ((5, 0), 0), ((5, 5), 5), ((1, 0), 1), ((0, 1), 1), ((5, 2), 2)],
)
def test_exit_code(monkeypatch: pytest.MonkeyPatch, codes: tuple[int, int], code: int) -> None:
    """Both parts run whatever the first finds; a part without tests is no failure."""
    answers, ran = iter(codes), []

    def run(title: str, options: list[str]) -> int:
        ran.append((title, options[:2], options[-1]))
        return next(answers)

    monkeypatch.setattr(suite, "_pytest", run)
    assert suite.main(["-x"]) == code
    assert ran == [
        ("side by side", ["-m", "not alone"], "-x"),
        ("alone", ["-m", "alone"], "-x"),
    ]


def test_long_folders_start_first_and_take_turns() -> None:
    """Modules of one folder wait for the same images: they do not all start at once."""
    names = ("api/a", "clients/a", "clients/b", "hostile/a", "http/a")
    modules = [Path("tests") / name for name in names]
    places = _places(modules)
    ordered = [
        path.relative_to("tests").as_posix()
        for path in sorted(modules, key=lambda path: places[path])
    ]
    assert ordered == ["clients/a", "hostile/a", "clients/b", "api/a", "http/a"]


def test_long_folders_are_there() -> None:
    """No name of a folder is left in the list after the folder is gone."""
    assert all(Path(__file__).parents[1].joinpath(folder).is_dir() for folder in LONG)


NUMBERED = """
import os
import pytest

def note():
    module = os.environ["PYTEST_CURRENT_TEST"].partition("::")[0]
    with open("ran", "a") as file:
        file.write(f"{module} {os.environ['PYTEST_XDIST_WORKER']}\\n")

@pytest.mark.parametrize("number", range(9))
class TestClass:
    def test_in_class(self, number):
        note()

@pytest.mark.parametrize("number", range(9))
def test_function(number):
    note()
"""


def test_modules_stay_in_one_process(tmp_path: Path) -> None:
    """Classes and functions of a module do; tests of a module that is independent need not."""
    modules = [f"tests/test_{name}.py" for name in "abc"]
    for name in (*modules, *INDEPENDENT):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(NUMBERED)
    argv = [sys.executable, "-m", "pytest", *suite.SIDE_BY_SIDE, "-n2", "-p", "tests.conftest"]
    argv += ["-p", "no:cacheprovider", f"--basetemp={tmp_path}/tmp", f"--rootdir={tmp_path}"]
    done = subprocess.run(
        [*argv, "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ran = [line.split() for line in (tmp_path / "ran").read_text().splitlines()]
    assert len(ran) == 18 * len([*modules, *INDEPENDENT])
    processes = {name: {process for module, process in ran if module == name} for name, _ in ran}
    assert [len(processes[name]) for name in modules] == [1, 1, 1]
    assert [len(processes[name]) for name in INDEPENDENT] == [2] * len(INDEPENDENT)


HANGING = """
import asyncio, threading
import pytest

pytestmark = pytest.mark.timeout(1)

def test_waits():
    threading.Event().wait()

async def test_awaits():
    await asyncio.Event().wait()

def test_runs():
    while True:
        pass

def test_passes():
    pass
"""


@pytest.mark.parametrize("processes", ["0", "2"])
def test_hanging_test_ends(processes: str, tmp_path: Path) -> None:
    """Whatever a test hangs in, it fails after its limit, and the others run."""
    module = tmp_path / "test_hanging.py"
    module.write_text(HANGING)
    argv = [sys.executable, "-m", "pytest", "-n", processes, "-o", "asyncio_mode=auto", "-q"]
    argv += ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(module)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "3 failed, 1 passed" in done.stdout, done.stdout
    assert done.stdout.count("Timeout (>1.0s)") >= 3


def test_every_test_has_a_limit(request: pytest.FixtureRequest) -> None:
    """It is set by tests/conftest.py; only the long forms have none."""
    marker = request.node.get_closest_marker("timeout")
    assert (None if marker is None else marker.args) == (None if IS_SOAK else (HUNG_SECONDS,))
