"""What the page says of pulls: bytes, rate, time left and reasons; and pages past the bound."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from mayfly.registry.page import feed as feeds
from mayfly.registry.page.view import Failed, NodeView, Pulling, View
from tests.browser.conftest import NewTab
from tests.browser.pages import MIB, Pages, images, log_in, pages
from tests.support.beside import repeating
from tests.support.process import poll
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


def moving(served: Pages) -> AbstractContextManager[None]:
    """Let the pull continue while the block runs."""
    began = time.monotonic()

    def move() -> None:
        served.view = pulling(RATE * (time.monotonic() - began))

    return repeating(move, 0.05)


def test_rate_and_time_left(served: Pages, new_tab: NewTab) -> None:
    """They are those of the bytes that move; a pull that stands still has neither."""
    tab = new_tab(served.origin)
    log_in(tab)

    def is_right() -> bool:
        found = AMOUNT.search(tab.text(".row .amount"))
        if found is None:
            return False
        done, rate = float(found[1]), float(found[2])
        left = float(found[3] or 60 * int(found[4]))
        return RATE / 2 < rate < RATE * 2 and 0.5 < left / ((TOTAL - done) / rate) < 1.7

    with moving(served):
        # The first rates are those of a part of a second.
        poll(is_right, lambda: tab.text(".row .amount"))
        tab.says(".facts", "MiB/s, 0 transfers")
    looks = count(1)

    def stands_still() -> bool:
        served.view = replace(served.view, run=run(wanted=3, covered=0, bytes_in=next(looks)))
        text = tab.text(".row .amount")
        return "left" not in text and "/s" not in text

    poll(stands_still, lambda: tab.text(".row .amount"))
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
