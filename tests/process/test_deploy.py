"""The units and the static pod are valid; tests/process/test_chart.py has the chart."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mayfly.registry.settings.settings import ALL
from tests.support.packing import builder
from tests.support.process import REPO, find_program, need

SYSTEMD = REPO / "deploy" / "systemd"

MAX_EXPOSURE = 15
"""Ten times the figure of `systemd-analyze security`: 0 is a sealed box, 96 a service without any
directive."""


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    found = find_program(program)
    assert found is not None
    argv = [found, *map(str, arguments)]
    return subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60
    )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that exists here in the place of Mayfly's."""
    need("systemd-analyze")
    for unit in SYSTEMD.glob("mayfly.s*"):
        shutil.copy(unit, tmp_path)
    service = tmp_path / "mayfly.service"
    text = service.read_text()
    assert "ExecStart=/usr/bin/mayfly serve\n" in text
    service.write_text(text.replace("/usr/bin/mayfly", "/bin/sh"))
    for unit in tmp_path.iterdir():  # its manual is not installed here
        unit.write_text(unit.read_text().replace("man:mayfly(1)", "man:systemd.unit(5)"))
    return tmp_path


def test_units(units: Path) -> None:
    """`systemd-analyze verify` accepts both units."""
    done = run("systemd-analyze", "verify", units / "mayfly.socket", units / "mayfly.service")
    assert (done.returncode, done.stdout) == (0, "")


def test_units_are_hardened(units: Path) -> None:
    """The service has few permissions beyond its work."""
    arguments = ("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", "--no-pager")
    done = run("systemd-analyze", *arguments, units / "mayfly.service")
    assert done.returncode == 0, done.stdout


def test_variables_are_settings() -> None:
    """Every variable that the service sets, or its file of settings shows, is one Mayfly reads."""
    texts = [(SYSTEMD / name).read_text() for name in ("mayfly.service", "mayfly.env")]
    used = {name for text in texts for name in re.findall(r"MAYFLY_[A-Z_]+(?==)", text)}
    assert used
    assert used <= {setting.variable for setting in ALL}


def test_static_pod() -> None:
    """The kubelet takes it, every variable is a setting, and its image is that of the packages."""
    need("kubernetes-validate")
    file = REPO / "deploy/kubernetes/static-pod.yaml"
    done = run("kubernetes-validate", "--strict", file)
    assert done.returncode == 0, done.stdout
    used = set(re.findall(r"name: (MAYFLY_[A-Z_]+)", file.read_text()))
    assert used
    assert used <= {setting.variable for setting in ALL}
    assert f"image: {builder().IMAGE}\n" in file.read_text()
