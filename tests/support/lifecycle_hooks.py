"""Lifecycle hooks for a registry inside a test: they count, admit every request, and never end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mayfly.registry.activity import Activity
from mayfly.registry.clock import SystemClock
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.manifest_graph import ManifestGraph
from mayfly.registry.coverage.observer import Observer
from mayfly.registry.coverage.pulls import Pulls
from mayfly.registry.lifecycle.drain import Drain
from mayfly.registry.page.feed import Feed
from mayfly.registry.page.view import View
from tests.support.views import view


@dataclass
class LifecycleHooks:
    """See `registry.api.context.LifecycleHooks`."""

    activity: Activity
    observer: Observer
    drain: Drain
    page: Feed
    stopped: list[str]

    async def status(self) -> dict[str, Any]:
        """A small one: the real one is made by `registry.control.status_service`."""
        return {"state": "serving", "requests": self.activity.requests}

    def feed(self) -> Feed:
        return self.page

    def stop(self, text: str) -> None:
        self.stopped.append(text)


def lifecycle_hooks() -> LifecycleHooks:
    """The real parts, without an end; to be made in the running event loop."""
    clock = SystemClock()
    activity = Activity(clock.now)
    ledger = Ledger(None, clock)
    pulls = Pulls(clock.now, ledger.changed)
    observer = Observer(
        activity, pulls, ledger, ManifestGraph(lambda repository, digest: None), clock
    )
    drain = Drain(activity, pulls, observer.transfers, clock)
    return LifecycleHooks(activity, observer, drain, Feed(_look), [])


async def _look() -> View:
    return view()
