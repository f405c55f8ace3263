"""The catalog's walk against a naive model, over random trees of directories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mayfly.storage.directory import catalog
from mayfly.storage.directory.catalog import Catalog

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


@pytest.mark.parametrize("after", ["", "secret", "secret/x5", "team", "team/a", "z"])
def test_nothing_beside_a_prefix_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """Wherever a client begins, the time tells nothing of names that it is not shown."""
    for name in ("team/a", "team/b/c", "secret", "secret/x1", "secret/x9", "teams/x", "tea", "z/z"):
        (tmp_path / name / "_layers").mkdir(parents=True)
    looked: list[str] = []
    for call in ("scandir", "lstat", "stat"):
        real = getattr(os, call)

        def recorded(path: str, *args: object, real: Any = real, **kwargs: object) -> object:
            looked.append(os.path.relpath(path, tmp_path))
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, call, recorded)
    names = Catalog(tmp_path).names_after(after, 100, "team/")
    assert names == [name for name in ("team/a", "team/b/c") if name > after]
    assert [one for one in looked if one != "." and not f"{one}/".startswith("team/")] == []


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
    monkeypatch.setattr(catalog, "_ENTRIES", 10)
    for number in range(20):
        (tmp_path / f"{number:02}/app/_layers").mkdir(parents=True)
    names = Catalog(tmp_path)
    assert len(names.names_after("", 100)) == 20
    assert names._cached_entries <= 10
    assert sum(len(keys) for _, keys in names._listings.values()) == names._cached_entries
