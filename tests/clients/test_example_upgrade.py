"""`examples/upgrade`, rehearsed with three real runtimes, and what an operator then reads.

Each scenario's output, exit code and report are those of a file in ``examples/upgrade/expected``;
``pytest tests/clients/test_example_upgrade.py --record`` writes these files anew.
"""

from __future__ import annotations

import difflib
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.rehearsal import EXAMPLE, IMAGES, NODES, Rehearsal, Scenario, damage
from tests.conftest import Record
from tests.security.node import Node
from tests.support.process import need, need_root, remove_tree

EXPECTED = EXAMPLE / "expected"
UNTIL = ("--until-pulled", "images.txt", "--nodes", "nodes.txt")
SCRIPT = ("--", "sh", "-c", "./upgrade.sh >upgrade.log 2>&1")
# Ctrl-C reaches every process of the foreground; here the one that is waited for is the script.
FIRST = "./upgrade.sh node-docker >upgrade.log 2>&1; echo waiting >>upgrade.log; exec sleep 100"
WAITING = ("--", "sh", "-c", FIRST)
RUN = ("run", "--max-lifetime", "100s", *UNTIL, "bundle.tar")

Keep = Callable[[Scenario, str], None]


@pytest.fixture(scope="module")
def rehearsal(workspace: Path) -> Iterator[Rehearsal]:
    """A machine with docker, containerd and podman, which all scenarios use."""
    need_root()
    need("podman", "runc", "ctr", "docker")
    directory = Path(tempfile.mkdtemp(prefix="rehearsal-", dir=workspace))
    (directory / "node").mkdir()
    with Node(directory / "node") as node:
        made = Rehearsal(node, directory)
        yield made
        made.stop()
    remove_tree(directory)


@pytest.fixture
def cold(rehearsal: Rehearsal) -> Rehearsal:
    """No runtime has an image or trusts a registry."""
    rehearsal.forget()
    return rehearsal


@pytest.fixture
def keep(record: Record) -> Keep:
    """Compare a scenario with its file, or write that."""

    def compare(scenario: Scenario, name: str) -> None:
        path, found = EXPECTED / f"{name}.txt", scenario.golden()
        if record(path, found):
            return
        difference = difflib.unified_diff(
            path.read_text().splitlines(), found.splitlines(), str(path), "found", lineterm=""
        )
        told = "\n".join(difference)
        assert not told, f"{told}\nIf that is as it should be: --record writes the file anew"

    return compare


def test_success_and_warm_nodes(cold: Rehearsal, keep: Keep) -> None:
    """Three nodes pull three images; a second upgrade finds them there, and ends as well."""
    first = cold.scenario("success")
    assert first.run(*RUN, *SCRIPT) == 0, first.text + first.script_output()
    keep(first, "success")
    again = cold.scenario("warm-nodes")
    assert again.run(*RUN, *SCRIPT) == 0, again.text + again.script_output()
    keep(again, "warm-nodes")


def test_silent_node(cold: Rehearsal, keep: Keep) -> None:
    """One node is never reached: the deadline ends it, and the exit code is 3."""
    scenario = cold.scenario("silent-node")
    script = "./upgrade.sh node-docker node-containerd >upgrade.log 2>&1"
    words = ("run", "--max-lifetime", "45s", *UNTIL, "bundle.tar", "--", "sh", "-c", script)
    assert scenario.run(*words) == 3, scenario.text + scenario.script_output()
    keep(scenario, "silent-node")


def test_failing_script(cold: Rehearsal, keep: Keep) -> None:
    """A node whose name the script does not know: its exit code is Mayfly's."""
    scenario = cold.scenario("failing-script")
    script = "./upgrade.sh node-docker || exit 7"
    (scenario.directory / "images.txt").write_text(f"{IMAGES[0]}\nshop/forgotten:2\n")
    words = (*RUN, "--", "sh", "-c", f"({script}) >upgrade.log 2>&1")
    assert scenario.run(*words) == 7, scenario.text + scenario.script_output()
    assert "shop/forgotten" in scenario.script_output()
    keep(scenario, "failing-script")


def test_interrupted(cold: Rehearsal, keep: Keep) -> None:
    """Ctrl-C when one of three nodes is done."""
    scenario = cold.scenario("interrupted")
    process = scenario.start(*RUN, *WAITING)
    scenario.wait_for_line(process, "waiting")
    process.popen.send_signal(signal.SIGINT)
    assert scenario.finish(process) == -signal.SIGINT, scenario.told()
    keep(scenario, "interrupted")


def test_crash_and_restart(cold: Rehearsal, keep: Keep) -> None:
    """Killed when one node is done; started again, the other two complete it."""
    scenario = cold.scenario("crash-and-restart")
    process = scenario.start(*RUN, *WAITING)
    scenario.wait_for_line(process, "waiting")
    process.kill()
    scenario.finish(process)
    script = "./upgrade.sh node-containerd node-podman >upgrade.log 2>&1"
    assert scenario.run(*RUN, "--", "sh", "-c", script) == 0, scenario.told()
    keep(scenario, "crash-and-restart")


def test_full_disk(cold: Rehearsal, keep: Keep) -> None:
    """The script pushes an image to a store that has no room for it."""
    scenario = cold.scenario("full-disk")
    store = scenario.directory / "store"
    store.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(store)]
    subprocess.run(cold.node.inside("sh", "-c", " ".join(mount)), check=True, timeout=30)
    script = (
        'mkdir certificates; cp "$MAYFLY_CA" certificates/ca.crt; '
        "skopeo --insecure-policy copy --quiet --dest-cert-dir certificates "
        '--dest-authfile "$REGISTRY_AUTH_FILE" oci-archive:bundle.tar:shop/web:2 '
        '"docker://$MAYFLY_HOST/shop/web:3"'
    )
    (scenario.directory / "push.sh").write_text(f"{script}\n")
    words = ("--root", "store", "--", "sh", "-c", "sh push.sh >upgrade.log 2>&1")
    assert scenario.run("run", "--max-lifetime", "100s", *words) not in (0, 3), scenario.told()
    assert "space left" in scenario.script_output().lower(), scenario.script_output()
    keep(scenario, "full-disk")


def test_corrupt_bundle(cold: Rehearsal, keep: Keep) -> None:
    """A byte of the bundle is wrong: found when the first node pulls that layer."""
    scenario = cold.scenario("corrupt-bundle")
    damage(scenario.directory / "bundle.tar")
    assert scenario.run(*RUN, "--on-corrupt", "stop", *SCRIPT) == 4, scenario.told()
    keep(scenario, "corrupt-bundle")


def test_every_expected_file_is_a_scenario() -> None:
    """And names no file or node that is not in the example."""
    source = Path(__file__).read_text()
    for path in EXPECTED.glob("*.txt"):
        assert f'"{path.stem}")' in source, path
    assert (EXAMPLE / "images.txt").read_text().split() == list(IMAGES)
    assert (EXAMPLE / "nodes.txt").read_text().split() == list(NODES)
