"""A run that crashes in the middle, with docker and containerd: they continue, until it has ended.

The CA is one of `--tls-constrain`, so both are tried with that, too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.programs import Client, wait_for_answer
from tests.security.keyring import AuthConfig, lookup
from tests.security.node import Node, NodeContainerd, NodeDockerd, NodeMayfly
from tests.security.servers import one_run_users
from tests.support.commands import run_mayfly
from tests.support.process import PATIENCE, need, remove_tree

LOCAL = "mayfly-test/small:1"
PORT = 5443
NODES = ("node-1", "node-2")


@pytest.fixture
def directory(workspace: Path) -> Iterator[Path]:
    """Where the registry's root and state lie."""
    made = Path(tempfile.mkdtemp(prefix="run-", dir=workspace))
    yield made
    remove_tree(made)


@pytest.fixture
def docker(node: Node, workspace: Path, home: Path, archive: Path) -> Iterator[Client]:
    """A docker of the node, with an image to push."""
    (node.root / "etc/docker").mkdir(exist_ok=True)
    daemon = NodeDockerd(node, workspace)
    wait_for_answer(daemon, daemon.docker, "version")
    client = Client("docker", home, *daemon.docker.options)
    client("load", "--input", archive)
    yield client
    daemon.stop()


@pytest.fixture
def crictl(node: Node, home: Path) -> Iterator[Client]:
    """A containerd of the node, asked as kubelet does."""
    need("crictl")
    daemon = NodeContainerd(node)
    endpoint = f"unix://{daemon.socket}"
    options = (f"--runtime-endpoint={endpoint}", f"--image-endpoint={endpoint}", "--timeout=60s")
    client = Client("crictl", home, *options)
    daemon.wait_for(lambda: client.run("images", timeout=30).returncode == 0)
    yield client
    daemon.stop()


class Upgrade:
    """One registry, started as often as it takes."""

    def __init__(self, node: Node, directory: Path) -> None:
        self._node = node
        self._directory = directory
        (directory / "images").write_text("team/app:1\nteam/app:2\n")
        (directory / "nodes").write_text("\n".join(NODES) + "\n")
        self.server = self.start()

    def start(self) -> NodeMayfly:
        """Start it, or again."""
        coverage = ("--until-pulled", str(self._directory / "images"))
        nodes = ("--nodes", str(self._directory / "nodes"))
        lifetime = ("--max-lifetime", "2h", "--drain-timeout", "5s")
        options = (*coverage, *nodes, *lifetime, "--tls-constrain")
        self.server = NodeMayfly(self._node, self._directory, *options, port=PORT)
        return self.server

    def image(self, tag: str) -> str:
        """Its full name."""
        return f"{self.server.host}/team/app:{tag}"

    def credential(self, name: str) -> AuthConfig:
        """What a kubelet makes of the Secret for a node."""
        options = ("--state-dir", self.server.state_dir, "--format", "secret", "--node", name)
        secret = json.loads(run_mayfly("credentials", *options))
        (found,) = lookup([secret], f"{self.server.host}/team/app")
        return found

    def has_facts_of(self, name: str) -> bool:
        """Whether the ledger, which a start writes anew from what it could read, knows a node."""
        return f'"{name}"' in (self.server.state_dir / "coverage.jsonl").read_text()


def _pull(crictl: Client, image: str, auth: AuthConfig) -> str:
    """PullImage; what it said, and "" when it came."""
    done = crictl.run("pull", f"--creds={auth.username}:{auth.password}", image, timeout=90)
    return "" if done.returncode == 0 else (done.stdout + done.stderr).decode()


def test_crash_restart_and_end(
    node: Node, directory: Path, docker: Client, crictl: Client, home: Path
) -> None:
    """Logins, node credentials and coverage outlive kill -9; nothing outlives an orderly end."""
    upgrade = Upgrade(node, directory)
    server = upgrade.server
    for runtime in ("docker", "containerd"):
        node.configure("apply", runtime, "--state-dir", server.state_dir)
    (home / "password").write_text(one_run_users(server)["admin"])
    login = ("login", "--username=admin", "--password-stdin", server.host)
    done = docker.run(*login, stdin=home / "password")
    assert done.returncode == 0, done.stderr
    docker("tag", LOCAL, upgrade.image("1"))
    docker("push", upgrade.image("1"))
    credential = upgrade.credential("node-1")
    assert _pull(crictl, upgrade.image("1"), credential) == ""
    assert upgrade.has_facts_of("node-1") and not upgrade.has_facts_of("node-2")

    server.kill()
    server = upgrade.start()
    assert server.output().count("resuming the run") == 1
    assert "changed since the previous start" not in server.output()
    assert upgrade.has_facts_of("node-1"), "coverage outlives the crash"
    docker("tag", LOCAL, upgrade.image("2"))
    docker("push", upgrade.image("2"))  # by the login of before
    crictl("rmi", "--all")
    for tag in ("1", "2"):
        assert _pull(crictl, upgrade.image(tag), credential) == ""

    server.popen.terminate()
    assert server.popen.wait(PATIENCE) in (0, 3), server.describe()
    server = upgrade.start()
    assert not upgrade.has_facts_of("node-1"), "coverage ends with the run"
    crictl("rmi", "--all")
    told = _pull(crictl, upgrade.image("1"), credential)
    assert "401" in told or "authorization failed" in told, told
    told = docker.fails("push", upgrade.image("2"))
    assert "unauthorized" in told or "authentication required" in told, told
    assert server.output().count("resuming the run") == 1
    assert _pull(crictl, upgrade.image("1"), upgrade.credential("node-2")) == ""
    server.kill()
