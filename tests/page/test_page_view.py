"""Views of the page, as the server makes them."""

from __future__ import annotations

from typing import Any

import pytest

from mayfly.registry import text
from mayfly.registry.control.page_view import PageView
from mayfly.registry.page.view import MAX_LISTED
from tests.support.fakes import FakeClock, FakeStore
from tests.support.lifecycle_hooks import lifecycle_hooks

REFUSED = {"user": "a\nb", "address": "192.0.2.1", "requests": 1}


def status(**changed: Any) -> dict[str, Any]:
    """What the page needs of the state of a server."""
    made: dict[str, Any] = dict.fromkeys(("state", "ending", "url", "version"), "text")
    made |= {"started_unix": 0.0, "bytes_in": 0, "bytes_out": 0}
    return made | {"ends": [], "corrupt": [], "warnings": [], "denied": []} | changed


def page(store: FakeStore, **changed: Any) -> PageView:
    """Views of a server that waits for no nodes."""
    observer = lifecycle_hooks().observer
    return PageView(lambda: status(**changed), observer, None, store, FakeClock())


async def test_only_what_is_shown_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a list as long as clients made it the first entries."""
    seen = []

    def escaped(document: Any) -> Any:
        seen.append(len(document["denied"]))
        return text.escaped(document)

    monkeypatch.setattr("mayfly.registry.control.page_view.escaped", escaped)
    made = await page(FakeStore(), denied=[REFUSED] * 10 * MAX_LISTED).look()
    assert seen == [MAX_LISTED]
    assert len(made.run["denied"]) == MAX_LISTED
    assert "\n" not in made.run["denied"][0]["user"]
