"""How a rollout ends, as a browser sees it: a stop of a busy server, and the report afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.browser.conftest import NewTab, Tab
from tests.browser.test_rollout import LAYER, NODES, PASSWORD, Node, beside
from tests.browser.test_rollout import server as server
from tests.support.commands import run_mayfly
from tests.support.process import PATIENCE, Mayfly


def plain_login(tab: Tab, user: str) -> None:
    """Log in without scripts."""
    tab.send_login(user, PASSWORD)
    tab.says("table.matrix", NODES[0])


def test_a_stop_while_nodes_pull(server: Mayfly, new_tab: NewTab) -> None:
    """The page asks first, shows the drain while pulls finish, and then the end."""
    tab = new_tab(server.url)
    tab.log_in("admin", PASSWORD)
    (pulling,) = beside(lambda: Node(server, NODES[0], LAYER // 4).pull("team/api"))
    tab.says("main", "pulling")
    tab.page.click(".stop summary")
    tab.page.keyboard.press("Escape")
    tab.says(".stop form", "Stop this registry?")
    assert server.running
    assert tab.text(".facts") and "draining" not in tab.text(".facts")
    tab.page.click("button.danger")
    tab.says(".facts", "draining: admin asked for it")
    tab.picture("draining")
    tab.accessible()
    pulling.join(PATIENCE)
    assert server.popen.wait(PATIENCE) == 3, server.describe()
    tab.says("#connection", "Ended")
    tab.says(".lead", "admin asked for it")
    tab.says("h1", "0 of 3 nodes have every image")
    assert tab.page.locator(".stop").count() == 0
    tab.accessible()
    tab.picture("stopped")
    tab.clean()


def test_a_stop_without_scripts(server: Mayfly, new_tab: NewTab) -> None:
    """The form asks first, and says what happens."""
    tab = new_tab(server.url, java_script_enabled=False)
    plain_login(tab, "admin")
    tab.picture("plain")
    phone = new_tab(server.url, java_script_enabled=False, viewport={"width": 390, "height": 844})
    plain_login(phone, "viewer")
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    phone.picture("plain-phone")
    assert not tab.page.locator("button.danger").is_visible()
    tab.page.click(".stop summary")
    tab.page.click("button.danger")
    tab.says("h1", "The registry is stopping")
    tab.picture("stopping")
    assert server.popen.wait(PATIENCE) == 3
    tab.clean()


def test_the_report_of_a_server_that_is_gone(
    server: Mayfly, new_tab: NewTab, tmp_path: Path
) -> None:
    """It is one file: readable without server, scripts or network, on a desk, a phone and paper."""
    node = Node(server, NODES[0], LAYER * 100)
    for name in ("team/api", "team/web", "team/db"):
        node.pull(name)
    Node(server, NODES[1], LAYER * 100).pull("team/api")
    server.popen.terminate()
    assert server.popen.wait(PATIENCE) == 3
    page = tmp_path / "report.html"
    run_mayfly("report", "--state-dir", server.state_dir, "--html", page)
    options: dict[str, dict[str, Any]] = {
        "report": {},
        "report-dark": {"color_scheme": "dark"},
        "report-phone": {"viewport": {"width": 390, "height": 844}},
    }
    for name, chosen in options.items():
        tab = new_tab("file://", **chosen)
        tab.page.context.set_offline(True)
        tab.page.goto(f"file://{page}")
        tab.says("h1", "1 of 3 nodes has every image")
        for node_name in NODES:
            tab.says("main", node_name)
        tab.accessible()
        tab.picture(name)
        if name == "report":
            tab.page.emulate_media(media="print")
            tab.picture("report-print")
        tab.clean()
