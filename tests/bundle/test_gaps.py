"""What is said of a bundle that lacks blobs, cannot be read, or is none at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.open import open_bundles
from tests.bundle.builders import Layout, blob_name
from tests.support.commands import run_mayfly
from tests.support.images import digest_of
from tests.support.process import REPO, Mayfly

IMAGE = "quay.io/team/app:1"
BASE = b"the base layer"
StartMayfly = Callable[..., Mayfly]


def _delta(path: Path) -> Path:
    """A bundle whose image builds on a layer that the bundle leaves out."""
    layout = Layout()
    layout.name(layout.image(BASE), IMAGE)
    del layout.files[blob_name(digest_of(BASE))]
    return layout.write_tar(path)


def _whole(path: Path) -> Path:
    layout = Layout()
    layout.name(layout.image(BASE), IMAGE)
    return layout.write_tar(path)


def test_gap_is_told_where_nothing_fills_it(tmp_path: Path) -> None:
    """A line names the bundle, the image and the first blob; a blob that is held needs no line."""
    bundles = open_bundles([_delta(tmp_path / "delta.tar")])
    assert bundles.notices == []
    (gap,) = bundles.lacking(lambda repository, digest: False)
    assert f"delta.tar: image {IMAGE} cannot be pulled: 1 of its blobs is" in str(gap)
    assert (gap.image, str(gap.needs), gap.count) == (IMAGE, digest_of(BASE), 1)
    asked = []

    def has(*key: object) -> bool:
        asked.append(key)
        return True

    assert bundles.lacking(has) == []
    assert asked == [("team/app", digests.of(BASE))]
    bundles.close()


def test_server_warns_of_gaps_only(start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """A delta served beside its base, or over a store that has it, gives no warning."""
    delta, whole = _delta(tmp_path / "delta.tar"), _whole(tmp_path / "whole.tar")
    alone = start_mayfly(str(delta), root=tmp_path / "r1", state_dir=tmp_path / "s1")
    assert "WARNING" in alone.output()
    assert "cannot be pulled" in alone.output()
    beside = start_mayfly(str(delta), str(whole), root=tmp_path / "r2", state_dir=tmp_path / "s2")
    assert "WARNING" not in beside.output()
    run_mayfly("import", whole, "--root", tmp_path / "r3")
    over = start_mayfly(str(delta), root=tmp_path / "r3", state_dir=tmp_path / "s3")
    assert "WARNING" not in over.output()


@pytest.mark.parametrize("content", [b"no tar", b"x" * 512, b"PK\3\4" + b"\0" * 2000])
def test_not_a_tar(tmp_path: Path, content: bytes) -> None:
    """Whatever its length, a file of another kind is called that."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(BundleInvalid, match=r"notes\.txt: not a tar archive"):
        open_bundles([path])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root (run: sudo make test)")
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_bundle_that_may_not_be_read(tmp_path: Path, kind: str) -> None:
    """The message names the user of this process, and the command that mends it."""
    path = _whole(tmp_path / "a bundle.tar")
    if kind == "directory":
        path = tmp_path / "dir"
        path.mkdir()
    path.chmod(0o600)
    for parent in [tmp_path, *tmp_path.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o055)
    # What the user may not read of the interpreter is imported before.
    script = """
import ctypes, os, shlex, sys
from pathlib import Path
from mayfly.storage.bundle.open import open_bundles
from mayfly.storage.errors import StorageError
os.setuid(65532)
try:
    open_bundles([Path(sys.argv[1])])
except StorageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=60,
    )
    assert "Mayfly, which runs as uid 65532, may not read it; run: chmod -R a+rX" in done.stdout
