"""`mayfly prefetch` over real ssh: what is wrong on a node is named with its remedy, the rest is
proven, and a second run does what the first could not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.clients.layout import Layout
from tests.clients.node_machines import GATEWAY, NETWORK, Machine, events
from tests.support.commands import command_line, environment, mayfly
from tests.support.process import Mayfly, need
from tests.support.trees import snapshot

PORT = 5781
IMAGES = ("docker.io/library/one:1", "quay.io/team/two:2")
LARGE = 8 * 1024 * 1024
FULL = "6m"
"""Size of a file system that one image of `LARGE` does not fit in."""

GOOD = ("machine-1", "machine-2")
NO_PATH, FULL_DISK, CLOCK, KILLED = (f"machine-{number}" for number in range(3, 7))
DOWN, STRANGER, REFUSED = "machine-7", "stranger", "refused"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Two images with the names of two upstreams, one of them large."""
    layout = Layout(tmp_path / "layout")
    layout.add(IMAGES[0], _layer("a", b"small"))
    layout.add(IMAGES[1], _layer("b", os.urandom(LARGE)))
    return layout.directory


def _layer(name: str, content: bytes) -> bytes:
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, BytesIO(content))
    return made.getvalue()


@pytest.fixture
def machines(network: None, tmp_path: Path) -> Iterator[dict[str, Machine]]:
    """Six machines; a seventh is named and down."""
    need("faketime")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    of_machine: dict[str, dict[str, Any]] = {
        GOOD[0]: {},
        GOOD[1]: {"containerd": ""},
        NO_PATH: {"containerd": "", "config_path": False},
        FULL_DISK: {},
        CLOCK: {"variables": {"LD_PRELOAD": str(library), "FAKETIME": "-1000d"}},
        KILLED: {},
    }
    made: dict[str, Machine] = {}
    try:
        for number, options in enumerate(of_machine.values(), 1):
            machine = Machine(number, tmp_path / f"machine{number}", **options)
            made[machine.name] = machine
        made[FULL_DISK].shell(
            'mkdir "$1"; mount -t tmpfs -o "size=$2" tmpfs "$1"',
            f"{made[FULL_DISK].directory}/podman",
            FULL,
        )
        yield made
    finally:
        for machine in made.values():
            machine.stop()


@pytest.fixture
def ssh_config(tmp_path: Path, machines: dict[str, Machine]) -> Path:
    """ssh's configuration: every machine by its name, and two that ssh does not get into."""
    first = machines[GOOD[0]]
    texts = [
        *(machine.ssh_config() for machine in machines.values()),
        f"Host {DOWN}\n  HostName {NETWORK}.99\n",
        f"Host {STRANGER} {REFUSED}\n  HostName {first.address}\n  User root\n",
        f"Host {STRANGER}\n  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n",
        f"Host {REFUSED}\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n",
        f"  IdentityFile {machines[GOOD[1]].directory}/key\n",
        "Host *\n  IdentitiesOnly yes\n  IdentityAgent none\n",
    ]
    path = tmp_path / "ssh_config"
    path.write_text("".join(texts))
    return path


@pytest.fixture
def server(tmp_path: Path, network: None, bundle: Path, ssh_config: Path) -> Iterator[Mayfly]:
    """Mayfly with TLS and users, waiting for the proofs of every node."""
    names = (*GOOD, NO_PATH, FULL_DISK, CLOCK, KILLED, DOWN, STRANGER, REFUSED)
    (tmp_path / "images").write_text("".join(f"{name}\n" for name in IMAGES))
    (tmp_path / "nodes").write_text("".join(f"{name}\n" for name in names))
    options = ["--until-pulled", str(tmp_path / "images"), "--nodes", str(tmp_path / "nodes")]
    options += ["--accept", "proven", "--idle-timeout", "30m", "--until", "all"]
    running = Mayfly(
        tmp_path / "root", tmp_path / "state", str(bundle), *options, listen=f"{GATEWAY}:{PORT}"
    )
    try:
        yield running
    finally:
        if running.running:
            running.kill()


def _kill_script(machine: Machine) -> None:
    """Kill the script on a machine as soon as it runs, with all its shells."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if found := machine.processes("sh", "-s", "--", "--json"):
            for pid in found:
                os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.02)
    pytest.fail("the script did not begin")


def test_what_is_wrong_is_named_and_the_rest_proven(
    machines: dict[str, Machine], server: Mayfly, ssh_config: Path, tmp_path: Path
) -> None:
    """Down, full, wrong clock, killed, no config_path, a host key, a login: each with its remedy.

    Then what was wrong is mended, and a second run skips the nodes that were proven.
    """
    state = ("--state-dir", server.state_dir)
    words = ("prefetch", *state, "--ssh-config", ssh_config, "--attempts", "1", "--json")
    running = subprocess.Popen(
        command_line(*words),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _kill_script(machines[KILLED])
    output, errors = running.communicate(timeout=300)
    said = output + errors + "".join(map(events, machines.values()))
    assert running.returncode == 3, said
    found = {one["node"]: one for one in _events(output, "ended")}
    causes = {node: [f["code"] for f in one["failures"]] for node, one in found.items()}
    assert causes == {
        GOOD[0]: [],
        GOOD[1]: [],
        NO_PATH: [],
        FULL_DISK: ["disk_full"],
        CLOCK: ["clock"],
        KILLED: ["killed"],
        DOWN: ["down"],
        STRANGER: ["host_unknown"],
        REFUSED: ["login"],
    }, said
    assert [one["code"] for one in found[NO_PATH]["warnings"]] == ["no_config_path"]
    assert found[FULL_DISK]["failures"][0]["images"] == [IMAGES[1]], said
    for node in (CLOCK, KILLED, DOWN):
        assert found[node]["failures"][0]["images"] == list(IMAGES)
    (done,) = _events(output, "done")
    assert done["proven"] == 3
    remedied = {node for one in done["remedies"] for node in one["nodes"]}
    assert remedied == set(found) - set(GOOD)
    matrix = json.loads(mayfly("status", *state, "--json").stdout)["coverage"]["matrix"]
    for node in (*GOOD, NO_PATH):
        assert {matrix[image][node] for image in IMAGES} <= {"proven", "present before"}

    # Mended: only what is not proven runs again.
    machines[FULL_DISK].shell(
        'mount -o remount,size=100m "$1"', f"{machines[FULL_DISK].directory}/podman"
    )
    done_again = mayfly(*words, timeout=300)
    assert done_again.returncode == 3, done_again.stderr
    skipped = {one["node"] for one in _events(done_again.stdout, "skipped")}
    assert skipped == {*GOOD, NO_PATH}
    ended = {one["node"]: one["proven"] for one in _events(done_again.stdout, "ended")}
    assert ended == {
        FULL_DISK: True, KILLED: True, CLOCK: False, DOWN: False, STRANGER: False, REFUSED: False,
    }, done_again.stdout  # fmt: skip


def test_check_finds_it_before_and_changes_nothing(
    machines: dict[str, Machine], bundle: Path, server: Mayfly, ssh_config: Path, tmp_path: Path
) -> None:
    """What would go wrong in the prefetch is found, and no file of a machine or of Mayfly's is."""

    def trees() -> list[Any]:
        directories = [bundle, server.root]
        directories += [machine.directory / "root.u" for machine in machines.values()]
        found = [*map(Machine.tree, machines.values()), *map(snapshot, directories)]
        # What the server prints, as of a connection that is broken, is in no file of its own.
        state = snapshot(server.state_dir)
        del state[server.log.name]
        return [*found, state]

    before = trees()
    words = ["--state-dir", server.state_dir, "--root", server.root, "--ssh-config", ssh_config]
    done = mayfly("check", bundle, *words, "--via", "ssh", "--json", timeout=300)
    assert trees() == before
    assert done.returncode == 3, done.stderr
    found: dict[str, list[str]] = {}
    for one in json.loads(done.stdout)["findings"]:
        # The disk of the host may be nearly full.
        if one["code"] != "no_room" or one["node"] == FULL_DISK:
            found.setdefault(one["node"], []).append(one["code"])
    assert found == {
        NO_PATH: ["no_config_path"],
        FULL_DISK: ["no_room"],
        CLOCK: ["clock"],
        DOWN: ["down"],
        STRANGER: ["host_unknown"],
        REFUSED: ["login"],
    }, done.stdout


def test_run_with_prefetch_is_the_whole_upgrade(
    machines: dict[str, Machine], bundle: Path, ssh_config: Path, tmp_path: Path
) -> None:
    """One line: nodes prove every image, then the command begins, and then it ends with 0."""
    (tmp_path / "images").write_text("".join(f"{name}\n" for name in IMAGES))
    (tmp_path / "nodes").write_text("".join(f"{name}\n" for name in GOOD))
    status = 'mayfly status --json > "$0"/status'
    options = ["--until-pulled", tmp_path / "images", "--nodes", tmp_path / "nodes"]
    options += ["--accept", "proven", "--prefetch", "ssh", "--ssh-config", ssh_config]
    options += ["--listen", f"{GATEWAY}:{PORT + 1}", "--max-lifetime", "5m"]
    options += ["--root", tmp_path / "root", "--state-dir", tmp_path / "state"]
    command = ["sh", "-c", status.replace("mayfly", f"{sys.executable} -m mayfly"), tmp_path]
    done = mayfly("run", bundle, *options, "--", *command, timeout=300)
    assert done.returncode == 0, done.stderr
    coverage = json.loads((tmp_path / "status").read_text())["coverage"]
    assert coverage["complete"]  # when the command began
    report = json.loads((tmp_path / "state/report.json").read_text())
    assert report["prefetch"]["proven"] == 2
    assert report["coverage"]["complete"]


def _events(output: str, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in output.splitlines()]
    return [one for one in found if one["event"] == name]
