"""`mayfly pack` with the real one file: it starts, serves and updates from its own bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import urllib.request
from pathlib import Path

from mayfly.storage.bundle.packed import Place, write
from tests.bundle.builders import LAYER_TYPE, Layout, document, layers, tar, tar_info
from tests.support.images import digest_of
from tests.support.process import Process, text_of

LAYER = layers("one")[0]
LARGE = 40 * 2**30
NAME = "quay.example/team/app:1"


def run(file: Path, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it without any environment."""
    argv = [str(word) for word in (file, *words)]
    return subprocess.run(argv, env={}, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_packed_by_itself(one_file: Path, tmp_path: Path) -> None:
    """The one file packs itself; the result serves its bundle and runs its script, without PATH.

    `mayfly` in the script is the packed file.
    """
    layout = Layout()
    layout.name(layout.image(LAYER), NAME)
    layout.write_tar(tmp_path / "up.tar")
    (tmp_path / "script.sh").write_text(
        '#!/bin/sh -e\n{ mayfly wait --ready; mayfly ls; } >out\necho "at $MAYFLY_URL"\n'
    )
    places = ("--root", tmp_path / "root", "--state-dir", tmp_path / "state")
    options = ("--script", "script.sh", "--listen", "127.0.0.1:0", *places)
    done = run(one_file, "pack", "up.tar", "-o", "up-1.2.run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("up-1.2.run: 1 image, ")
    (tmp_path / "up.tar").unlink()
    packed = tmp_path / "up-1.2.run"
    done = run(packed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("at http://127.0.0.1:")
    assert "team/app:1" in (tmp_path / "out").read_text()
    assert "team/app:1" in run(packed, "ls", cwd=tmp_path).stdout
    assert "0 faults" in run(packed, "verify", cwd=tmp_path).stdout
    # By itself again: the bundle in it is not carried twice.
    done = run(packed, "pack", packed, "-o", "again.run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.run").read_bytes() == packed.read_bytes()
    size = packed.stat().st_size
    for short in (size - 1, one_file.stat().st_size + 1, 20_000_000):
        os.truncate(packed, short)
        for words in ((), ("--version",)):
            done = run(packed, *words, cwd=tmp_path)
            assert done.returncode == 5
            text = f"{packed} was cut short: it has {short} of {size} bytes; copy it again"
            assert done.stderr == f"mayfly: {text}\n"


def test_a_large_bundle_costs_nothing(one_file: Path, tmp_path: Path) -> None:
    """Of 40 GiB the server reads as little before it is ready as of none, and serves its end."""
    sizes = {}
    _pack_large(one_file, tmp_path / "large.run")
    shutil.copy(one_file, tmp_path / "none")
    for name in ("none", "large.run"):
        state = tmp_path / f"{name}-state"
        words = ("serve", "--root", tmp_path / "root", "--state-dir", state)
        argv = (tmp_path / name, *words, "--listen", "127.0.0.1:0")
        server = Process(argv, tmp_path / "log", env={})
        try:
            url = json.loads(server.wait_for(lambda at=state: text_of(at / "ready.json")))["url"]
            sizes[name] = _bytes_read(server.pid)
            if name == "large.run":
                blob = f"{url}/v2/team/app/blobs/{digest_of(b'')[:-1]}0"
                ask = urllib.request.Request(blob, headers={"Range": f"bytes={LARGE - 4}-"})
                with urllib.request.urlopen(ask, timeout=60) as answer:
                    assert answer.headers["Content-Range"].endswith(f"/{LARGE}")
        finally:
            server.kill()
    assert sizes["large.run"] - sizes["none"] < 2**20, sizes


def _bytes_read(pid: int) -> int:
    """Bytes that a process has read, from disks or not (proc_pid_io(5))."""
    (found,) = [
        line.split()[1] for line in Path(f"/proc/{pid}/io").read_text().splitlines()
        if line.startswith("rchar:")
    ]  # fmt: skip
    return int(found)


def _pack_large(one_file: Path, output: Path) -> None:
    """Put a bundle behind it whose layer is a hole of 40 GiB, under a digest that is wrong."""
    layout = Layout()
    descriptor = layout.image(LAYER)
    layer = {"mediaType": LAYER_TYPE, "digest": f"{digest_of(b'')[:-1]}0", "size": LARGE}
    manifest = json.loads(layout.files[f"blobs/{descriptor['digest'].replace(':', '/')}"])
    layout.name(layout.add(document(manifest | {"layers": [layer]}), descriptor["mediaType"]), NAME)
    bundle = output.with_suffix(".tar")
    member = tar_info(f"blobs/{str(layer['digest']).replace(':', '/')}")
    member.size = LARGE
    header = member.tobuf(tarfile.PAX_FORMAT)
    with bundle.open("xb") as file:
        file.write(header)
        file.seek(LARGE, os.SEEK_CUR)
        file.write(tar(layout.all_files()))
    with one_file.open("rb") as program, bundle.open("rb") as content, output.open("xb") as file:
        place = Place(0, bundle.stat().st_size)
        write(file, program.fileno(), content.fileno(), place, {"bundle": bundle.name})
    assert output.stat().st_blocks * 512 < 2**30
    bundle.unlink()
    output.chmod(0o755)
