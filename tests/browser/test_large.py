"""500 nodes with 100 images: as smooth as three, in light and dark, on a desk and in a hand."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import NewTab, Tab
from tests.browser.pages import Pages, fleet, images, log_in, pages
from tests.support.beside import repeating

NODES, IMAGES = 500, 100
SHOWN = os.environ.get("MAYFLY_FIGURES")
"""A file for times of frames, to be looked at."""

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
DARK = {"color_scheme": "dark"}
SIZES: dict[str, dict[str, Any]] = {
    "large": {},
    "large-dark": DARK,
    "large-phone": PHONE,
    "large-phone-dark": PHONE | DARK,
    "large-wide": {"viewport": {"width": 2560, "height": 1300}},
}

SCROLL = """
(milliseconds) => new Promise((done) => {
  const scroller = document.querySelector(".grid-scroll");
  const frames = [];
  const began = performance.now();
  let last = began;
  const step = (now) => {
    frames.push(now - last);
    last = now;
    const share = (now - began) / milliseconds;
    scroller.scrollTop = (scroller.scrollHeight - scroller.clientHeight) * (share % 0.5) * 2;
    scroller.scrollLeft = (scroller.scrollWidth - scroller.clientWidth) * share;
    if (share < 1) requestAnimationFrame(step);
    else done(frames.slice(1));
  };
  requestAnimationFrame(step);
})
"""


@pytest.fixture
def large(workspace: Path, request: pytest.FixtureRequest) -> Iterator[Pages]:
    """A page of many nodes and images."""
    with pages(workspace / request.node.name, fleet(NODES, images(IMAGES))) as made:
        yield made


def open_page(tab: Tab) -> None:
    """Log in, and wait until the nodes are shown."""
    log_in(tab)
    tab.says("h1", f"of {NODES} nodes have every image")


def test_looks(large: Pages, new_tab: NewTab) -> None:
    """axe-core finds nothing, and nothing is wider than the window, whatever its size."""
    for name, options in SIZES.items():
        tab = new_tab(large.origin, **options)
        open_page(tab)
        wide, window = tab.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide <= window, name
        tab.accessible()
        tab.picture(name)
        if name == "large":
            tab.page.emulate_media(media="print")
            tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
            tab.says(".only-print", f"worker-{NODES - 1}.")
            tab.page.evaluate("document.querySelector('.only-print').scrollIntoView()")
            tab.page.wait_for_timeout(500)
            tab.picture("large-print", whole=False)
        tab.clean()
        tab.page.context.close()


def test_scrolling_is_smooth(large: Pages, new_tab: NewTab) -> None:
    """Also while most nodes change each second."""
    tab = new_tab(large.origin)
    open_page(tab)
    quiet = frames(tab)
    served, seconds = large.view.served, count(1)

    def change() -> None:
        large.view = fleet(NODES, served, second=next(seconds))

    with repeating(change, 0.5):
        busy = frames(tab)
    found = {"quiet": summed_up(quiet), "busy": summed_up(busy)}
    if SHOWN:
        Path(SHOWN).write_text(json.dumps(found, indent=2))
    # 60 a second where there is nothing else to do; the bounds are those of a machine that is busy.
    assert found["quiet"]["median"] < 60, found
    assert found["busy"]["median"] < 60, found
    assert found["busy"]["most"] < 1000, found
    tab.clean()


def frames(tab: Tab) -> list[float]:
    """Scroll for some seconds through all of the matrix; the milliseconds of each frame."""
    found: list[float] = tab.page.evaluate(SCROLL, 5000)
    return found


def summed_up(found: list[float]) -> dict[str, Any]:
    """The figures of some frames."""
    ranked = sorted(found)
    return {
        "frames": len(ranked),
        "median": round(statistics.median(ranked), 1),
        "p95": round(ranked[int(len(ranked) * 0.95)], 1),
        "p99": round(ranked[int(len(ranked) * 0.99)], 1),
        "most": round(ranked[-1], 1),
        "over_50_ms": sum(one > 50 for one in ranked),
    }
