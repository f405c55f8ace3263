"""`ls`, `inspect`, `du`, `verify` and `diff` on a store, a bundle of it, and a registry of that."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mayfly.storage.directory.store import DistributionStore
from tests.support.commands import mayfly_here
from tests.support.images import image_body, push, put
from tests.support.process import Mayfly

APP = "team/app"
CONFIG = json.dumps({"os": "linux", "architecture": "amd64"}).encode()


def _layer(**made: bytes) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, content in made.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(output.getvalue(), mtime=0)


BASE = _layer(etc__passwd=b"root", usr__bin__tool=b"1" * 3000, tmp__left=b"x" * 500)
NEXT = _layer(**{"usr__bin__tool": b"2" * 4000, "tmp__.wh.left": b"", "etc__new": b"n"})


def _store(root: Path, *layers: bytes, tag: str = "1") -> Path:
    with closing(DistributionStore(root)) as store:
        for data in (CONFIG, *layers):
            push(store, APP, data)
        put(store, APP, image_body(CONFIG, layers), tag)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with one image."""
    return _store(tmp_path / "root", BASE, NEXT)


@pytest.fixture
def bundle(root: Path, tmp_path: Path) -> Path:
    """A bundle of that store."""
    path = tmp_path / "bundle.tar"
    done = mayfly_here("export", "--all", "--root", root, "-o", path)
    assert done.returncode == 0, done.stderr
    return path


def _json(*words: str | Path, code: int = 0) -> Any:
    done = mayfly_here(*words, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_all_three_look_the_same(
    root: Path, bundle: Path, tmp_path: Path, start_mayfly: Callable[..., Mayfly]
) -> None:
    """The same images, layers, file trees and sizes, and nothing wrong."""
    served = start_mayfly(str(bundle), root=tmp_path / "other", state_dir=tmp_path / "state")
    places: list[tuple[str | Path, ...]] = [("--root", root), (bundle,), (served.url,)]
    name = f"{APP}:1"
    for words in (["ls"], ["inspect", name], ["inspect", name, "--files"], ["du"]):
        first, *others = (_json(*words, *place) for place in places)
        if words == ["ls"]:  # of a bundle it says what was left out, too
            assert [others[0].pop(key) for key in ("notices", "left_out")] == [[], []]
        assert others == [first, first], words
    for place in places:
        found = _json("verify", *place)
        assert found["findings"] == []
        assert found["blobs"] >= 3


def test_verify_names_what_is_wrong(bundle: Path) -> None:
    """A changed byte of a bundle is found, with the image that needs it; exit code 4."""
    data = bytearray(bundle.read_bytes())
    data[data.index(NEXT) + len(NEXT) // 2] ^= 1
    bundle.write_bytes(data)
    (finding,) = _json("verify", bundle, code=4)["findings"]
    assert (finding["code"], finding["image"]) == ("corrupt", f"{APP}:1")
    done = mayfly_here("verify", bundle, "--repair", bundle)
    assert done.returncode == 2


def test_files_of_an_image(bundle: Path) -> None:
    """Each path with its layer, deleted ones absent, and what hidden files waste."""
    (platform,) = _json("inspect", f"{APP}:1", bundle, "--files")["platforms"]
    assert {one["path"]: one["layer"] for one in platform["files"]} == {
        "etc": 1, "etc/new": 2, "etc/passwd": 1, "tmp": 1, "usr": 1, "usr/bin": 1,
        "usr/bin/tool": 2,
    }  # fmt: skip
    assert platform["wasted"] == 3500
    text = mayfly_here("inspect", f"{APP}:1", bundle, "--files").stdout
    assert "/usr/bin/tool" in text
    assert "tmp/left" in text.partition("wasted by 2 files")[2]


def test_differences(root: Path, tmp_path: Path) -> None:
    """Images added, changed and removed; the files of the changed one; what B costs a node."""
    other = _store(tmp_path / "other", BASE)
    _store(other, NEXT, tag="2")
    _store(root, tag="0")
    found = _json("diff", root, other, "--files")
    rows = {one["name"]: one for one in found["images"]}
    assert {name: one["change"] for name, one in rows.items()} == {
        f"{APP}:0": "removed",
        f"{APP}:1": "changed",
        f"{APP}:2": "added",
    }
    changes = {(one["change"], one["path"]) for one in rows[f"{APP}:1"]["files"]}
    assert changes == {
        ("deleted", "etc/new"),
        ("changed", "usr/bin/tool"),
        ("added", "tmp/left"),
    }
    # Its layers are known: only manifests are new.
    assert found["fetch"] < 2000
    text = mayfly_here("diff", root, other, "--files", "--image", f"{APP}:1").stdout
    assert "~ linux/amd64 /usr/bin/tool" in text
    assert mayfly_here("diff", root, root).stdout.startswith("0 images differ")
    mistyped = mayfly_here("diff", root, other, "--image", f"{APP}:typo")
    assert mistyped.returncode
    assert f"no image {APP}:typo in A or B" in mistyped.stderr


def test_a_hostile_layer_is_one_line(tmp_path: Path) -> None:
    """It is named with its image, exit code 4; everything else of the image is shown."""
    root = _store(tmp_path / "root", BASE, b"\x1f\x8bnot a tar")
    done = mayfly_here("inspect", f"{APP}:1", "--root", root, "--files")
    assert done.returncode == 4
    assert "layer 2" in done.stderr
    assert done.stderr.count("\n") == 1
    assert mayfly_here("inspect", f"{APP}:1", "--root", root).returncode == 0


def test_what_cannot_be_asked() -> None:
    """A registry that is not there, and one beside a bundle, are errors of one line."""
    done = mayfly_here("ls", "http://127.0.0.1:1")
    assert done.returncode == 3
    assert "cannot connect" in done.stderr
    assert mayfly_here("ls", "http://127.0.0.1:1", "bundle.tar").returncode == 2


def test_a_registry_without_the_scheme_of_its_url() -> None:
    """It is no file, and the message has its URL; a file may have such a name."""
    for words in (["ls"], ["du"], ["inventory"]):
        done = mayfly_here(*words, "registry.example:5000")
        assert done.returncode == 2, done.stderr
        assert "as in https://registry.example:5000" in done.stderr
    done = mayfly_here("ls", "up:5000.tar")
    assert (done.returncode, done.stderr) == (5, "mayfly: up:5000.tar: No such file or directory\n")
