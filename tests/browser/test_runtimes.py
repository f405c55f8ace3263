"""A real upgrade: docker, containerd and podman pull slowly, and the page shows it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.browser.conftest import NewTab, Tab
from tests.browser.test_rollout import Line, beside
from tests.clients.layout import Layout, layer
from tests.clients.programs import Client, Containerd, Dockerd
from tests.clients.proxy import SlowProxy
from tests.support.commands import run_mayfly
from tests.support.process import PATIENCE, Mayfly, find_program, need, need_root, remove_tree

MIB = 1 << 20
IMAGES = ("registry.example/team/api:2", "registry.example/team/web:2")
NODES = ("docker-1", "containerd-1", "podman-1")
RATE = 6 * MIB


@pytest.fixture
def place(workspace: Path) -> Iterator[Path]:
    """For what the runtimes keep."""
    need_root()
    made = Path(tempfile.mkdtemp(prefix="runtimes-", dir=workspace))
    yield made
    remove_tree(made)


@pytest.fixture
def server(place: Path) -> Iterator[Mayfly]:
    """A registry that serves two images out of their bundle, until three nodes have both."""
    layout = Layout(place / "upgrade")
    base = layer({"base": os.urandom(8 * MIB)})
    for number, image in enumerate(IMAGES):
        layout.add(image, base, layer({f"app-{number}": os.urandom(8 * MIB)}))
    (place / "images").write_text("\n".join(IMAGES))
    (place / "nodes").write_text("\n".join(NODES))
    options = ["--until-pulled", str(place / "images"), "--nodes", str(place / "nodes")]
    made = Mayfly(
        place / "root", place / "state", str(layout.directory), "--auth", "auto", *options
    )
    yield made
    if made.running:
        made.kill()


class Runtimes:
    """The three, each with credentials of its node."""

    def __init__(self, place: Path, server: Mayfly, stack: ExitStack) -> None:
        need("podman", "runc")
        self._server = server
        home = place / "home"
        home.mkdir()
        (home / "auth.json").write_text("{}")
        self._docker = Dockerd(place / "dockerd", home)
        stack.callback(self._docker.stop)
        self._containerd = Containerd(place / "containerd", home)
        stack.callback(self._containerd.stop)
        self._podman = Client(
            "podman",
            home,
            f"--root={place}/podman/root",
            f"--runroot={place}/podman/run",
            f"--runtime={find_program('runc')}",
            "--cgroup-manager=cgroupfs",
            "--events-backend=file",
        )

    def pulls(self, host: str) -> list[Callable[[], None]]:
        """Pull both images at each node, through a host."""
        names = [f"{host}/{image}" for image in IMAGES]

        def docker() -> None:
            user, password = self._login("docker-1")
            self._docker.docker("login", "--username", user, "--password", password, host)
            for name in names:
                self._docker.docker("pull", "--quiet", name)

        def containerd() -> None:
            login = ":".join(self._login("containerd-1"))
            for name in names:
                self._containerd.ctr("images", "pull", "--plain-http", "--user", login, name)

        def podman() -> None:
            login = ":".join(self._login("podman-1"))
            for name in names:
                self._podman("pull", "--quiet", "--tls-verify=false", "--creds", login, name)

        return [docker, containerd, podman]

    def _login(self, node: str) -> tuple[str, str]:
        found = run_mayfly(
            *("credentials", "--node", node, "--name", node, "--format", "text"),
            *("--state-dir", self._server.state_dir),
        )
        user, password = found.split()
        return user, password


def watch(tab: Tab, server: Mayfly) -> None:
    """Open the page as its admin."""
    users = json.loads((server.state_dir / "credentials.json").read_text())
    tab.log_in("admin", users["admin"])


def test_three_runtimes(place: Path, server: Mayfly, new_tab: NewTab) -> None:
    """Pulls with rate and time left, by each; the line of the page is cut meanwhile; the end."""
    with ExitStack() as stack:
        runtimes = Runtimes(place, server, stack)
        slow = stack.enter_context(SlowProxy(server.host, RATE))
        line = stack.enter_context(Line(server.host))
        origin = f"http://{line.host}"
        tabs = [new_tab(origin), new_tab(origin, color_scheme="dark")]
        phone = new_tab(origin, viewport={"width": 390, "height": 844}, has_touch=True)
        for tab in (*tabs, phone):
            watch(tab, server)
            tab.says("h1", "0 of 3 nodes have every image")
        pulling = beside(*runtimes.pulls(slow.host))
        tabs[0].says(".row .amount", " left")
        tabs[0].says(".row .amount", "MiB/s")
        shown = zip(("runtimes", "runtimes-dark", "runtimes-phone"), (*tabs, phone), strict=True)
        for name, tab in shown:
            tab.picture(name)
            tab.accessible()
        line.cut()
        for tab in tabs:
            tab.says("#connection", "Live")
        assert tabs[0].last_event_ids[-1], "it asks for what it missed alone"
        for thread in pulling:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert server.popen.wait(PATIENCE) == 0, server.describe()
        for tab in (*tabs, phone):
            tab.says("#connection", "Ended")
            tab.says("h1", "3 of 3 nodes have every image")
            tab.clean()
        tabs[0].picture("runtimes-ended")
    report = json.loads((server.state_dir / "report.json").read_text())
    assert report["coverage"]["matrix"].keys() == set(IMAGES)
