"""A lifeline for a registry inside a test: it counts and lets everything pass, and never ends."""

from __future__ import annotations

from dataclasses import dataclass

from registry.lifetime.activity import Activity
from registry.lifetime.clock import SystemClock
from registry.lifetime.contents import Contained
from registry.lifetime.drain import Drain
from registry.lifetime.ledger import Ledger
from registry.lifetime.observer import Observer
from registry.lifetime.pulls import Pulls


@dataclass
class Lifeline:
    """See `registry.context.Lifeline`."""

    activity: Activity
    observer: Observer
    drain: Drain


def lifeline() -> Lifeline:
    """The real parts, without an end; to be made in the running event loop."""
    clock = SystemClock()
    activity = Activity(clock.now)
    ledger = Ledger(None, clock)
    pulls = Pulls(clock.now, ledger.changed)
    observer = Observer(activity, pulls, ledger, Contained(lambda repository, digest: None), clock)
    return Lifeline(activity, observer, Drain(activity, pulls, observer.transfers, clock))
