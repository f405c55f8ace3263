"""Fifty nodes run their scripts at once against one registry, with stubs for their runtimes."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from mayfly.registry.cli.node import command
from tests.bundle.builders import Layout
from tests.nodes.test_script import SHELLS, Node
from tests.support.commands import mayfly
from tests.support.process import Mayfly, need, peak_bytes

NODES = 50
NAMES = ("docker.io/library/one:1", "quay.io/team/two:2")
MOST_MEMORY = 200 * 1024 * 1024


@pytest.mark.alone
def test_fifty_nodes_prove_at_once(tmp_path: Path) -> None:
    """All are covered, the server's memory is bounded, and the report has a row for each."""
    need("curl")
    layout = Layout()
    digests = {name: layout.name(layout.image(name.encode()), name) for name in NAMES}
    known = "".join(f"{name} {digest}\n" for name, digest in digests.items())
    bundle = layout.write_tar(tmp_path / "bundle.tar")
    names = [f"node-{number:02}" for number in range(NODES)]
    (tmp_path / "nodes").write_text("\n".join(names))
    (tmp_path / "images").write_text("\n".join(NAMES))
    options = [str(bundle), "--auth", "auto", "--nodes", str(tmp_path / "nodes")]
    options += ["--until-pulled", str(tmp_path / "images"), "--accept", "proven"]
    options += ["--until", "all", "--idle-timeout", "1h"]
    with Mayfly(tmp_path / "store", tmp_path / "state", *options) as server:
        state = ("--state-dir", server.state_dir)
        matrix = json.loads(mayfly("status", *state, "--json").stdout)["coverage"]["matrix"]
        assert set(matrix) == set(NAMES)
        scripts = {}
        for name in names:
            made = CliRunner().invoke(command, ["script", "--node", name, *map(str, state)])
            assert made.exit_code == 0, made.output
            scripts[name] = made.stdout

        def run(name: str) -> subprocess.CompletedProcess[str]:
            directory = tmp_path / name
            root = directory / "root"
            for made in ("etc", "var/lib"):
                (root / made).mkdir(parents=True)
            node = Node(directory, root, SHELLS["dash"])
            (node.bin / "curl").unlink()
            (node.state / "digests").write_text(known)
            text = scripts[name].replace("tree=''\n", f"tree='{root}'\n", 1)
            return node.run(text, "--runtime", "containerd", "--quiet")

        with ThreadPoolExecutor(NODES) as threads:
            done = [*threads.map(run, names)]
        assert [one for one in done if one.returncode != 0] == []
        status = json.loads(mayfly("status", *state, "--json").stdout)["coverage"]
        assert status["complete"]
        assert status["nodes_covered"] == NODES
        states = {state for row in status["matrix"].values() for state in row.values()}
        assert states == {"present before"}
        shown = mayfly("status", *state).stdout.splitlines()
        assert len([line for line in shown if line.startswith("node-")]) == NODES
        assert len(shown) <= NODES + 15
        assert any(line.startswith("self-reported by 50 nodes: 100 images") for line in shown)
        assert peak_bytes(server.pid) < MOST_MEMORY
