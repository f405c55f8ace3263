"""CONTRIBUTING.md: its example of an endpoint, tried, and its map of the folders."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.registry.api.routes import ROUTES
from tests.support.endpoints import METHODS
from tests.support.process import REPO

PAGE = REPO / "CONTRIBUTING.md"
MADE = {"build", "dist", "__pycache__"}
"""Folders that are not of the repository."""

COPIED = (".ci", "auth", "docs", "mayfly", "registry", "storage", "tests", "pyproject.toml")


def _hunks() -> Iterator[tuple[str, str, str]]:
    """Each place of the example's diff: its file, and its lines before and after."""
    (diff,) = re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL)
    files = re.split(r"^--- a/.*\n\+\+\+ b/(.*)\n", diff, flags=re.MULTILINE)[1:]
    for name, changes in zip(files[::2], files[1::2], strict=True):
        for hunk in changes.split("@@\n")[1:]:
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] or line for line in lines if line[:1] != "+")
            yield name, before, "".join(line[1:] or line for line in lines)


def _applied(name: str, text: str, before: str, after: str) -> str:
    """The text of a file with one place of the example, where "…" is any text of a line.

    An import may be there already.
    """
    leading, _, trailing = after.partition(before)
    if leading + trailing in text:
        return text
    place = re.compile("^" + re.escape(before).replace("…", ".*"), re.MULTILINE)
    if len(place.findall(text)) != 1:
        pytest.fail(
            f"CONTRIBUTING.md's example no longer fits {name}; update its context lines:\n{before}",
            pytrace=False,
        )
    return place.sub(lambda found: leading + found[0] + trailing, text)


def test_example_is_one_route_handler_test_and_description() -> None:
    """It changes four files, and is in none of them."""
    places = [name for name, _, _ in _hunks()]
    assert {name.partition("/")[0] for name in places} == {"registry", "tests", "docs"}
    assert len(set(places)) == 4
    for name, before, after in _hunks():
        text = (REPO / name).read_text()
        if _applied(name, text, before, after) == text and "import" not in after:
            pytest.fail(
                f"{name} has CONTRIBUTING.md's example, which is to be added in a copy only: show "
                "another example there",
                pytrace=False,
            )


def test_example_adds_a_route_of_its_own() -> None:
    """Neither its endpoint nor its path is in the table of routes."""
    added = "".join(after for name, _, after in _hunks() if name == "registry/api/routes.py")
    (endpoint, path), *_ = re.findall(r'"(\w+)", "(/v2/\{name\}/_[^"]*)"', added)
    advice = "CONTRIBUTING.md's example is a route of the registry now: show another example there"
    assert endpoint not in METHODS, advice
    assert path not in {route.path for route in ROUTES}, advice


def test_example_depends_on_one_line_for_each_place() -> None:
    """A change beside the place of the example does not break it."""
    assert [name for name, before, _ in _hunks() if before.count("\n") != 1] == []


@pytest.mark.parametrize("text", ["a\nc\n", "b\nb\n", "ab\n"])
def test_outdated_example_is_named(text: str) -> None:
    """The failure says that the example is to be changed, and which file it no longer fits."""
    with pytest.raises(pytest.fail.Exception, match=r"no longer fits x\.py; update"):
        _applied("x.py", text, "b\n", "b\nnew\n")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code with the example's change."""
    for name in COPIED:
        if (REPO / name).is_dir():
            shutil.copytree(
                REPO / name,
                tmp_path / name,
                symlinks=True,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        else:
            shutil.copy(REPO / name, tmp_path / name)
    for name, before, after in _hunks():
        path = tmp_path / name
        path.write_text(_applied(name, path.read_text(), before, after))
    return tmp_path


def test_example_works(copy: Path) -> None:
    """With it, its test passes, each caller gets its row's answer, and the description fits."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    argv += [f"--basetemp={copy}/tmp", "tests/api/test_openapi.py", "tests/api/test_request.py"]
    argv += ["tests/api/test_listings.py", "tests/security/test_matrix.py"]
    argv += ["-k", "contents or covers or of_a_route or openapi and not summaries"]
    done = subprocess.run(argv, cwd=copy, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0 or "passed" not in done.stdout:
        pytest.fail(
            "CONTRIBUTING.md's example fits but no longer works; with it, the tests say:\n"
            f"{done.stdout}{done.stderr}",
            pytrace=False,
        )


def _folders(top: Path) -> set[str]:
    """The folders of a folder, except those that tools make."""
    found = [path for path in top.iterdir() if path.is_dir() and path.suffix != ".egg-info"]
    # A checkout keeps the bytecode of folders that moved away.
    names = {path.name for path in found if any(e.name not in MADE for e in path.iterdir())}
    return {name for name in names if not name.startswith(".")} - MADE


def test_map_has_every_folder() -> None:
    """Each folder at the top has a line in the map, and below it each room."""
    (drawn,) = re.findall(r"```\n(registry/.*?)```", PAGE.read_text(), re.DOTALL)
    lines = re.findall(r"^( *)([.\w]+)/ ", drawn, re.MULTILINE)
    found: dict[str, set[str]] = {"": set()}
    for indent, name in lines:
        if not indent:
            top = name
            found[""].add(name)
        found.setdefault(top, set()).update({name} if indent else ())
    assert found[""] == _folders(REPO) | {".ci"}
    for top in ("registry", "storage"):
        assert found[top] == _folders(REPO / top), f"CONTRIBUTING.md, the rooms of {top}"


def test_folders_of_tests_that_are_no_rooms_are_listed() -> None:
    """The table below the map has each folder of tests whose name is not a room's."""
    rooms = _folders(REPO / "registry") | {"registry", "storage", "bundle", "overlay", "auth"}
    listed = re.findall(r"^\| `(\w+)/` \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(_folders(REPO / "tests") - rooms)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/adr/0001-rooms.md"])
def test_named_paths_exist(page: str) -> None:
    """Each path that the text names is there."""
    tops = "|".join(("registry", "storage", "auth", "tests", "docs", r"\.ci"))
    named = re.findall(rf"[`\s]((?:{tops})/[\w./-]*\w)", (REPO / page).read_text())
    assert len(named) > 0
    assert [path for path in named if not (REPO / path).exists()] == []
