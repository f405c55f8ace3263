"""Files that are read again when they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mayfly.auth.errors import AuthError
from mayfly.registry.access.errors import PolicyFileInvalid
from mayfly.registry.access.watch import INTERVAL, FileBacked
from tests.auth.clock import Clock


def _load(path: Path) -> str:
    text = path.read_text()
    if text == "broken":
        raise PolicyFileInvalid(path, "is broken", "mend it")
    return text


class Watched:
    """A file-backed value, its clock, and all it reported."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.broken: list[str] = []
        self.reloaded: list[Path] = []
        self.value = FileBacked(
            path,
            _load,
            lambda error: self.broken.append(error.message),
            self.reloaded.append,
            self.clock,
        )

    def later(self) -> str:
        self.clock.advance(INTERVAL)
        return self.value()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("one")
    return path


def test_first_load_must_succeed(path: Path) -> None:
    """There is no old value to keep, so starting fails."""
    path.write_text("broken")
    with pytest.raises(AuthError, match="is broken"):
        Watched(path)
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        Watched(path)


def test_looks_at_most_once_an_interval(path: Path) -> None:
    """Before the interval is over the old value holds, then the new one."""
    watched = Watched(path)
    path.write_text("three")
    watched.clock.advance(INTERVAL * 0.99)
    assert watched.value() == "one"
    watched.clock.advance(INTERVAL * 0.01)
    assert watched.value() == "three"
    assert watched.reloaded == [path]


def test_same_object_while_unchanged(path: Path) -> None:
    """Caches may compare by identity."""
    watched = Watched(path)
    assert watched.later() is watched.later()
    assert watched.reloaded == []


def test_edit_of_the_same_length_and_time(path: Path) -> None:
    """An edit is seen even if size and modification time are put back."""
    watched = Watched(path)
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert watched.later() == "two"


def test_broken_file_keeps_the_old_value_and_reports_once(path: Path) -> None:
    """One report for each change that cannot be taken; a good file is taken again."""
    watched = Watched(path)
    path.write_text("broken")
    assert [watched.later(), watched.later()] == ["one", "one"]
    assert watched.broken == [f"{path}: is broken; mend it"]
    path.write_text("three")
    path.write_text("broken")
    os.utime(path, ns=(1, 1))
    assert watched.later() == "one"
    assert len(watched.broken) == 2
    path.write_text("good again")
    assert watched.later() == "good again"


def test_missing_file_keeps_the_old_value_and_reports_once(path: Path) -> None:
    """A deleted file neither opens nor closes the registry."""
    watched = Watched(path)
    path.unlink()
    assert [watched.later(), watched.later()] == ["one", "one"]
    assert len(watched.broken) == 1
    path.write_text("back")
    assert watched.later() == "back"


def test_kubernetes_swaps_a_symlink(tmp_path: Path) -> None:
    """A mounted Secret changes by swinging ..data over to another directory."""
    for version, text in (("..v1", "one"), ("..v2", "two")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "htpasswd").write_text(text)
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "htpasswd").symlink_to("..data/htpasswd")
    watched = Watched(tmp_path / "htpasswd")
    (tmp_path / "..tmp").symlink_to("..v2")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    assert watched.later() == "two"
    assert watched.broken == []
