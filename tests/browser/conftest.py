"""A real Chromium, driven by playwright. `make test-browser` installs both."""

from __future__ import annotations

import os
import site
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import CACHE, find_program, need

SHOTS = os.environ.get("MAYFLY_SCREENSHOTS")
"""A directory for pictures of the page, to be looked at."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser. Playwright has an event loop in this thread until the module ends."""
    need("chromium", "playwright")
    (packages,) = (CACHE / "playwright/lib").glob("python3*/site-packages")
    site.addsitedir(str(packages))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_program("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


class Tab:
    """A page in the browser, and what it did that it should not.

    Args:
        page: of playwright.
        origin: the only one that it may ask.
    """

    def __init__(self, page: Any, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.foreign: list[str] = []
        self.faults: list[str] = []
        self.last_event_ids: list[str | None] = []
        page.on("request", self._asked)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))
        page.on("console", self._said)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((f"{self.origin}/", "blob:")):
            self.foreign.append(request.url)
        if request.url.endswith("/mayfly/v1/events"):
            self.last_event_ids.append(request.headers.get("last-event-id"))

    def _said(self, message: Any) -> None:
        # A server that is gone, or a session that has ended, is told there, too.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(message.text)

    def log_in(self, user: str, password: str) -> None:
        """Log in, and wait until the page is live."""
        self.send_login(user, password)
        self.says("#connection", "Live")

    def send_login(self, user: str, password: str) -> None:
        """Send the form of a login."""
        self.page.goto(f"{self.origin}/")
        self.page.fill("#username", user)
        self.page.fill("#password", password)
        self.page.click("button.primary")

    def says(self, selector: str, text: str) -> None:
        """Wait until an element has a text."""
        found = self.page.locator(selector).filter(has_text=text)
        found.first.wait_for(timeout=60_000)

    def text(self, selector: str) -> str:
        """The text that is shown in an element."""
        return str(self.page.inner_text(selector))

    def picture(self, name: str, *, whole: bool = True) -> None:
        """Keep a picture of the page, or of its beginning, if somebody wants to look at it."""
        if SHOTS:
            self.page.screenshot(path=Path(SHOTS, f"{name}.png"), full_page=whole)

    def accessible(self) -> None:
        """axe-core finds nothing."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page)
        assert not found.violations_count, found.generate_report()

    def clean(self) -> None:
        """Nothing was asked of another host, and no script failed or was let in."""
        assert self.foreign == []
        assert self.faults == []


NewTab = Callable[..., Tab]


@pytest.fixture
def new_tab(chromium: Any) -> Iterator[NewTab]:
    """Open tabs, each with cookies of its own: new_tab(origin, **options of the context)."""
    contexts = []

    def make(origin: str, **options: Any) -> Tab:
        context = chromium.new_context(**{"viewport": {"width": 1360, "height": 900}, **options})
        contexts.append(context)
        return Tab(context.new_page(), origin)

    yield make
    for context in contexts:
        context.close()
