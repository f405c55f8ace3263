"""`mayfly prefetch` over real ssh: what is wrong on a node is named with its remedy, the rest is
proven, and a second run does what the first could not."""

from __future__ import annotations

import json
import os
import signal
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.clients.layout import Layout
from tests.clients.node_machines import GATEWAY, NETWORK, Machine, events
from tests.support.commands import mayfly, started
from tests.support.process import PATIENCE, Mayfly, need, poll
from tests.support.trees import snapshot

PORT = 5781
IMAGES = ("docker.io/library/one:1", "quay.io/team/two:2")
LARGE = 8 * 1024 * 1024
FULL = "6m"
"""Size of a file system that one image of `LARGE` does not fit in."""

GOOD = ("machine-1", "machine-2")
NO_PATH, FULL_DISK, CLOCK, KILLED, LOST = (f"machine-{number}" for number in range(3, 8))
DOWN, STRANGER, REFUSED = "machine-8", "stranger", "refused"
SCRIPT = ("sh", "-s", "--", "--json")


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
    """Six machines; another one is named and down."""
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
def lost(machines: dict[str, Machine], tmp_path: Path) -> Machine:
    """A seventh, among them, for the test that cuts it off: its address is not used again."""
    machine = Machine(7, tmp_path / "machine7")
    machines[machine.name] = machine
    return machine


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
def server(
    tmp_path: Path, machines: dict[str, Machine], bundle: Path, ssh_config: Path
) -> Iterator[Mayfly]:
    """Mayfly with TLS and users, waiting for the proofs of every node."""
    names = (*machines, DOWN, STRANGER, REFUSED)
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
    for pid in poll(lambda: machine.processes(*SCRIPT), lambda: events(machine)):
        os.kill(pid, signal.SIGKILL)


def _cut_off(machine: Machine) -> None:
    """Cut a machine off as soon as its script runs, as if its power were gone."""
    poll(lambda: machine.processes(*SCRIPT), lambda: events(machine))
    machine.shell("ip link set eth0 down")


def test_what_is_wrong_is_named_and_the_rest_proven(
    lost: Machine, machines: dict[str, Machine], server: Mayfly, ssh_config: Path
) -> None:
    """Down, full, wrong clock, killed, cut off, no config_path, a host key, a login: each is named
    with its remedy.

    Then what was wrong is mended, and a second run skips the nodes that were proven.
    """
    state = ("--state-dir", server.state_dir)
    words = ("prefetch", *state, "--ssh-config", ssh_config, "--attempts", "1", "--json")
    with started(*words) as running:
        with ThreadPoolExecutor() as threads:
            ending = [
                threads.submit(_kill_script, machines[KILLED]),
                threads.submit(_cut_off, lost),
            ]
        for one in ending:
            one.result()
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
        LOST: ["lost"],
        DOWN: ["down"],
        STRANGER: ["host_unknown"],
        REFUSED: ["login"],
    }, said
    assert [one["code"] for one in found[NO_PATH]["warnings"]] == ["no_config_path"]
    assert found[FULL_DISK]["failures"][0]["images"] == [IMAGES[1]], said
    for node in (CLOCK, KILLED, LOST, DOWN):
        assert found[node]["failures"][0]["images"] == list(IMAGES)
    (done,) = _events(output, "done")
    assert done["proven"] == 3
    remedied = {node for one in done["remedies"] for node in one["nodes"]}
    assert remedied == set(found) - set(GOOD)
    matrix = json.loads(mayfly("status", *state, "--json").stdout)["coverage"]["matrix"]
    for node in (*GOOD, NO_PATH):
        assert {matrix[image][node] for image in IMAGES} <= {"proven", "present before"}

    # Mended: only what is not proven runs again.
    lost.shell('ip link set eth0 up; ip route add default via "$1"', GATEWAY)
    machines[FULL_DISK].shell(
        'mount -o remount,size=100m "$1"', f"{machines[FULL_DISK].directory}/podman"
    )
    done_again = mayfly(*words, timeout=300)
    assert done_again.returncode == 3, done_again.stderr
    skipped = {one["node"] for one in _events(done_again.stdout, "skipped")}
    assert skipped == {*GOOD, NO_PATH}
    ended = {one["node"]: one["proven"] for one in _events(done_again.stdout, "ended")}
    assert ended == {
        FULL_DISK: True, KILLED: True, LOST: True,
        CLOCK: False, DOWN: False, STRANGER: False, REFUSED: False,
    }, done_again.stdout  # fmt: skip


@pytest.mark.parametrize("node", GOOD)
@pytest.mark.parametrize("end", ["Ctrl-C", "kill", "connection"])
def test_a_script_ends_with_its_connection(
    machines: dict[str, Machine],
    server: Mayfly,
    ssh_config: Path,
    tmp_path: Path,
    node: str,
    end: str,
) -> None:
    """Nothing of it runs on the node, nothing holds its lock, and it can be taken back."""
    machine = machines[node]
    before = machine.tree()
    (tmp_path / "some").write_text(f"{node}\n")
    state = ("--state-dir", server.state_dir)
    words = ("prefetch", *state, "--ssh-config", ssh_config, "--nodes", tmp_path / "some")
    with started(*words, "--attempts", "1", "--json") as running:
        poll(lambda: machine.processes(*SCRIPT), lambda: events(machine))
        os.kill(server.pid, signal.SIGSTOP)  # so that pulls take long
        try:
            poll(lambda: _pulls(machine), lambda: events(machine))
            if end == "connection":
                for pid in machine.processes("sshd: root@notty"):
                    os.kill(pid, signal.SIGKILL)
            else:
                running.send_signal(signal.SIGINT if end == "Ctrl-C" else signal.SIGKILL)
            output = "".join(running.communicate(timeout=PATIENCE))
            code = {"Ctrl-C": 130, "kill": -signal.SIGKILL, "connection": 3}[end]
            assert running.returncode == code, output
            poll(
                lambda: not machine.processes(*SCRIPT) and not _pulls(machine),
                lambda: events(machine),
            )
        finally:
            os.kill(server.pid, signal.SIGCONT)
    assert "work" not in machine.shell("ls /var/lib/mayfly-node-config").split()
    text = mayfly("node", "script", "--node", node, *state).stdout
    done = machine.ssh("sh -s -- revert", text)
    assert done.returncode == 0, done.stderr
    assert machine.tree() == before


def _pulls(machine: Machine) -> list[int]:
    """The processes by which it pulls."""
    return [*machine.processes("timeout", "-k", "10", "1800"), *machine.processes("podman", "pull")]


def test_check_finds_it_before_and_changes_nothing(
    machines: dict[str, Machine], bundle: Path, server: Mayfly, ssh_config: Path
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
