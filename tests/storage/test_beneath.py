"""`beneath`: a stranger's directory is read below its own descriptor, and nothing but files of it.

Each case is run both ways names can be resolved: by openat2, and by walking where that call is
missing or forbidden.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.storage import beneath
from mayfly.storage.beneath import Beneath, Lookup, best_lookup, by_openat2, by_walking
from mayfly.storage.errors import PathRefused
from tests.support.process import descriptors

SECRET = b"a secret of the host"

Make = Callable[[Path, Path], None]
"""Puts something at a path; it is given the secret's, too."""


def _pipe(path: Path, _secret: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, _secret: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        descriptor = os.open(path.parent, os.O_PATH)
        bound.bind(f"/proc/self/fd/{descriptor}/{path.name}")
        os.close(descriptor)


def _device(path: Path, _secret: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("making a device takes root")


ODD: dict[str, Make] = {
    "absolute link": lambda path, secret: path.symlink_to(secret),
    "relative link": lambda path, secret: path.symlink_to(os.path.relpath(secret, path.parent)),
    "link to /proc": lambda path, _: path.symlink_to("/proc/self/environ"),
    "link in circles": lambda path, _: path.symlink_to(path.name),
    "link to a neighbour": lambda path, _: path.symlink_to("good"),
    "pipe": _pipe,
    "socket": _socket,
    "device": _device,
}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/data").write_bytes(SECRET)
    return tmp_path / "secret/data"


@pytest.fixture(params=[by_openat2, by_walking])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Beneath]:
    """A directory with a file in it, read in one of the two ways."""
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "root/a/b/good").write_bytes(b"good")
    lookup: Lookup = request.param
    try:
        opened = Beneath(tmp_path / "root", lookup)
        opened.status(opened.root)
    except OSError as error:
        assert error.errno in (errno.ENOSYS, errno.EPERM)
        pytest.skip("this kernel or sandbox has no openat2")
    yield opened
    opened.close()


def read(tree: Beneath, path: Path) -> bytes:
    """All bytes of a small file."""
    with os.fdopen(tree.open(path), "rb") as file:
        return file.read()


def test_files_and_directories(tree: Beneath) -> None:
    """What is there is read; what is not there is absent, also below a file."""
    good = tree.root / "a/b/good"
    assert read(tree, good) == b"good"
    found = tree.status(good)
    assert found is not None
    assert found.st_size == 4
    assert tree.is_file(good)
    assert tree.is_directory(tree.root / "a/b")
    assert not tree.is_file(tree.root / "a/b")
    assert tree.entries(tree.root / "a/b") == ["good"]
    assert tree.directories(tree.root / "a") == ["b"]
    for absent in ("a/none", "none/none", "a/b/good/below", "a/nul\0", "a/../a/b/good"):
        assert tree.status(tree.root / absent) is None
        assert not tree.is_file(tree.root / absent)
        assert tree.entries(tree.root / absent) == []
        with pytest.raises(FileNotFoundError):
            tree.open(tree.root / absent)
    with pytest.raises(IsADirectoryError):
        tree.open(tree.root / "a")


@pytest.mark.parametrize("kind", ODD)
def test_odd_file_is_refused_unopened(tree: Beneath, secret: Path, kind: str) -> None:
    """Instead of a file: refused and named, never opened, so nothing waits for a pipe's writer."""
    path = tree.root / "a/b/odd"
    ODD[kind](path, secret)
    with pytest.raises(PathRefused, match=r"file a/b/odd is a (symbolic link|named pipe|socket|d)"):
        tree.status(path)
    with pytest.raises(PathRefused):
        tree.open(path)
    assert not tree.is_file(path)
    assert not tree.is_directory(path)
    assert tree.entries(path) == []


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("target", ["../../secret", "/", ".", "b"])
def test_link_on_the_way_is_refused(tree: Beneath, target: str) -> None:
    """Instead of a directory, wherever it leads, also back into the tree."""
    (tree.root / "a/link").symlink_to(target)
    for below in ("data", "good", "secret/data", "b/good"):
        path = tree.root / "a/link" / below
        with pytest.raises(PathRefused, match=f"a symbolic link leads to file a/link/{below}"):
            tree.status(path)
        with pytest.raises(PathRefused):
            tree.open(path)
        assert not tree.is_file(path)
    assert tree.entries(tree.root / "a/link") == []
    assert tree.directories(tree.root / "a") == ["b"]


def test_replaced_by_a_link_after_the_look(tree: Beneath, secret: Path) -> None:
    """What was looked at is what is opened, also if the name is swapped in between."""
    path = tree.root / "a/b/good"
    real = tree._lookup

    def swap(directory: int, name: bytes) -> int:
        found = real(directory, name)
        path.unlink()
        path.symlink_to(secret)
        return found

    tree._lookup = swap
    assert read(tree, path) == b"good"


def test_the_root_itself_may_be_a_link(tmp_path: Path, tree: Beneath) -> None:
    """Its operator named it; once opened it is the directory, whatever its name becomes."""
    (tmp_path / "named").symlink_to(tree.root)
    opened = Beneath(tmp_path / "named", tree._lookup)
    (tmp_path / "named").unlink()
    assert read(opened, tmp_path / "named/a/b/good") == b"good"
    opened.close()


def test_too_many_entries(tree: Beneath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing has a bound."""
    monkeypatch.setattr(beneath, "MOST_ENTRIES", 3)
    for number in range(3):
        (tree.root / f"a/b/{number}").touch()
    with pytest.raises(PathRefused, match="a/b has more than 3 entries"):
        tree.entries(tree.root / "a/b")


def test_descriptors_are_given_back(tree: Beneath, secret: Path) -> None:
    """Also those of refused names."""
    (tree.root / "link").symlink_to(secret)
    (tree.root / "a/up").symlink_to("..")
    before = descriptors()
    for _ in range(3):
        test_files_and_directories(tree)
        for name in ("link", "a/up/link", "none/x", "a/b/good/x"):
            assert not tree.is_file(tree.root / name)
    assert descriptors() == before


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_without_openat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """An older kernel, or a sandbox that forbids what it does not know: names are walked."""

    def refuse(directory: int, name: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(beneath, "by_openat2", refuse)
    descriptor = os.open(tmp_path, os.O_PATH)
    assert best_lookup(descriptor) is by_walking
    os.close(descriptor)
