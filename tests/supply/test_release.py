"""`.ci/release`: what it refuses to release, and that a dry run changes nothing."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import zipfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import REPO

PROJECT = """
[project]
name = "mayfly-registry"
requires-python = ">=3.11"
dependencies = ["click>=8.2"]
scripts = { mayfly = "mayfly.__main__:main" }
"""
METADATA = """Metadata-Version: 2.4
Name: mayfly-registry
Version: 1.2.3
Requires-Python: >=3.11
Requires-Dist: click>=8.2
Requires-Dist: ruff; extra == "dev"
"""
INFORMATION = "mayfly_registry-1.2.3.dist-info"
WHEEL = {
    "mayfly/__init__.py": "",
    "mayfly/auth/basic.py": "",
    f"{INFORMATION}/METADATA": METADATA,
    f"{INFORMATION}/entry_points.txt": "[console_scripts]\nmayfly = mayfly.__main__:main\n",
    f"{INFORMATION}/licenses/LICENSE": "",
}
WANTED = {"mayfly/__init__.py", "mayfly/auth/basic.py"}


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The program, which has no suffix, as a module, for a repository of the test's own."""
    loader = SourceFileLoader("release", str(REPO / ".ci" / "release"))
    spec = importlib.util.spec_from_loader("release", loader)
    assert spec
    made = importlib.util.module_from_spec(spec)
    loader.exec_module(made)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    monkeypatch.setattr(made, "TOP", tmp_path)
    return made


def _wheel(**changed: str | None) -> zipfile.ZipFile:
    archive = zipfile.ZipFile(io.BytesIO(), "w")
    for name, content in {**WHEEL, **changed}.items():
        if content is not None:
            archive.writestr(name, content)
    return archive


def test_version(release: Any) -> None:
    """It is read from the module that the code reads it from."""
    assert release.version_of((REPO / "registry/version.py").read_text())
    with pytest.raises(release.Unfit):
        release.version_of('VERSION = "soon"\n')


def test_files_of_the_package(release: Any) -> None:
    """The repository's folders lie below `mayfly/` in a package; links do not."""
    files = ["mayfly/__init__.py", "mayfly/auth", "auth/basic.py", "auth/notes.txt"]
    assert release.packaged(files) == WANTED


def test_a_whole_wheel_passes(release: Any) -> None:
    """Files, version, requirements, command and licence are there."""
    release.check_wheel(_wheel(), "1.2.3", WANTED)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("mayfly/auth/basic.py", None, "lacks"),
        ("auth/basic.py", "", "too much"),
        (f"{INFORMATION}/licenses/LICENSE", None, "LICENSE"),
        (f"{INFORMATION}/METADATA", METADATA.replace("1.2.3", "1.2.4"), "version"),
        (f"{INFORMATION}/METADATA", METADATA.replace("click", "clock"), "requirements"),
        (f"{INFORMATION}/METADATA", METADATA.replace(">=3.11", ">=3.9"), "Python"),
        (f"{INFORMATION}/entry_points.txt", "[console_scripts]\n", "command"),
    ],
)
def test_a_wrong_wheel_is_refused(release: Any, name: str, content: str | None, word: str) -> None:
    """The message says what is wrong with it."""
    with pytest.raises(release.Unfit, match=word):
        release.check_wheel(_wheel(**{name: content}), "1.2.3", WANTED)


@pytest.mark.parametrize("lost", ["pyproject.toml", "mayfly/auth/basic.py"])
def test_an_incomplete_sdist_is_refused(release: Any, lost: str) -> None:
    """A wheel could not be built from it, or would lack a module."""
    names = {f"x/{name}" for name in (*WANTED, "pyproject.toml", "README.md", "LICENSE")}
    release.check_sdist(names, "1.2.3", WANTED)
    with pytest.raises(release.Unfit):
        release.check_sdist(names - {f"x/{lost}"}, "1.2.3", WANTED)


def test_what_is_not_committed_is_not_released(release: Any, tmp_path: Path) -> None:
    """Nor is a version that has been."""

    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, timeout=30)

    git("init", "--quiet")
    with pytest.raises(release.Unfit, match="not committed"):
        release.check_repository("1.2.3")
    git("add", ".")
    git("commit", "--quiet", "--message", "All")
    git("tag", "v1.2.3")
    with pytest.raises(release.Unfit, match="exists"):
        release.check_repository("1.2.3")
