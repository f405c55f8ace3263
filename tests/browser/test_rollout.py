"""The page in a real browser, beside a real server that nodes pull from slowly."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.auth.users import hash_password
from mayfly.storage.directory.store import DistributionStore
from tests.browser.conftest import NewTab
from tests.clients.proxy import BUFFER, Proxy
from tests.support.client import ask, basic
from tests.support.images import image_body, push, put
from tests.support.process import PATIENCE, Mayfly, poll, remove_tree

LAYER = 3 << 20
NODES = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
ATTACK = "<img src=x onerror=alert(1)>"
PASSWORD = "correct horse"


class Node:
    """A node that pulls an image slowly, from an address of its own.

    Args:
        server: the registry.
        address: of the node.
        rate: bytes a second.
    """

    def __init__(self, server: Mayfly, address: str, rate: int) -> None:
        self._server = server
        self._address = address
        self._rate = rate
        self._headers = dict(
            [
                basic("pull", PASSWORD),
                ("User-Agent", f"containerd/2.1 {ATTACK}"),
                ("Accept", "application/vnd.oci.image.manifest.v1+json"),
            ]
        )

    def pull(self, name: str) -> None:
        """Pull an image by its repository; its tag is 1."""
        manifest = json.loads(self._get(f"/v2/{name}/manifests/1", slow=False))
        for blob in (manifest["config"], *manifest["layers"]):
            self._get(f"/v2/{name}/blobs/{blob['digest']}", slow=blob["size"] > 1000)

    def _get(self, path: str, *, slow: bool) -> bytes:
        connection = http.client.HTTPConnection(
            self._server.host, timeout=120, source_address=(self._address, 0)
        )
        with contextlib.closing(connection):
            connection.connect()
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            connection.request("GET", path, headers=self._headers)
            response = connection.getresponse()
            assert response.status == 200, path
            found = b""
            while piece := response.read(64 * 1024):
                found += piece
                if slow:
                    time.sleep(len(piece) / self._rate)
            return found


class Line(Proxy):
    """A line to a server that can be cut."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self._clients: list[socket.socket] = []

    def handle(self, client: socket.socket) -> None:
        """See `Proxy.handle`."""
        self._clients.append(client)
        super().handle(client)

    def pass_answers(self, server: socket.socket, client: socket.socket) -> None:
        """See `Proxy.pass_answers`."""
        while data := server.recv(BUFFER):
            client.sendall(data)

    def cut(self) -> None:
        """End all connections."""
        cut, self._clients = self._clients, []
        for client in cut:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server(workspace: Path, request: pytest.FixtureRequest) -> Iterator[Mayfly]:
    """A registry with three images of a shared layer, that three nodes are to have."""
    home = workspace / request.node.name
    home.mkdir()
    base = os.urandom(LAYER)
    with contextlib.closing(DistributionStore(home / "root")) as store:
        for name in ("team/api", "team/web", "team/db"):
            layers = (base, os.urandom(LAYER))
            config = json.dumps({"name": name}).encode()
            for blob in (config, *layers):
                push(store, name, blob)
            put(store, name, image_body(config, layers), "1")
    (home / "images").write_text("team/api:1\nteam/web:1\nteam/db:1\n")
    (home / "nodes").write_text("\n".join(NODES))
    (home / "auth").mkdir()
    users = {name: hash_password(PASSWORD, 4).decode() for name in ("admin", "pull", "viewer")}
    lines = "".join(f"{name}:{hashed}\n" for name, hashed in users.items())
    (home / "auth/htpasswd").write_text(lines)
    (home / "auth/htpasswd").chmod(0o600)
    roles = {"admin": "admin", "pull": "limitedGuest", "viewer": "guest"}
    grants = "".join(
        f'[[grant]]\nuser = "{name}"\nrole = "{role}"\nrepositories = "**"\n'
        for name, role in roles.items()
    )
    (home / "auth/grants.toml").write_text(grants)
    options = ["--until-pulled", str(home / "images"), "--nodes", str(home / "nodes")]
    options += ["--node-identity", "address", "--auth", str(home / "auth")]
    made = Mayfly(home / "root", home / "state", *options)
    yield made
    if made.running:
        made.kill()
    remove_tree(home)


def beside(*calls: Callable[[], object]) -> list[threading.Thread]:
    """Run calls at the same time as what follows."""
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def test_an_upgrade_from_login_to_print(server: Mayfly, new_tab: NewTab, tmp_path: Path) -> None:
    """Pulls are seen as they continue; the page stays when the server has ended, and is saved."""
    tab = new_tab(server.url)
    tab.page.goto(server.url)
    tab.accessible()
    tab.picture("login")
    tab.log_in("admin", PASSWORD)
    tab.says("h1", "0 of 3 nodes have every image")
    tab.says("main", "is shared")
    assert ask(server.host, "GET", "/v2/", headers=dict([basic(ATTACK, "x")])).status == 401
    tab.says(".problems", ATTACK)

    def pull_all(node: Node) -> Callable[[], None]:
        def pull() -> None:
            for name in ("team/api", "team/web", "team/db"):
                node.pull(name)

        return pull

    pulling = beside(*(pull_all(Node(server, address, LAYER // 2)) for address in NODES))
    tab.says("main", "pulling")
    tab.says(".row .amount", "MiB/s")
    tab.accessible()
    tab.picture("pulling")
    dark = new_tab(server.url, color_scheme="dark")
    dark.log_in("viewer", PASSWORD)
    assert dark.page.locator(".stop").count() == 0, "a guest may not stop"
    dark.accessible()
    dark.picture("dark")
    phone = new_tab(server.url, viewport={"width": 390, "height": 844}, has_touch=True)
    phone.log_in("viewer", PASSWORD)
    wide = phone.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390, "a phone scrolls down only"
    phone.accessible()
    phone.picture("phone")
    plain = new_tab(server.url, java_script_enabled=False)
    plain.send_login("viewer", PASSWORD)
    plain.says("table.matrix", NODES[0])
    tab.page.focus(".grid-scroll")
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("ArrowRight")
    tab.says("[aria-live=polite]", "team/")
    tab.page.keyboard.press("Enter")
    tab.says("[aria-label='One node'] h2", "127.0.0.1")
    for thread in pulling:
        thread.join(180)
    assert server.popen.wait(PATIENCE) == 0
    tab.says("#connection", "Ended")
    tab.says("h1", "3 of 3 nodes have every image")
    tab.says(".lead", "The server has ended")
    tab.accessible()
    tab.picture("ended")
    with tab.page.expect_download() as download:
        tab.page.click("text=Save as a file")
    saved = tmp_path / "saved.html"
    download.value.save_as(saved)
    text = saved.read_text()
    assert all(node in text for node in NODES)
    assert "<img" not in text
    tab.page.emulate_media(media="print")
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert NODES[2] in tab.text(".only-print")
    tab.picture("print")
    for one in (tab, dark, phone, plain):
        one.clean()


def _wait_until_removed(server: Mayfly, user: str) -> None:
    """Wait until the server has read that a user is removed."""
    login = dict([basic(user, PASSWORD)])
    server.wait_for(lambda: ask(server.host, "GET", "/v2/", headers=login).status == 401)


def test_a_cut_line_a_removed_user_and_a_stop(server: Mayfly, new_tab: NewTab) -> None:
    """The page resumes where it was; without a session it keeps what it shows and says so."""
    with Line(server.host) as line:
        origin = f"http://{line.host}"
        viewer, admin = new_tab(origin), new_tab(origin)
        viewer.log_in("viewer", PASSWORD)
        admin.log_in("admin", PASSWORD)
        viewer.says("h1", "0 of 3 nodes")
        line.cut()
        Node(server, NODES[0], LAYER * 100).pull("team/api")
        viewer.says("main", "served")
        viewer.says("#connection", "Live")
        assert viewer.last_event_ids[0] is None
        assert viewer.last_event_ids[-1], "it asks for what it missed alone"

        users = server.root.parent / "auth/htpasswd"
        kept = [one for one in users.read_text().splitlines() if not one.startswith("viewer:")]
        users.write_text("\n".join([*kept, ""]))
        _wait_until_removed(server, "viewer")
        line.cut()
        viewer.says("#connection", "session has ended")
        viewer.says("h1", "0 of 3 nodes")
        viewer.page.click("text=Log in again")
        viewer.says("h1", "Log in to see the rollout")

        admin.says("#connection", "Live")
        admin.page.click(".stop summary")
        admin.accessible()
        admin.picture("stop")
        admin.page.click("button.danger")
        assert server.popen.wait(PATIENCE) == 3, "not every node has every image"
        admin.says("#connection", "Ended")
        admin.says(".lead", "admin asked for it")
        admin.clean()
        viewer.clean()


def test_a_filter_and_a_stop_that_is_refused(server: Mayfly, new_tab: NewTab) -> None:
    """The cursor stays at its node, not at its row; a stop without a session is not silent."""
    tab = new_tab(server.url)
    tab.log_in("admin", PASSWORD)
    title = "[aria-label='One node'] h2"
    tab.page.focus(".grid-scroll")
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        tab.page.keyboard.press(key)
    tab.says(title, NODES[1])
    for text, keys, node in (
        (NODES[2], ("Enter",), NODES[1]),  # its own is hidden, and so is the cursor
        (NODES[2], ("ArrowDown", "Enter"), NODES[2]),
        ("", ("ArrowUp", "Enter"), NODES[1]),
    ):
        tab.page.fill("#filter", text)
        tab.page.focus(".grid-scroll")
        for key in keys:
            tab.page.keyboard.press(key)
        tab.page.wait_for_timeout(100)
        poll(lambda wanted=node: tab.text(title) == wanted, lambda: tab.text(title))
    (server.root.parent / "auth/htpasswd").write_text("")
    _wait_until_removed(server, "admin")
    tab.page.click(".stop summary")
    tab.page.click("button.danger")
    tab.says(".stop [role=alert]", "The server refused to stop (401)")
    assert server.running
    tab.accessible()
    tab.clean()
