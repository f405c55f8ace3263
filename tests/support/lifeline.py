"""A lifeline for a registry inside a test: it counts and lets everything pass, and never ends."""

from __future__ import annotations

from dataclasses import dataclass

from mayfly.registry.activity import Activity
from mayfly.registry.clock import SystemClock
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.manifest_graph import ManifestGraph
from mayfly.registry.coverage.observer import Observer
from mayfly.registry.coverage.pulls import Pulls
from mayfly.registry.lifecycle.drain import Drain


@dataclass
class Lifeline:
    """See `registry.api.context.Lifeline`."""

    activity: Activity
    observer: Observer
    drain: Drain


def lifeline() -> Lifeline:
    """The real parts, without an end; to be made in the running event loop."""
    clock = SystemClock()
    activity = Activity(clock.now)
    ledger = Ledger(None, clock)
    pulls = Pulls(clock.now, ledger.changed)
    observer = Observer(
        activity, pulls, ledger, ManifestGraph(lambda repository, digest: None), clock
    )
    return Lifeline(activity, observer, Drain(activity, pulls, observer.transfers, clock))
