"""The budget that all connections' request heads share."""

from __future__ import annotations

from mayfly.registry.http.heads import HeadBudget


class Kept:
    """A connection, as the budget sees it."""

    def __init__(self, *, serving: bool = False) -> None:
        self.serving = serving
        self.is_cut = False

    def drop_heads(self) -> None:
        self.is_cut = True


def test_those_kept_for_longest_make_room() -> None:
    """The first that is not being served goes first, and no more than is needed."""
    budget = HeadBudget(100)
    busy, old, young, new = Kept(serving=True), Kept(), Kept(), Kept()
    for one in (busy, old, young):
        assert budget.record(one, 30)
    assert budget.record(old, 35)  # that it grows does not make it younger
    assert budget.record(new, 30)
    assert [one.is_cut for one in (busy, old, young, new)] == [False, True, False, False]
    assert budget.used == 90


def test_no_room() -> None:
    """Nobody who is being served is cut; a head that does not fit is refused."""
    budget = HeadBudget(100)
    busy, new = Kept(serving=True), Kept()
    assert budget.record(busy, 90)
    assert not budget.record(new, 20)
    assert (busy.is_cut, budget.used) == (False, 90)
    assert budget.record(busy, 0)
    assert budget.record(new, 20)
    assert budget.record(new, 0)
    assert budget.used == 0
