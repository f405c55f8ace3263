"""The manifest of test programs: what CI installs, within its time, and what it leaves to whom."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import need
from tests.support.programs import BIN, CI, TOP, manifest, versioned, versions
from tests.support.sources import parsed, python_files


def _needed() -> Iterator[tuple[Path, str]]:
    """Every program that a test asks for by a constant."""
    for path in python_files("tests"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "need":
                for word in node.args:
                    if isinstance(word, ast.Constant):
                        yield path, str(word.value)


def test_every_program_that_a_test_needs_is_in_it() -> None:
    """Otherwise CI would not install it, and the test would be a failure nobody can mend."""
    needed = list(_needed())
    assert len(needed) > 30, "the search finds too few"
    unknown = {name for _, name in needed if manifest().provider(name) is None}
    assert unknown == set()


def test_ci_installs_within_its_time() -> None:
    """The minutes that were measured, together, on a bare machine."""
    assert 0 < manifest().minutes(CI) <= manifest().ci_minutes


def test_what_ci_leaves_out_has_a_target_and_tests() -> None:
    """`make test-x` installs tier `test-x` and runs tests/x."""
    makefile = (TOP / "Makefile").read_text()
    assert manifest().tiers()
    for tier in manifest().tiers():
        name = tier.removeprefix("test-")
        assert (TOP / "tests" / name).is_dir()
        recipe = re.search(rf"^{tier}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
        assert recipe is not None, tier
        assert f".ci/install {tier}" in recipe[1]
        assert f"pytest tests/{name} " in recipe[1]
        assert manifest().minutes(tier) > 0


def test_what_is_left_out_runs_when_named_and_is_told_otherwise() -> None:
    """A run over everything names what it left to which target.

    Folders other than the one in question are passed over, since to collect them takes long.
    """
    for words, told in (((), True), (("tests/kubelet",), False)):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "--collect-only",
                "-q",
                "-p",
                "no:cacheprovider",
                "--ignore-glob=*/tests/[!k]*",
                *words,
            ],
            cwd=TOP,
            timeout=120,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert ("left out: tests/kubelet, which make test-kubelet runs" in done.stdout) is told
        assert ("tests/kubelet/test_" in done.stdout) is not told, done.stdout[-2000:]


def test_versions_lie_side_by_side() -> None:
    """Each in a directory of its own; the newest two of containerd, and an engine of Docker."""
    assert len(versions("containerd")) == 2
    assert versions("docker")
    for version in versions("containerd"):
        assert versioned("containerd", version) == BIN / f"containerd-{version}"


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("containerd", "apt-get install containerd, or .ci/install"),
        ("crane", "install: .ci/install"),
        ("etcd", "apt-get install etcd-server, or make test-kubelet"),
        ("kubelet", "install: make test-kubelet"),
    ],
)
def test_a_missing_program_is_told_with_its_way_in(program: str, told: str, tmp_path: Path) -> None:
    """The reason of the skip says what to run."""
    with pytest.raises(pytest.skip.Exception, match=re.escape(told)):
        need(program, directory=tmp_path)


def test_a_program_of_another_tier_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is installed: CI would skip the test, which is a failure there."""
    for program in ("etcd", "cosign"):
        (tmp_path / program).touch(0o755)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "tests/upstream/test_copy.py::test_it (call)")
    with pytest.raises(pytest.skip.Exception, match="make test-kubelet"):
        need("etcd", directory=tmp_path)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "tests/kubelet/test_pods.py::test_it (setup)")
    need("etcd", directory=tmp_path)
    with pytest.raises(pytest.skip.Exception, match="make test-signatures"):
        need("cosign", directory=tmp_path)


def test_a_program_that_nothing_installs_is_an_error(tmp_path: Path) -> None:
    """Not a skip: no machine would ever run the test."""
    name = "frobnicator"
    (tmp_path / name).touch(0o755)
    with pytest.raises(LookupError, match=r"frobnicator is not in \.ci/programs\.toml"):
        need(name, directory=tmp_path)


def test_install_refuses_an_unknown_tier() -> None:
    """And names those there are."""
    done = subprocess.run(
        ["bash", TOP / ".ci/install", "test-nothing"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "no tier test-nothing: " in done.stderr
    tiers = "ci, test-browser, test-kubelet, test-packages, test-signatures"
    assert tiers in done.stderr


def test_shell_scripts_are_clean() -> None:
    """shellcheck finds nothing in any script of the project."""
    need("shellcheck")
    scripts = [".ci/install", ".ci/run", *map(str, TOP.glob("examples/**/*.sh"))]
    done = subprocess.run(
        ["shellcheck", *scripts], cwd=TOP, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
