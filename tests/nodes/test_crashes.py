"""A crash between any two changes: the next command finds its way from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.registry.nodes.journal import NodeConfig
from mayfly.registry.nodes.runtimes import RUNTIMES, Runtime
from mayfly.registry.nodes.target import Target, parse
from tests.nodes.test_journal import furnish
from tests.support.process import REPO
from tests.support.trees import Node, full_after, interfering, killed_after, snapshot

FEWEST_CHANGES = 10
"""Every operation makes more than that; fewer seen would mean that the hook is blind."""


@pytest.fixture
def first(ca_pem: bytes) -> Target:
    """A registry that stands in for one upstream."""
    return parse("10.0.0.5:5000", ca_pem, ["docker.io"])


@pytest.fixture
def second(ca_pem: bytes) -> Target:
    """Another that stands in for another."""
    return parse("10.0.0.6:5000", ca_pem, ["quay.io"])


@pytest.fixture(params=RUNTIMES)
def node(request: pytest.FixtureRequest, root: Path) -> NodeConfig:
    """Each runtime on a furnished node."""
    furnish(root)
    runtime: Runtime = request.param
    return NodeConfig(root, runtime)


docker = pytest.mark.parametrize("node", ["docker"], indirect=True)
"""Where one runtime will do: docker's plan has most kinds of change."""


def _points(operation: Callable[[], object], undo: Callable[[], object]) -> range:
    """The number of changes after which to crash: all there are."""
    with interfering(lambda _: None) as changes:
        operation()
    undo()
    assert changes.seen > FEWEST_CHANGES
    return range(changes.seen)


def _configuration(root: Path) -> dict[str, Node]:
    """The node without the journal, whose times and inodes may differ."""
    return {path: node for path, node in snapshot(root).items() if not path.startswith("var")}


def test_a_crash_in_apply_can_be_reverted(node: NodeConfig, first: Target, root: Path) -> None:
    """At every point, to the last byte."""
    before = snapshot(root)
    for point in _points(lambda: node.apply(first), node.revert):
        with killed_after(point):
            node.apply(first)
        node.revert()
        assert snapshot(root) == before, f"after {point} changes"


@docker
def test_a_crash_in_apply_can_be_completed(node: NodeConfig, first: Target, root: Path) -> None:
    """The second apply does not take the first one's work for the original."""
    before = snapshot(root)
    node.apply(first)
    applied = _configuration(root)
    node.revert()
    for point in _points(lambda: node.apply(first), node.revert):
        with killed_after(point):
            node.apply(first)
        node.apply(first)
        assert _paths_and_contents(_configuration(root)) == _paths_and_contents(applied)
        node.revert()
        assert snapshot(root) == before, f"after {point} changes"


def _paths_and_contents(tree: dict[str, Node]) -> dict[str, object]:
    return {path: (node[0], node[-1]) for path, node in tree.items()}


def test_a_crash_in_revert_can_be_completed(node: NodeConfig, first: Target, root: Path) -> None:
    """At every point, the removal of the journal included."""
    before = snapshot(root)
    node.apply(first)
    for point in _points(node.revert, lambda: node.apply(first)):
        with killed_after(point):
            node.revert()
        node.revert()
        assert snapshot(root) == before, f"after {point} changes"
        node.apply(first)


@docker
def test_a_crash_in_revert_can_be_applied_over(
    node: NodeConfig, first: Target, second: Target, root: Path
) -> None:
    """The next upgrade comes before anybody looked."""
    before = snapshot(root)
    node.apply(first)
    for point in _points(node.revert, lambda: node.apply(first)):
        with killed_after(point):
            node.revert()
        node.apply(second)
        node.revert()
        assert snapshot(root) == before, f"after {point} changes"
        node.apply(first)


def test_a_crash_between_two_targets_can_be_reverted(
    node: NodeConfig, first: Target, second: Target, root: Path
) -> None:
    """Neither target's files are taken for an original or for somebody's edit."""
    before = snapshot(root)
    node.apply(first)

    def start_over() -> None:
        node.revert()
        node.apply(first)

    for point in _points(lambda: node.apply(second), start_over):
        with killed_after(point):
            node.apply(second)
        node.revert()
        assert snapshot(root) == before, f"after {point} changes"
        node.apply(first)


@docker
def test_a_full_disk_at_any_point_loses_nothing(
    node: NodeConfig, first: Target, root: Path
) -> None:
    """The error comes up, or the change did not matter; revert goes all the way back."""
    before = snapshot(root)
    failures = 0
    for point in _points(lambda: node.apply(first), node.revert):
        try:
            with full_after(point):
                node.apply(first)
        except OSError:
            failures += 1
        node.revert()
        assert snapshot(root) == before, f"after {point} changes"
    assert failures > FEWEST_CHANGES


@pytest.mark.parametrize("point", [3, 14, 25])
def test_a_killed_process_is_as_good_as_a_crash(root: Path, point: int) -> None:
    """The same with a real kill -9, which no clean-up survives."""
    furnish(root)
    before = snapshot(root)
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from mayfly.registry.nodes.journal import NodeConfig\n"
        "from mayfly.registry.nodes.target import parse\n"
        "from tests.support.trees import interfering\n"
        "def kill(seen):\n"
        "    if seen > int(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"node = NodeConfig(Path({str(root)!r}), 'containerd')\n"
        "target = parse('http://10.0.0.5:5000', mirrors=['docker.io', 'quay.io', 'gcr.io'])\n"
        "with interfering(kill):\n"
        "    node.apply(target)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(point)], cwd=REPO, timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert snapshot(root) != before
    NodeConfig(root, "containerd").revert()
    assert snapshot(root) == before


def test_the_journal_is_on_disk_before_anything_is_changed(
    root: Path, first: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may lose what was not synced, in any order."""
    furnish(root)
    before = _configuration(root)
    journal = root / "var/lib/mayfly-node-config/docker"
    synced: list[Path] = []
    unsafe: list[int] = []
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").resolve())
    )

    def check(seen: int) -> None:
        is_safe = (journal / "journal.json").exists() and {
            journal,
            journal.parent,
            journal.parent.parent,
        } <= set(synced)
        if _configuration(root) != before and not is_safe:
            unsafe.append(seen)

    with interfering(check):
        NodeConfig(root, "docker").apply(first)
    assert _configuration(root) != before
    assert unsafe == []
