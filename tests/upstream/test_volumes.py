"""Volumes and inventories: made, served unmerged, lost, damaged, cut, and carried back."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.beneath import Beneath
from mayfly.storage.bundle import volumes
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.files import Directory
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.transfer import inventory
from tests.support.commands import mayfly_here
from tests.support.images import image_body, push, put
from tests.support.process import Mayfly

LIMIT = 400 * 1024
LAYERS = [os.urandom(1) * 150_000 + bytes([n]) for n in range(8)]
APP = "team/app"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with four images of two layers each."""
    with closing(DistributionStore(tmp_path / "source")) as store:
        for number in range(4):
            layers = LAYERS[2 * number : 2 * number + 2]
            for data in (b"{}", *layers):
                push(store, APP, data)
            put(store, APP, image_body(b"{}", layers), str(number))
    return tmp_path / "source"


def _create(root: Path, output: Path, *words: str | Path) -> list[Path]:
    names = [f"localhost/{APP}:{number}" for number in range(4)]
    done = mayfly_here("bundle", "create", *names, "--from", root, "-o", output, "--json", *words)
    assert done.returncode == 0, done.stderr
    return [Path(name) for name in json.loads(done.stdout.splitlines()[-1])["files"]]


def _split(root: Path, directory: Path) -> list[Path]:
    return _create(root, directory / "up.tar", "--volume-size", f"{LIMIT >> 10}KiB")


def _layers(path: Path) -> set[str]:
    wanted = {digests.of(data).hex for data in LAYERS}
    with tarfile.open(path) as archive:
        return wanted & {name.rpartition("/")[2] for name in archive.getnames()}


def test_each_volume_is_small_and_a_layout(root: Path, tmp_path: Path) -> None:
    """None is over its size; each has all names and a share of the blobs; twice the same bytes."""
    paths = _split(root, tmp_path)
    assert [path.name for path in paths] == [f"up.{n:03}.tar" for n in range(1, len(paths) + 1)]
    assert len(paths) == 4
    assert all(path.stat().st_size <= LIMIT for path in paths)
    shares = [_layers(path) for path in paths]
    assert sum(map(len, shares)) == len(set().union(*shares)) == len(LAYERS)
    for path in paths:
        listed = json.loads(mayfly_here("ls", path, "--json").stdout)["images"]
        assert [one["name"] for one in listed] == [f"{APP}:{n}" for n in range(4)]
    before = [path.read_bytes() for path in paths]
    stamps = [path.stat().st_mtime_ns for path in paths]
    assert _split(root, tmp_path) == paths
    assert [path.stat().st_mtime_ns for path in paths] == stamps, "what is whole is kept"
    shutil.rmtree(tmp_path / "again", ignore_errors=True)
    (tmp_path / "again").mkdir()
    assert [path.read_bytes() for path in _split(root, tmp_path / "again")] == before


def test_a_damaged_volume_is_written_anew(root: Path, tmp_path: Path) -> None:
    """The same command mends one whose bytes changed, and leaves the others."""
    paths = _split(root, tmp_path)
    before = [path.read_bytes() for path in paths]
    damaged = bytearray(before[1])
    damaged[-50_000] ^= 1
    paths[1].write_bytes(damaged)
    assert _split(root, tmp_path) == paths
    assert [path.read_bytes() for path in paths] == before


def test_too_small_volumes_are_refused(root: Path, tmp_path: Path) -> None:
    """The message says how large they must be, and nothing is written."""
    output = tmp_path / "up.tar"
    words = ("--from", root, "-o", output, "--volume-size", "100KiB")
    done = mayfly_here("bundle", "create", f"localhost/{APP}:1", *words)
    assert done.returncode == 2
    needed = int(done.stderr.partition("need at least ")[2].split()[0])
    assert list(tmp_path.glob("up*")) == []
    size = f"{-(-needed // 1024) + 10}KiB"
    words = ("--from", root, "-o", output, "--volume-size", size)
    assert mayfly_here("bundle", "create", f"localhost/{APP}:1", *words).returncode == 0


def test_served_unmerged_and_one_lost(
    root: Path, tmp_path: Path, start_mayfly: Callable[..., Mayfly]
) -> None:
    """Together every blob is served; without one, it is named with its images."""
    paths = _split(root, tmp_path)
    served = start_mayfly(*map(str, paths), root=tmp_path / "r1", state_dir=tmp_path / "s1")
    assert "WARNING" not in served.output()
    done = mayfly_here(
        "export", "--all", "-o", tmp_path / "x.tar", "--root", root, "--have", served.url
    )
    assert done.returncode == 0, done.stderr
    assert _layers(tmp_path / "x.tar") == set()
    lost = paths.pop(1)
    # Blobs are in the order of the list: the second volume has those of the second image.
    beside = start_mayfly(*map(str, paths), root=tmp_path / "r2", state_dir=tmp_path / "s2")
    said = beside.output()
    assert f"{lost.name} (volume 2 of 4) is not among the bundles" in said
    assert f"1 image cannot be pulled: localhost/{APP}:1" in said
    done = mayfly_here("import", *paths, "--root", tmp_path / "imported")
    assert done.returncode == 5
    assert f"{lost.name} (volume 2 of 4)" in done.stderr
    done = mayfly_here("import", *paths, lost, "--root", tmp_path / "imported")
    assert done.returncode == 0, done.stderr


def test_a_cut_volume_is_named_with_its_images(root: Path, tmp_path: Path) -> None:
    """The others tell what it takes along."""
    paths = _split(root, tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:100_000])
    done = mayfly_here("ls", *paths)
    assert done.returncode == 5
    assert "up.003.tar (volume 3 of 4) is not among the bundles: without it 1 image" in done.stderr
    assert f"localhost/{APP}:2" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"number": 0},
        {"number": 3},
        {"number": True},
        {"set": "sha256:" + "0" * 64},
        {"set": None},
    ],
)
def test_damaged_documents_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """A volume whose documents do not fit each other is no volume."""
    made = volumes.make(["a.001", "a.002"], [[digests.of(b"x")], []])[0]
    own = json.loads(made[volumes.VOLUME]) | change
    (tmp_path / volumes.SET).write_bytes(made[volumes.SET])
    (tmp_path / volumes.VOLUME).write_text(json.dumps(own))
    with closing(Directory(Beneath(tmp_path))) as files, pytest.raises(BundleInvalid):
        volumes.read(files)


def test_inventory_makes_a_difference(
    root: Path, tmp_path: Path, start_mayfly: Callable[..., Mayfly]
) -> None:
    """Store, bundle and registry give the same inventory; --have leaves out what is in it."""
    whole = tmp_path / "whole.tar"
    _create(root, whole)
    served = start_mayfly(str(whole), root=tmp_path / "r", state_dir=tmp_path / "s")
    texts = [
        mayfly_here("inventory", *words) for words in (("--root", root), (whole,), (served.url,))
    ]
    assert [one.returncode for one in texts] == [0, 0, 0], [one.stderr for one in texts]
    assert texts[0].stdout == texts[1].stdout == texts[2].stdout
    known = tmp_path / "known.txt"
    known.write_text(texts[0].stdout)
    with closing(DistributionStore(root)) as store:
        push(store, APP, b"new layer" * 1000)
        put(store, APP, image_body(b"{}", [LAYERS[0], b"new layer" * 1000]), "3")
    delta = tmp_path / "delta.tar"
    done = mayfly_here("export", "--all", "--root", root, "-o", delta, "--have", known)
    assert done.returncode == 0, done.stderr
    check = texts[0].stderr.split()[1].rstrip(":")
    assert check in done.stderr
    assert delta.stat().st_size < 40_000
    # In another repository the target has none of it.
    known.write_text(texts[0].stdout)
    elsewhere = inventory.read(known.read_bytes())
    assert elsewhere.has(APP, digests.of(LAYERS[0]))
    assert not elsewhere.has("team/other", digests.of(LAYERS[0]))


def test_a_changed_inventory_is_refused(root: Path, tmp_path: Path) -> None:
    """A line less, or a digit changed: exit code 2, nothing is written."""
    text = mayfly_here("inventory", "--root", root).stdout
    lines = text.splitlines()
    for changed in (lines[:-1], [*lines[:3], lines[3][:-1] + "x", *lines[4:]], lines[:1]):
        (tmp_path / "known.txt").write_text("\n".join(changed))
        words = ("--root", root, "-o", tmp_path / "x.tar", "--have", tmp_path / "known.txt")
        done = mayfly_here("export", "--all", *words)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.tar").exists()
