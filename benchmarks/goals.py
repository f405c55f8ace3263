"""The goals of Mayfly, and whether a run reached them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import catalog, looking, making, rows
from benchmarks.bench import CPU, DURABLE, PEAK, RATE, Figures
from benchmarks.peers import RIVALS

Results = dict[str, dict[str, list[Figures]]]
"""Row → registry → the figures of each round."""


@dataclass(frozen=True)
class Goal:
    """One bound on one figure of Mayfly.

    Attributes:
        limit: of the figure itself, or of its ratio to the same figure of ``against``.
        most: the limit is an upper one.
        against: ``("row", "registry")``; a registry of ``"best"`` is the best of the rivals.
            None for an absolute limit.
    """

    row: str
    figure: str
    limit: float
    most: bool = False
    against: tuple[str, str] | None = None

    @property
    def text(self) -> str:
        sign = "<=" if self.most else ">="
        if self.against is None:
            return f"{self.figure} {sign} {self.limit:g}"
        row, registry = self.against
        other = "the best peer's" if registry == "best" else f"{registry}'s"
        if row != self.row:
            other += f" {row}"
        return f"{self.figure} {sign} {self.limit:g} x {other}"

    def met(self, value: float) -> bool:
        return value <= self.limit if self.most else value >= self.limit


@dataclass(frozen=True)
class Verdict:
    """A goal against a run; ``value`` is None if the run lacks its figures."""

    goal: Goal
    value: float | None
    rival: str = ""

    @property
    def text(self) -> str:
        if self.value is None:
            return "not measured"
        return "met" if self.goal.met(self.value) else "missed"


def _beside(row: str, figure: str, limit: float, most: bool = False) -> Goal:
    return Goal(row, figure, limit, most, (row, "best"))


GOALS = (
    _beside("push-patch", RATE, 1.5),
    _beside("push-patch-4", RATE, 1.3),
    _beside("push-put", RATE, 1.2),
    _beside("push-tls", RATE, 1.5),
    _beside("pull-http", RATE, 1.0),
    _beside("pull-http", CPU, 1.0, most=True),
    _beside("pull-tls", RATE, 1.2),
    _beside("fleet-http", RATE, 1.5),
    _beside("fleet-tls", RATE, 1.2),
    Goal("fleet-bundle", RATE, 0.95, against=("fleet-http", "mayfly")),
    Goal("manifest-get", rows.REQUESTS, 1.0, against=("manifest-get", "olareg")),
    Goal("manifest-get", rows.REQUEST_CPU, 60, most=True),
    Goal("manifest-head", rows.REQUESTS, 1.0, against=("manifest-head", "olareg")),
    Goal("tokens", rows.REQUESTS, 0.5, against=("manifest-get", "mayfly")),
    Goal("handshakes", rows.HANDSHAKE_CPU, 500, most=True),
    Goal("pages", looking.KEPT, 98),
    Goal("pages", looking.GREW, 20, most=True),
    Goal("fleet-http", PEAK, 64, most=True),
    Goal("fleet-bundle", PEAK, 64, most=True),
    Goal("fleet-tls", PEAK, 96, most=True),
    Goal("start", rows.START, 250, most=True),
    Goal("start", PEAK, 32, most=True),
    Goal("catalog", catalog.PAGE + catalog.GROWTH, 3, most=True),
    Goal("catalog", catalog.LAST_PAGE + catalog.GROWTH, 3, most=True),
    Goal("catalog", catalog.TAGS_PAGE + catalog.GROWTH, 1.5, most=True),
    Goal("catalog", catalog.START + catalog.GROWTH, 1.5, most=True),
    *(
        goal
        for row in ("create-http", "create-tls", "create-olareg")
        for goal in (
            _beside(row, RATE, 1.0),
            _beside(row, DURABLE, 1.0),
            _beside(row, making.UNPACKED, 1.0),
            Goal(row, PEAK, 96, most=True),
        )
    ),
    *(
        goal
        for row in ("copy", "copy-synced")
        for goal in (_beside(row, RATE, 1.0), Goal(row, PEAK, 96, most=True))
    ),
)


def median(rounds: Iterable[Figures], figure: str) -> float | None:
    """The median of a figure over the rounds that have it."""
    found = [figures[figure] for figures in rounds if figure in figures]
    return statistics.median(found) if found else None


def ratio(one: list[Figures], other: list[Figures], figure: str) -> float | None:
    """Median over the rounds of how many times the other's figure one's is.

    Each round's own ratio is taken first: a load that slows the machine for a while slows both.
    """
    pairs = [
        a[figure] / b[figure]
        for a, b in zip(one, other, strict=False)
        if figure in a and b.get(figure)
    ]
    return statistics.median(pairs) if pairs else None


def best(results: Results, row: str, figure: str, most: bool) -> str:
    """The rival whose figure is the highest, or with ``most`` the lowest; empty if none ran."""
    found = {
        name: value
        for name in RIVALS
        if (value := median(results.get(row, {}).get(name, []), figure)) is not None
    }
    if not found:
        return ""
    return (min if most else max)(found, key=lambda name: found[name])


def judge(goal: Goal, results: Results) -> Verdict:
    """A goal against the measurements."""
    own = results.get(goal.row, {}).get("mayfly", [])
    if goal.against is None:
        return Verdict(goal, median(own, goal.figure))
    row, rival = goal.against
    if rival == "best":
        rival = best(results, row, goal.figure, goal.most)
    other = results.get(row, {}).get(rival, [])
    return Verdict(goal, ratio(own, other, goal.figure), rival)
