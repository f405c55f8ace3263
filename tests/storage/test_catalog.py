"""The catalog's walk against a naive model, over random trees of directories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mayfly.auth.policy import NameRange
from mayfly.registry.api.visible import visible
from mayfly.storage.directory import catalog
from mayfly.storage.directory.catalog import Catalog
from mayfly.storage.directory.reader import DirectoryReader
from mayfly.storage.readonly import ReadOnlyStore

COMPONENT = st.text("ab0-._", min_size=1, max_size=3).filter(
    lambda t: t[0] in "ab0" and t[-1] in "ab0"
)
NAME = st.lists(COMPONENT, min_size=1, max_size=3).map("/".join)


@given(
    names=st.sets(NAME, max_size=12),
    after=NAME | st.text("ab0-._/", max_size=4),
    limit=st.integers(0, 13),
    prefix=st.just("") | NAME | st.text("ab0-._/", max_size=4),
)
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_walk_is_a_sorted_list(
    tmp_path_factory: pytest.TempPathFactory, names: set[str], after: str, limit: int, prefix: str
) -> None:
    """The names are those of a sorted list, cut at ``after``, ``prefix`` and ``limit``."""
    root = tmp_path_factory.mktemp("catalog")
    for number, name in enumerate(sorted(names)):
        (root / name / ("_layers", "_manifests")[number % 2]).mkdir(parents=True)
    expected = sorted(name for name in names if name > after and name.startswith(prefix))
    assert Catalog(root).names_after(after, limit, prefix) == expected[:limit]


def test_no_directory_is_an_empty_catalog(tmp_path: Path) -> None:
    """A root on which nothing was pushed yet has no repositories."""
    assert Catalog(tmp_path / "absent").names_after("", 10) == []


def test_only_directories_on_the_way_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of a large registry does not cost a walk of it all."""
    for number in range(300):
        (tmp_path / f"team{number:03}/app/_layers").mkdir(parents=True)
    read: list[object] = []
    real = os.scandir

    def noted(path: str) -> object:
        read.append(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", noted)
    assert Catalog(tmp_path).names_after("team250/app", 5) == [
        f"team{n}/app" for n in range(251, 256)
    ]
    assert len(read) < 30


NEIGHBOURS = ("team/a", "team/b/c", "secret", "secret/x1", "secret/x9", "teams/x", "tea", "z/z")


@pytest.fixture
def looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is looked at in a directory with `NEIGHBOURS`, by the paths of the calls."""
    for name in NEIGHBOURS:
        (tmp_path / name / "_layers").mkdir(parents=True)
    looked: list[str] = []
    for call in ("scandir", "lstat", "stat"):
        real = getattr(os, call)

        def recorded(path: str, *args: object, real: Any = real, **kwargs: object) -> object:
            looked.append(os.path.relpath(path, tmp_path))
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, call, recorded)
    return looked


@pytest.mark.parametrize("after", ["", "secret", "secret/x5", "team", "team/a", "z"])
def test_nothing_beside_a_prefix_is_looked_at(
    after: str, tmp_path: Path, looked: list[str]
) -> None:
    """Wherever a client begins, the time tells nothing of names that it is not shown."""
    names = Catalog(tmp_path).names_after(after, 100, "team/")
    assert names == [name for name in ("team/a", "team/b/c") if name > after]
    # Not even a list of the names beside it, whose length the time would tell.
    assert [one for one in looked if not f"{one}/".startswith("team/")] == []


def test_nothing_beside_a_name_is_looked_at(tmp_path: Path, looked: list[str]) -> None:
    """Nor is anything for a caller whose grants, or whose token, hold whole names."""
    reader = DirectoryReader(tmp_path)
    above = reader._layout.repositories
    for name in NEIGHBOURS:
        (above / name / "_layers").mkdir(parents=True)
    ranges = [NameRange(name, is_prefix=False) for name in ("none", "team", "team/a", "tea/..")]
    looked.clear()
    assert [*visible(ReadOnlyStore(reader), ranges, lambda _: True)] == ["team/a"]
    base = os.path.relpath(above, tmp_path)
    for one in looked:
        assert os.path.relpath(one, base).startswith(("none/_", "team/_", "team/a/_")), one


BESIDE_THE_GRAMMAR = ["../", "team/../", "/", "//", "team//", "./", "none/x/", "x\0/"]


@pytest.mark.parametrize("prefix", BESIDE_THE_GRAMMAR)
def test_prefix_that_is_no_path(prefix: str, tmp_path: Path, looked: list[str]) -> None:
    """A prefix is compared with names; it leads to no other directory."""
    assert Catalog(tmp_path / "team").names_after("", 10, prefix) == []
    assert not [one for one in looked if not f"{one}/".startswith("team/")]


def test_prefix_below_a_link(tmp_path: Path) -> None:
    """With a prefix the walk finds what it finds without one: links out of the tree only."""
    (tmp_path / "out/x/_layers").mkdir(parents=True)
    root = tmp_path / "root"
    (root / "team/y/_layers").mkdir(parents=True)
    (root / "outside").symlink_to(tmp_path / "out")
    (root / "inside").symlink_to(root / "team")
    names = Catalog(root).names_after("", 10)
    assert names == ["outside/x", "team/y"]
    for prefix in ("outside/", "inside/", "team/", "inside/y"):
        assert Catalog(root).names_after("", 10, prefix) == [
            name for name in names if name.startswith(prefix)
        ]


def test_a_listing_is_remembered_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory is read once, and again when an entry came or went."""
    monkeypatch.setattr(catalog, "_SETTLED_NS", -1)
    (tmp_path / "b/_layers").mkdir(parents=True)
    names = Catalog(tmp_path)
    assert names.names_after("", 10) == ["b"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: pytest.fail(f"{path} was read again"))
        assert names.names_after("", 10) == ["b"]
    (tmp_path / "a/_layers").mkdir(parents=True)
    os.utime(tmp_path, ns=(0, 1))
    assert names.names_after("", 10) == ["a", "b"]


def test_what_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    """Two changes within a tick of the clock have one modification time: both are seen."""
    names = Catalog(tmp_path)
    for name in ("b", "a"):
        (tmp_path / name / "_layers").mkdir(parents=True)
        os.utime(tmp_path, ns=(10**18 * 9, 10**18 * 9))
        assert name in names.names_after("", 10)


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many directories the first ones read are forgotten."""
    monkeypatch.setattr(catalog, "_SETTLED_NS", -1)
    monkeypatch.setattr(catalog, "_LISTING_BYTES", 2000)
    for number in range(20):
        (tmp_path / f"{number:02}/app/_layers").mkdir(parents=True)
    names = Catalog(tmp_path)
    assert len(names.names_after("", 100)) == 20
    assert 0 < names._listings.size <= 2000
