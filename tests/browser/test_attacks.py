"""Attacks on the rollout page in a real browser: script in names, frames, and other sites."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mayfly.registry.access.sessions import COOKIE
from mayfly.registry.control.report_page import render
from mayfly.registry.page.view import Failed, NodeView, Proof, Pulling, View
from mayfly.registry.text import line
from tests.browser.conftest import NewTab, Tab
from tests.browser.pages import Pages, log_in, pages
from tests.control.test_report import REPORT
from tests.page.test_html import ATTACKS
from tests.security.registries import password_of
from tests.support.beside import Request, answering
from tests.support.views import view


def attacked() -> View:
    """A view whose every text is an attack."""
    texts = [line(one) for one in (*ATTACKS, "__proto__", "constructor", "hasOwnProperty")]
    count = len(texts)
    states = ("fupsmciba" * count)[:count]
    nodes = {
        text: NodeView(
            states,
            tuple(Pulling(place, 1, 9) for place, one in enumerate(states) if one == "u"),
            tuple(Failed(place, text) for place, one in enumerate(states) if one == "f"),
            Proof(1_700_000_000, 1, 1, 1),
        )
        for text in texts
    }
    text = " ".join(texts)
    made = view(
        *texts,
        nodes=nodes,
        ending=None,
        url=f"http://x/{text}",
        ends=[{"text": text, "at": None}],
        corrupt=texts,
        warnings=texts,
        denied=[{"user": one, "address": one, "requests": 1} for one in texts],
        version=text,
    )
    made.served["sources"] = texts
    return made


@pytest.fixture
def served(workspace: Path, request: pytest.FixtureRequest) -> Iterator[Pages]:
    """A page of an attacker's names."""
    with pages(workspace / request.node.name, attacked()) as made:
        yield made


def harmless(tab: Tab) -> None:
    """Nothing of what names say has become an element, or has run."""
    found = tab.page.evaluate(
        "[...document.querySelectorAll('img, iframe, script:not([src]), object, embed')].length"
    )
    assert found == 0
    assert (
        tab.page.evaluate(
            "[...document.querySelectorAll('*')].flatMap("
            "(one) => [...one.attributes]).filter("
            "(one) => one.name.startsWith('on')).length"
        )
        == 0
    )
    tab.clean()


def test_names_are_text(served: Pages, new_tab: NewTab) -> None:
    """Of images, users, nodes and agents, wherever the page shows them, also once it is saved."""
    tab = new_tab(served.origin)
    log_in(tab)
    tab.says(".problems", "<script>alert(1)</script>")
    tab.says(".problems", "__proto__")
    scroller = tab.page.locator(".grid-scroll")
    scroller.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowDown", "Enter"):
        tab.page.keyboard.press(key)
    tab.says("[aria-label='One node'] .states", "alert(1)")
    scroller.hover(position={"x": 400, "y": 250})
    tab.says(".tip", "")
    for text in ("<img", "constructor", "zzz", ""):
        tab.page.fill("#filter", text)
    tab.accessible()
    harmless(tab)
    plain = new_tab(served.origin, java_script_enabled=False)
    plain.send_login("admin", password_of("admin"))
    plain.says(".plain", "alert(1)")
    plain.clean()
    served.view = view(*(image["name"] for image in served.view.served["images"]), state="draining")
    served.drain()
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    harmless(tab)


def test_names_in_a_report_are_text(new_tab: NewTab, tmp_path: Path) -> None:
    """Its page runs no script, even where it stands in it."""
    text = json.dumps(REPORT)
    for attack in ATTACKS:
        hostile = json.loads(text.replace("node-a", json.dumps(attack)[1:-1]))
        file = tmp_path / "report.html"
        file.write_text(render(hostile), encoding="utf-8", errors="replace")
        tab = new_tab(f"file://{tmp_path}")
        tab.page.goto(f"file://{file}")
        tab.says("main", "node-b")
        harmless(tab)
        tab.page.context.close()


EVIL = """<!doctype html><title>evil</title>
<iframe id="frame" src="{target}/"></iframe>
<img src="{target}/mayfly/v1/stop">
<form id="form" method="post" action="{target}/mayfly/v1/{action}" target="other">
<input name="username" value="admin"><input name="password" value="{password}"></form>
<iframe name="other"></iframe>
"""

FETCHES = """
async (target) => {
  const found = [];
  const tries = [
    ["/mayfly/v1/stop", {method: "POST", mode: "no-cors", credentials: "include"}],
    ["/mayfly/v1/stop", {method: "POST", credentials: "include"}],
    ["/mayfly/v1/stop", {method: "POST", credentials: "include", headers: {"X-A": "1"}}],
    ["/mayfly/v1/status", {credentials: "include"}],
    ["/mayfly/v1/events", {credentials: "include"}],
    ["/metrics", {credentials: "include"}],
    ["/", {credentials: "include", headers: {Accept: "text/html"}}],
    ["/mayfly/v1/page/page.js", {credentials: "include"}],
  ];
  for (const [path, options] of tries) {
    try {
      const response = await fetch(target + path, options);
      found.push(response.type === "opaque" ? "opaque" : await response.text());
    } catch (error) {
      found.push("refused");
    }
  }
  try {
    await new Promise((done, failed) => {
      const source = new EventSource(target + "/mayfly/v1/events", {withCredentials: true});
      source.onmessage = done;
      source.onerror = failed;
    });
    found.push("read");
  } catch (error) {
    found.push("refused");
  }
  return found;
}
"""


@contextmanager
def evil_site(page: str) -> Iterator[tuple[str, list[str]]]:
    """Serve a page on a port of its own, which it yields, with the cookies that it gets."""
    cookies: list[str] = []

    def answer(request: Request) -> None:
        cookies.append(request.headers.get("Cookie", ""))
        request.reply(200, page.encode(), ("Content-Type", "text/html"))

    with answering(answer) as host:
        yield host.rpartition(":")[2], cookies


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"], ids=["cross-site", "same-site"])
@pytest.mark.parametrize("action", ["stop", "logout", "session"])
def test_other_sites(host: str, action: str, served: Pages, new_tab: NewTab) -> None:
    """Whatever they post, fetch or frame in the browser of an admin, they do and see nothing.

    A page of another port has the same site, so that the browser sends it the cookie.
    """
    tab = new_tab(served.origin)
    log_in(tab)
    password = password_of("developer")
    page = EVIL.format(target=served.origin, action=action, password=password)
    with evil_site(page) as (port, cookies):
        other = Tab(tab.page.context.new_page(), f"http://{host}:{port}")
        other.page.goto(other.origin)
        if host == "localhost":
            assert not any(COOKIE in one for one in cookies)
        framed = [frame for frame in other.page.frames if frame.url.startswith(served.origin)]
        for frame in framed:
            assert frame.locator("form, h1").count() == 0, "it is shown in a frame"
        with other.page.expect_response(lambda response: action in response.url) as answer:
            other.page.evaluate("document.querySelector('#form').submit()")
        assert answer.value.status == 403
        found = other.page.evaluate(FETCHES, served.origin)
        assert found == ["opaque", *["refused"] * (len(found) - 1)]
        if framed or host == "localhost":
            assert any("frame-ancestors" in one for one in other.faults), other.faults
        other.page.close()
    assert served.registry.hooks.stopped == []
    tab.page.reload()
    tab.says("#connection", "Live")
    tab.says(".user", "admin")


def test_the_cookie(served: Pages, new_tab: NewTab) -> None:
    """No script reads it; it has its attributes, and the path of the registry."""
    tab = new_tab(served.origin)
    log_in(tab)
    (cookie,) = tab.page.context.cookies()
    assert (cookie["name"], cookie["path"]) == (COOKIE, "/")
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Strict")
    assert cookie["domain"] == "127.0.0.1"
    assert tab.page.evaluate("document.cookie") == ""
    tab.clean()


def test_nothing_is_kept(served: Pages, new_tab: NewTab) -> None:
    """After a logout neither the back button nor a cache shows the rollout."""
    tab = new_tab(served.origin)
    log_in(tab)
    kept: dict[str, str] = {}
    tab.page.on(
        "response",
        lambda one: kept.update({one.url: one.headers.get("cache-control", "")}),
    )
    tab.page.reload()
    tab.says("#connection", "Live")
    assert {kept[f"{served.origin}/"], kept[f"{served.origin}/mayfly/v1/events"]} == {"no-store"}
    tab.page.click("text=Log out")
    tab.says("h1", "Log in to see the rollout")
    assert tab.page.context.cookies() == []
    tab.page.go_back()
    tab.says("h1", "Log in to see the rollout")
    tab.clean()


SHORT = 12
"""Seconds: some streams one after the other, on a busy machine, too."""


def test_a_session_that_expires(
    served: Pages, new_tab: NewTab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page keeps what it shows and says so; as long as it is open and online it is renewed."""
    monkeypatch.setattr("mayfly.auth.tokens.SESSION_LIFETIME", SHORT)
    monkeypatch.setattr("mayfly.registry.page.feed.STREAM_SECONDS", 1.0)
    monkeypatch.setattr("mayfly.registry.page.feed.QUIET_SECONDS", 0.5)
    tab = new_tab(served.origin)
    log_in(tab)
    tab.page.wait_for_timeout(1000 * (SHORT + 3))
    tab.says("#connection", "Live")
    assert len(tab.last_event_ids) > 2
    title = tab.text("h1")
    tab.page.context.set_offline(True)
    tab.says("#connection", "does not answer")
    tab.page.wait_for_timeout(1000 * (SHORT + 3))
    tab.page.context.set_offline(False)
    tab.says("#connection", "Your session has ended.")
    assert tab.text("h1") == title
    tab.accessible()
    tab.page.click("text=Log in again")
    tab.says("h1", "Log in to see the rollout")
    assert tab.foreign == []
