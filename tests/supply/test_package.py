"""The installed package: the modules of the checkout, under `mayfly`, each under one name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.process import REPO

FOLDERS = ("mayfly", "registry", "storage", "auth")
OF_THE_BUILD = ("pyproject.toml", "README.md", "LICENSE")

IMPORT_ALL = """
import importlib, json, os, pkgutil, sys
import mayfly

names = ["mayfly"]
for found in pkgutil.walk_packages(mayfly.__path__, "mayfly."):
    importlib.import_module(found.name)
    names.append(found.name)
files = {}
for name, module in list(sys.modules.items()):
    if getattr(module, "__file__", None) and name != "__main__":
        files.setdefault(os.path.realpath(module.__file__), []).append(name)
ours = os.path.realpath(sys.argv[1])
twice = {file: n for file, n in files.items() if file.startswith(ours + os.sep) and len(n) > 1}
tops = [top for top in ("registry", "storage", "auth") if top in sys.modules]
print(json.dumps({"names": names, "twice": twice, "tops": tops, "file": mayfly.__file__}))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is built from, since building writes beside it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / name, copy / name, symlinks=True, ignore=unwanted)
    for name in OF_THE_BUILD:
        shutil.copy(REPO / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the setuptools of this environment: without an index."""
    target = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--quiet", "--wheel-dir", target, checkout)
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files, as pip puts them into site-packages."""
    place = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def _pip(command: str, *words: str | Path) -> None:
    argv = [sys.executable, "-m", "pip", command, "--no-deps", "--no-build-isolation", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def _run(place: Path, program: str, *words: str | Path, cwd: Path) -> str:
    """Run a program with one directory before all others on the path of modules."""
    argv = [sys.executable, "-P", "-c", program, *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _modules(folder: Path) -> set[str]:
    """The modules below a package's folder by its files, links followed."""
    found = set()
    for directory, _, files in os.walk(folder, followlinks=True):
        package = Path(directory).relative_to(folder.parent)
        for name in files:
            if name.endswith(".py"):
                module = ".".join((package / name.removesuffix(".py")).parts)
                found.add(module.removesuffix(".__init__"))
    return found


def test_the_wheel_has_the_modules_of_the_checkout(installed: Path) -> None:
    """All of them, and no other."""
    assert len(_modules(REPO / "mayfly")) > 150
    assert _modules(installed / "mayfly") == _modules(REPO / "mayfly")


def test_the_wheel_installs_one_package(installed: Path) -> None:
    """`mayfly` alone, of real files, with its types; no file of another package is overwritten."""
    tops = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert tops == {"mayfly"}
    assert [path for path in installed.rglob("*") if path.is_symlink()] == []
    assert (installed / "mayfly/py.typed").exists()


def test_the_wheel_has_the_files_that_modules_read(installed: Path) -> None:
    """Scripts for nodes, and the files of the rollout page."""
    for pattern in ("**/*.sh", "page/static/*"):
        wanted = {path.relative_to(REPO) for path in (REPO / "registry").glob(pattern)}
        assert wanted
        found = (installed / "mayfly/registry").glob(pattern)
        assert {path.relative_to(installed / "mayfly") for path in found} == wanted


@pytest.mark.parametrize("where", ["checkout", "wheel"])
def test_each_module_has_one_name(installed: Path, where: str, tmp_path: Path) -> None:
    """With everything imported, no file is loaded twice, and checkout and wheel agree."""
    place = REPO if where == "checkout" else installed
    found = json.loads(_run(place, IMPORT_ALL, place, cwd=tmp_path))
    assert found["file"].startswith(str(place))
    assert found["twice"] == {}
    assert found["tops"] == []
    assert set(found["names"]) | {"mayfly.__main__"} == _modules(REPO / "mayfly")


def test_foreign_packages_do_not_disturb(installed: Path, tmp_path: Path) -> None:
    """Packages named `auth`, `storage` and `registry` on the path change nothing."""
    for name in ("auth", "storage", "registry"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    program = (
        "import sys; sys.path.insert(0, '.'); import mayfly.registry.server as one; print(one)"
    )
    assert str(installed) in _run(installed, program, cwd=tmp_path)


def test_a_new_file_needs_no_installation(checkout: Path, tmp_path: Path) -> None:
    """After an editable installation a module that is added is found at once."""
    options = ("--config-settings", "editable_mode=compat", "--prefix", tmp_path / "env")
    # Else pip would remove the package from the environment that runs this test.
    _pip("install", "--quiet", "--ignore-installed", *options, "--editable", checkout)
    (place,) = (tmp_path / "env").glob("lib/python*/site-packages")
    added = checkout / "storage" / "added_later.py"
    added.write_text("WORD = 'found'\n")
    try:
        # The path that the installation adds comes last; before it is that of the tests' own.
        program = (
            "import site, sys; site.addsitedir(sys.argv[1]);"
            "sys.path.insert(0, sys.path.pop());"
            "import mayfly.storage.added_later as m; print(m.WORD, m.__file__)"
        )
        word, file = _run(tmp_path, program, place, cwd=tmp_path).split()
    finally:
        added.unlink()
    assert word == "found"
    assert Path(file).resolve() == added.resolve()
