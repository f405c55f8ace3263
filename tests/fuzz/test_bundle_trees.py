"""Bundles of every kind, mutated on the disk: a clear error or the right bytes, nothing outside.

What is opened meanwhile is watched by an audit hook, so that not even a file that is looked at and
then dropped can lie outside of the bundle.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.storage import digest as digests
from mayfly.storage.bundle.open import open_bundles
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import StorageError
from mayfly.storage.interface import Extent
from mayfly.storage.reading import repositories
from tests.bundle import makers
from tests.bundle.builders import Layout, docker_archive, layers, proof_of, tar, write
from tests.fuzz.budget import EXAMPLES
from tests.support.images import push, put_image, subject_of

SECRET = b"nobody outside may be read"
GIB = 2**30
MADE = makers.content()
BLOBS = [
    *(digests.of(data) for data in (*layers("one", "two"), b"{}", b"other")),
    *map(digests.parse, MADE.all_blobs()),
]
MAKERS = ("hauler-store", "zarf-directory", "sealos", "talos", "kubekey", "imgpkg")

_watching: list[tuple[str, list[str]]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event != "open":
        return
    place, opened = _watching[-1]
    path = arguments[0]
    if isinstance(path, (str, bytes)):
        text = os.fsdecode(path)
        # Through a link of a descriptor: what that is.
        real = os.path.realpath(text)
        if real.startswith(place):
            opened.append(real)


sys.addaudithook(_hook)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One good bundle of each kind."""
    top = tmp_path_factory.mktemp("originals")
    layout = Layout()
    one, two = layers("one", "two")
    layout.name(layout.index(layout.image(one), layout.image(two)), "quay.io/team/app:1")
    store = DistributionStore(top / "registry")
    image, _ = put_image(store, "team/app", "v1")
    put_image(store, "team/app", subject=subject_of(image))
    push(store, "other", b"other")
    store.close()
    others = {}
    for name in MAKERS:
        (top / name).mkdir()
        maker = makers.MAKERS[name]
        (others[name],) = makers.write(maker, maker.make(makers.content()), top / name)
    parts = {k: v for part in makers.oc_mirror(makers.content()) for k, v in part.items()}
    return {
        **others,
        "oc-mirror": write(top / "oc-mirror.tar", parts),
        "seekable": _seekable(top / "seekable.tar.zst"),
        "layout": layout.write_directory(top / "layout"),
        "tar": layout.write_tar(top / "layout.tar"),
        "docker": write(top / "docker.tar", docker_archive((["a:1"], [one, two]))),
        "registry": top / "registry",
    }


def _seekable(path: Path) -> Path:
    """A tar in a seekable zstd file."""
    path.write_bytes(makers.seekable(tar(makers.hauler(makers.content()))))
    return path


Mutation = Callable[[Path, Path, random.Random], None]


def _instead(make: Callable[[Path, Path], None]) -> Mutation:
    def mutate(path: Path, outside: Path, _chance: random.Random) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        make(path, outside)

    return mutate


def _socket(path: Path, _outside: Path) -> None:
    parent = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"/proc/self/fd/{parent}/{path.name}")
    finally:
        os.close(parent)


def _device(path: Path, _outside: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        os.mkfifo(path)


def _bytes(path: Path, _outside: Path, chance: random.Random) -> None:
    if path.is_file() and path.stat().st_size:
        # In place: an earlier mutation may have made it 64 GiB long.
        with path.open("r+b", buffering=0) as file:
            for _ in range(3):
                place = chance.randrange(path.stat().st_size)
                (byte,) = os.pread(file.fileno(), 1, place)
                os.pwrite(file.fileno(), bytes([byte ^ chance.randrange(1, 256)]), place)


def _cut(path: Path, _outside: Path, chance: random.Random) -> None:
    if path.is_file():
        os.truncate(path, chance.randrange(path.stat().st_size + 1))


def _sparse(path: Path, _outside: Path, chance: random.Random) -> None:
    if path.is_file():
        os.truncate(path, chance.choice((2, 64)) * GIB)


def _swap(path: Path, _outside: Path, chance: random.Random) -> None:
    others = [other for other in path.parent.iterdir() if other != path]
    if others:
        other = chance.choice(others)
        path.rename(path.with_name("swapped"))
        other.rename(path)
        path.with_name("swapped").rename(other)


MUTATIONS: dict[str, Mutation] = {
    "link outside": _instead(lambda path, outside: path.symlink_to(outside / "data")),
    "link to a directory": _instead(lambda path, outside: path.symlink_to(outside)),
    "relative link": _instead(
        lambda path, outside: path.symlink_to(os.path.relpath(outside / "data", path.parent))
    ),
    "link in circles": _instead(lambda path, outside: path.symlink_to(".")),
    "pipe": _instead(lambda path, outside: os.mkfifo(path)),
    "socket": _instead(_socket),
    "device": _instead(_device),
    "directory": _instead(lambda path, outside: path.mkdir()),
    "gone": _instead(lambda path, outside: None),
    "bytes": _bytes,
    "cut": _cut,
    "sparse": _sparse,
    "swapped": _swap,
}


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors that a client or an operator is told in one line are as good as the content."""
    try:
        yield
    except StorageError as error:
        assert "\n" not in error.message
        assert SECRET.decode() not in error.message


def _read_all(bundle: Path, state: Path) -> None:
    """Ask for everything that a bundle may have, and prove it."""
    with _told(), contextlib.closing(open_bundles([bundle], state)) as opened:
        layer = opened.layer
        for repository in repositories(layer):
            found = set(layer.revisions(repository))
            with _told():
                for tag in layer.tags(repository):
                    with _told():
                        found.add(layer.tag(repository, tag))
            for digest in found:
                with _told():
                    _prove(digest, layer.manifest(repository, digest))
                    list(layer.referrers(repository, digest))
            for digest in BLOBS:
                with _told():
                    _prove(digest, layer.blob(repository, digest))


def _prove(digest: Digest, extent: Extent) -> None:
    if extent.size > GIB:
        return  # it would be read for long, and is refused in the end
    proof_of(extent).establish()
    with extent.open() as opened:
        data = opened.read(0, extent.size)
    assert digests.of(data, digest.algorithm) == digest
    assert data != SECRET


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    kind=st.sampled_from(["layout", "tar", "docker", "registry", "oc-mirror", "seekable", *MAKERS]),
    mutations=st.lists(st.sampled_from(sorted(MUTATIONS)), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
)
def test_mutated_bundle(
    originals: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    mutations: list[str],
    seed: int,
) -> None:
    """Nothing outside is opened, nothing but the right bytes is proven, nobody waits."""
    chance = random.Random(seed)
    place = tmp_path_factory.mktemp("mutated").resolve()
    outside = place / "outside"
    outside.mkdir()
    (outside / "data").write_bytes(SECRET)
    (outside / "link").write_text(f"sha256:{'0' * 64}")
    bundle = place / "bundle"
    _copy(originals[kind], bundle)
    for name in mutations:
        paths = list(bundle.rglob("*")) if bundle.is_dir() else [bundle]
        # A tar is mutated inside; that it is a link itself is the operator's own doing.
        if paths and (bundle.is_dir() or name in ("bytes", "cut", "sparse")):
            MUTATIONS[name](chance.choice(sorted(paths)), outside, chance)
    opened: list[str] = []
    _watching.append((str(outside), opened))
    try:
        _read_all(bundle, place / "state")
    finally:
        _watching.pop()
        shutil.rmtree(place)
    assert opened == []


def test_the_hook_sees() -> None:
    """Were something outside opened, it would be known."""
    here = Path(__file__).resolve()
    opened: list[str] = []
    _watching.append((str(here.parent), opened))
    here.read_bytes()
    descriptor = os.open(here, os.O_RDONLY)
    Path(f"/proc/self/fd/{descriptor}").read_bytes()
    os.close(descriptor)
    _watching.pop()
    assert opened == [str(here)] * 3
