"""The node script over ssh, with real runtimes: from apply to revert, to the last byte."""

from __future__ import annotations

import json
import os
import signal
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

from tests.clients.layout import Layout
from tests.clients.node_machines import GATEWAY, Machine, bridge, events
from tests.kubelet.namespace import own_network
from tests.support.commands import mayfly
from tests.support.process import Mayfly, need_root

PORT = 5779
IMAGES = ("docker.io/library/one:1", "quay.io/team/two:2")
MACHINES: dict[str, dict[str, str | bool | None]] = {
    "containerd-debian": {"containerd": ""},
    "containerd-2.1.9": {"containerd": "2.1.9"},
    "containerd-2.4.2": {"containerd": "2.4.2"},
    "containerd-no-config-path": {"containerd": "", "config_path": False},
    "docker-debian": {"docker": ""},
    "docker-29": {"containerd": None, "docker": "2.0.0-beta.24"},
    "podman": {},
    "crio": {"crio": True},
    "containerd-of-k3s": {"containerd": "2.4.2", "k3s": True, "config_path": False},
}


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """A network of the module's own."""
    need_root()
    with own_network():
        bridge()
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small images with the names of two upstreams."""
    layout = Layout(tmp_path_factory.mktemp("bundle") / "layout")
    digests = {name: layout.add(name, _layer(b"base"), _layer(name.encode())) for name in IMAGES}
    (layout.directory.parent / "digests").write_text(json.dumps(digests))
    return layout.directory


def _layer(content: bytes) -> bytes:
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        entry = tarfile.TarInfo(f"file-{content[:4].hex()}")
        entry.size = len(content)
        archive.addfile(entry, BytesIO(content))
    return made.getvalue()


@contextmanager
def registry(directory: Path, bundle: Path, nodes: int = 1) -> Iterator[Mayfly]:
    """Mayfly with TLS and users, waiting for proofs of the images."""
    directory.mkdir()
    (directory / "images").write_text("".join(f"{name}\n" for name in IMAGES))
    options = ["--until-pulled", str(directory / "images")]
    options += ["--nodes", str(nodes), "--accept", "proven", "--idle-timeout", "30m"]
    options += ["--until", "all"]
    running = Mayfly(
        directory / "root", directory / "state", str(bundle), *options, listen=f"{GATEWAY}:{PORT}"
    )
    try:
        yield running
    finally:
        if running.running:
            running.kill()


def _lose_parts(machine: Machine, script: str, bundle: Path) -> None:
    """Without a config, and without a snapshot, an image is missing although it has a record."""
    ctr = "ctr -n k8s.io"
    digest = json.loads((bundle.parent / "digests").read_text())[IMAGES[0]]
    config = machine.shell(f"{ctr} content get {digest}")
    config = json.loads(config)["config"]["digest"]
    removals = (
        f"{ctr} content rm {config}",
        f"{ctr} snapshots ls | awk 'NR > 1 {{ print $1 }}' | tac | xargs -n 1 {ctr} snapshots rm",
    )
    for remove in removals:
        machine.shell(f"{remove} || true")
        done = machine.ssh("sh -s -- verify", script)
        assert done.returncode == 3, done.stdout
        assert f"missing  {IMAGES[0]}" in done.stdout
        assert f"{IMAGES[0].partition(':')[0]}:" in machine.shell(f"{ctr} images ls -q")
        for image in IMAGES:
            machine.shell(f"{ctr} images rm {image}")
        assert machine.ssh("sh -s -- pull", script).returncode == 0


@pytest.mark.parametrize("kind", MACHINES)
def test_from_apply_to_revert(network: None, bundle: Path, tmp_path: Path, kind: str) -> None:
    """Trust, pull, pin, prove over ssh; then unpin and revert: as it was."""
    machine = Machine(1, tmp_path / "machine", **MACHINES[kind])  # type: ignore[arg-type]
    try:
        with registry(tmp_path / "registry", bundle) as server:
            state = ("--state-dir", server.state_dir)
            made = mayfly("node", "script", "--node", machine.name, *state)
            assert made.returncode == 0, made.stderr
            script = made.stdout
            before = machine.tree()
            done = machine.ssh("sh", script)
            assert done.returncode == 0, done.stdout + done.stderr + events(machine)
            assert "2 of 2 images are present; proof: sent" in done.stdout
            status = json.loads(mayfly("status", *state, "--json").stdout)
            matrix = status["coverage"]["matrix"]
            assert {row[machine.name] for row in matrix.values()} == {"proven"}, matrix
            assert status["coverage"]["complete"]
            # Debian's containerd 1.6.20 takes the label of a pin and ignores it.
            if machine.crio is not None:
                assert "note: CRI-O reads" in done.stderr
                # What `systemctl reload crio` does; it takes effect a little later.
                os.kill(machine.crio.pid, signal.SIGHUP)
                time.sleep(2)
                told = machine.ssh("sh -s -- verify", script).stdout
                assert told.count("pinned,   present") == 2, told
            pinned = "containerd" in kind and MACHINES[kind]["containerd"] != ""
            assert done.stdout.count("unpinned, present") == (0 if pinned else 2)
            if "containerd" in kind:
                _lose_parts(machine, script, bundle)
            again = machine.ssh("sh", script)
            assert again.returncode == 0, again.stderr
            assert "wrote" not in again.stdout
            done = machine.ssh("sh -s -- unpin revert", script)
            assert done.returncode == 0, done.stderr
            assert machine.tree() == before
    finally:
        machine.stop()
