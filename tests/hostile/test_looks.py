"""Commands that only look: `check`, `inspect` and `pack`, at hostile bundles and hostile nodes.

Each ends in bounded time, prints no control character, and fails in one line.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bundle.builders import docker_archive, document, layers, write
from tests.support.commands import environment, mayfly
from tests.support.packing import stand_in
from tests.support.process import Mayfly, alive, poll
from tests.support.wire import TIMEOUT

ONE = layers("one")[0]
EVIL = "\x1b]0;owned\x07\x1b[2J\r\u009bevil\u202e"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Mayfly]:
    """One whose image and two nodes are listed."""
    (tmp_path / "images").write_text("docker.io/library/a:1\n")
    (tmp_path / "nodes").write_text("node-a\nnode-b\n")
    (tmp_path / "root").mkdir()
    options = ["--auth", "auto", "--tls", "auto", "--until-pulled", str(tmp_path / "images")]
    options += ["--nodes", str(tmp_path / "nodes"), "--accept", "proven", "--allow-sparse"]
    running = Mayfly(tmp_path / "root", tmp_path / "state", *options, env=environment())
    yield running
    running.kill()


def _entry(files: dict[str, bytes]) -> dict[str, object]:
    entry: dict[str, object] = json.loads(files["manifest.json"])[0]
    return entry


def _hole(path: Path) -> int:
    """An archive with a hole of a tebibyte behind it."""
    write(path, docker_archive((["a:1"], [ONE])))
    os.truncate(path, 1 << 40)
    return 0


def _names(path: Path) -> int:
    """Control characters in the names of files and images."""
    files = docker_archive((["a:1"], [ONE]))
    files["manifest.json"] = document([_entry(files) | {"RepoTags": ["a:1", f"b{EVIL}:1", EVIL]}])
    write(path, files | {f"x{EVIL}\n": b"1"})
    return 0


def _config(path: Path) -> int:
    """Control characters in the config: platform and build steps."""
    files = docker_archive((["a:1"], [ONE]))
    name = str(_entry(files)["Config"])
    evil = {"os": EVIL, "architecture": f"{EVIL}arm", "variant": f"v{EVIL}7"}
    config = json.loads(files[name]) | evil | {"history": [{"created_by": f"RUN {EVIL}\n"}]}
    write(path, files | {name: document(config)})
    return 0


def _links(path: Path) -> int:
    """Links to files of the host, and a device, in the place of the bundle's own."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, kind, target in (
            ("manifest.json", tarfile.SYMTYPE, "/etc/shadow"),
            ("oci-layout", tarfile.SYMTYPE, "/proc/self/environ"),
            ("index.json", tarfile.LNKTYPE, "../../etc/passwd"),
            (f"repositories{EVIL}", tarfile.CHRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    path.write_bytes(made.getvalue())
    return 5


@pytest.mark.parametrize("attack", [_hole, _names, _config, _links], ids=lambda one: one.__name__)
def test_hostile_bundle(server: Mayfly, tmp_path: Path, attack: Callable[[Path], int]) -> None:
    """It is looked at as any other, or refused in one line."""
    bundle, packed = tmp_path / "b.tar", tmp_path / "packed"
    code = attack(bundle)
    runtime = stand_in(tmp_path / "runtime")
    for words in (
        ("inspect", "a:1", bundle),
        ("inspect", "a:1", bundle, "--files"),
        ("check", bundle, "--root", server.root, "--state-dir", server.state_dir),
        ("pack", bundle, "-o", packed, "--runtime", runtime),
    ):
        done = mayfly(*words, timeout=TIMEOUT)
        # `check` may find its host wanting.
        allowed = {0, 3} if words[0] == "check" and code == 0 else {code}
        assert done.returncode in allowed, done.stderr
        assert not CONTROL.search(done.stdout), done.stdout
        assert not CONTROL.search(done.stderr.replace("\r", "")), done.stderr
        if code:
            assert len(done.stderr.splitlines()) == 1
    if not code:
        # A hole stays one.
        assert packed.stat().st_blocks * 512 < 1024 * 1024


_SHELL_EVIL = r"\033]0;owned\007\033[2J\r\302\233evil\342\200\256"

NODES = {
    "lines without end": "exec yes mayfly-check",
    "a line without end": r"exec tr '\0' x </dev/zero",
    "messages without end": "exec yes 'mayfly: evil' >&2",
    "escapes in every fact": (
        "for fact in time architecture user runtime config_path total free sender reaches detail "
        f'has complete; do printf "mayfly-check $fact {_SHELL_EVIL}\\n"; done'
    ),
    "escapes in messages": f"printf '{_SHELL_EVIL}\\nmayfly: {_SHELL_EVIL}\\n' >&2; exit 255",
    "zeros": "head -c 900000 /dev/zero; head -c 900000 /dev/zero >&2; exit 255",
    "a child that stays": (
        "(trap '' HUP TERM; exec sleep 1000) & echo $! >>\"$HOME/children\"; exit 255"
    ),
}


@pytest.mark.parametrize("attack", NODES)
def test_hostile_node(server: Mayfly, tmp_path: Path, attack: str) -> None:
    """What a node or an ssh server sends is bounded, and escaped where people read it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(f"#!/bin/sh\n{NODES[attack]}\n")
    (tmp_path / "bin/ssh").chmod(0o755)
    path = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path)}
    words = ("check", "--via", "ssh", "--root", server.root, "--state-dir", server.state_dir)
    for more in ((), ("--json",)):
        done = mayfly(*words, *more, env=path, timeout=TIMEOUT)
        assert done.returncode == 3, done.stderr[-2000:]
        assert not CONTROL.search(done.stdout), done.stdout[:2000]
        assert not CONTROL.search(done.stderr), done.stderr[:2000]
        assert len(done.stdout) + len(done.stderr) < 16 * 1024
        assert "node-a" in done.stdout and "node-b" in done.stdout
    if attack == "a child that stays":
        children = (tmp_path / "children").read_text().split()
        assert len(children) >= 4, "two nodes, twice"
        for child in children:
            poll(lambda number=int(child): not alive(number))
