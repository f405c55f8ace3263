"""What the page says of pulls: bytes, rate, time left and reasons; and pages past the bound."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mayfly.registry.page import feed as feeds
from mayfly.registry.page.view import Failed, NodeView, Pulling, View
from tests.browser.conftest import NewTab, Tab
from tests.browser.pages import MIB, Pages, images, pages
from tests.security.registries import password_of
from tests.support.views import run

TOTAL = 1000
"""MiB of an image."""

RATE = 10
"""MiB a second."""

AMOUNT = re.compile(r"([\d.]+) MiB of 1000.0 MiB, ([\d.]+) MiB/s, (?:(\d+) s|(\d+) min) left")


def pulling(done: float) -> View:
    """One node pulls, one has failed, one has done nothing."""
    why = f"sha256:{'ab' * 32} stopped at 3.0 MiB of 9.0 MiB"
    nodes = {
        "worker-1": NodeView("um", (Pulling(0, int(done * MIB), TOTAL * MIB),)),
        "worker-2": NodeView("mf", failed=(Failed(1, why),)),
        "worker-3": NodeView("mm"),
    }
    return View(run(wanted=3, covered=0, bytes_out=int(done * MIB)), images(2), nodes)


@pytest.fixture
def served(workspace: Path, request: pytest.FixtureRequest) -> Iterator[Pages]:
    """A page of pulls."""
    with pages(workspace / request.node.name, pulling(0)) as made:
        yield made


@contextmanager
def moving(served: Pages) -> Iterator[None]:
    """Let the pull go on."""
    over, began = threading.Event(), time.monotonic()

    def move() -> None:
        while not over.wait(0.05):
            served.view = pulling(RATE * (time.monotonic() - began))

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def log_in(tab: Tab) -> None:
    """As the admin of the made-up registry."""
    tab.log_in("admin", password_of("admin"))


def test_rate_and_time_left(served: Pages, new_tab: NewTab) -> None:
    """They are those of the bytes that move; a pull that stands still has neither."""
    tab = new_tab(served.origin)
    log_in(tab)
    with moving(served):
        tab.says(".row .amount", " left")
        tab.page.wait_for_timeout(4000)
        found = AMOUNT.search(tab.text(".row .amount"))
        assert found, tab.text(".row .amount")
        done, rate = float(found[1]), float(found[2])
        left = float(found[3] or 60 * int(found[4]))
        assert RATE / 2 < rate < RATE * 2
        assert 0.5 < left / ((TOTAL - done) / rate) < 1.7
        tab.says(".facts", "MiB/s, 0 transfers")
    tab.page.wait_for_timeout(7000)
    served.view = replace(served.view, run=run(wanted=3, covered=0, bytes_in=1))
    tab.says(".facts", "1 B")
    assert "left" not in tab.text(".row .amount")
    assert "/s" not in tab.text(".row .amount")
    tab.clean()


def test_reasons(served: Pages, new_tab: NewTab) -> None:
    """A failed pull is listed with its node, image and reason; the cell has all of it."""
    tab = new_tab(served.origin)
    log_in(tab)
    name = served.view.served["images"][1]["name"]
    tab.says(".problems", f"worker-2: {name}: sha256:abababababab… stopped at 3.0 MiB of 9.0 MiB")
    tab.page.focus(".grid-scroll")
    for key in ("Home", "ArrowDown", "ArrowRight"):
        tab.page.keyboard.press(key)
    tab.says("[aria-live=polite]", f"sha256:{'ab' * 32} stopped at")
    tab.page.select_option("#which", "f")
    tab.page.wait_for_timeout(200)
    tab.accessible()
    tab.clean()


def test_pages_past_the_bound_are_live_too(
    served: Pages, new_tab: NewTab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ask every five seconds for what changed."""
    monkeypatch.setattr(feeds, "MAX_STREAMS", 0)
    tab = new_tab(served.origin)
    log_in(tab)
    with moving(served):
        tab.says(".row .amount", " left")
        assert tab.text("#connection") == "Live"
    assert len(tab.last_event_ids) >= 2
    assert tab.last_event_ids[1], "it asks for what it missed alone"
    tab.clean()
