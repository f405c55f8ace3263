"""The node script over ssh, with real runtimes: from apply to revert, to the last byte."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

from tests.clients.layout import Layout
from tests.clients.node_machines import GATEWAY, Machine, events
from tests.nodes.test_script import CHANGING
from tests.support.commands import mayfly
from tests.support.process import Mayfly, poll

KILLER = """#!/bin/sh
# Run the program of this name; kill all of the session at call number $KILL_AT, before it, or after
# it if that is negative.
PATH=${PATH#*:}
echo >>"$CALLS"
calls=0
while read -r _; do calls=$((calls + 1)); done <"$CALLS"
end() {
    own=$(awk '{ sub(/^.*[)] /, ""); print $4 }' /proc/$$/stat)
    kill -9 $(cat /proc/[0-9]*/stat 2>/dev/null | awk -v own="$own" -v self=$$ '
        { pid = $1; sub(/^.*[)] /, ""); if ($4 == own && pid != self) print pid }')
    kill -9 $$
}
if [ "$KILL_AT" -gt 0 ] && [ "$calls" -ge "$KILL_AT" ]; then end; fi
"${0##*/}" "$@"
code=$?
if [ "$KILL_AT" -lt 0 ] && [ "$calls" -ge $((-KILL_AT)) ]; then end; fi
exit $code
"""
KILLS = 30 if "MAYFLY_SOAK" in os.environ else 4
"""Times that each of the two ways is killed, at steps spread over all of it."""

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


def _verified(machine: Machine, script: str) -> str:
    return machine.ssh("sh -s -- verify", script).stdout


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
                poll(lambda: _verified(machine, script).count("pinned,   present") == 2)
            pinned = "containerd" in kind and MACHINES[kind]["containerd"] != ""
            # The program crio may be there without running.
            can_pin = "containerd" in kind or "CRI-O" in done.stderr
            assert done.stdout.count("unpinned, present") == (2 if can_pin and not pinned else 0)
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


def _killers(machine: Machine) -> Path:
    """A directory of the programs that change a machine, each of which kills the script."""
    made = machine.directory / "killers"
    made.mkdir()
    for name in (*CHANGING, "ctr", "crictl", "docker", "podman"):
        if machine.shell(f"command -v {name} || true"):
            (made / name).write_text(KILLER)
            (made / name).chmod(0o755)
    return made


@pytest.mark.parametrize("kind", MACHINES)
def test_killed_at_many_steps(network: None, bundle: Path, tmp_path: Path, kind: str) -> None:
    """kill -9 of all of the script; another run ends what it began, and revert takes it back."""
    machine = Machine(1, tmp_path / "machine", **MACHINES[kind])  # type: ignore[arg-type]
    try:
        with registry(tmp_path / "registry", bundle) as server:
            made = mayfly("node", "script", "--node", machine.name, "--state-dir", server.state_dir)
            script = made.stdout
            before = machine.tree()
            there, back = "apply pull", "unpin --prune revert"
            calls = tmp_path / "calls"
            first = f"PATH={_killers(machine)}:$PATH CALLS={calls}"

            def run(verbs: str, at: int = 0) -> int:
                calls.unlink(missing_ok=True)
                return machine.ssh(f"{first} KILL_AT={at} sh -s -- {verbs}", script).returncode

            def finish(verbs: str, what: tuple[str, int]) -> None:
                done = machine.ssh(f"sh -s -- {verbs}", script)
                assert done.returncode == 0, (what, done.stdout, done.stderr)

            def take_back(what: tuple[str, int]) -> None:
                finish(back, what)
                assert machine.tree() == before, what
                if "containerd" in kind:
                    assert "pinned=" not in machine.shell("ctr -n k8s.io images ls"), what

            counts = {}
            for verbs in (there, back):
                assert run(verbs) == 0
                counts[verbs] = len(calls.read_text().splitlines())
                assert counts[verbs] > 10

            def kill(verbs: str, number: int) -> tuple[str, int]:
                at = 1 + number * (counts[verbs] - 1) // (KILLS - 1)
                assert run(verbs, at if number % 2 else -at) != 0, (verbs, at)
                return verbs, at

            for number in range(KILLS):
                what = kill(there, number)
                if number % 3 == 0:
                    finish("", what)
                else:
                    take_back(what)
                    finish(there, what)
                what = kill(back, number)
                if number % 3 != 0:
                    finish("", what)
                take_back(what)
    finally:
        machine.stop()
