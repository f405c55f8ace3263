"""Functions that read text accept or refuse it, however deeply it is nested (see `growth`)."""

from __future__ import annotations

import pytest

from tests.hostile import growth

FUNCTIONS = growth.pure_functions()


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "._" not in name])
def test_nesting(name: str) -> None:
    """However deep a text nests, no function that others call runs out of stack."""
    function = FUNCTIONS[name]
    for repeated in ("[", '{"a":', "(", "*/"):
        for parameter, read in growth.readers(function):
            try:
                read("", repeated, "", 20_000)
            except RecursionError:
                pytest.fail(f"{name}({parameter}): {repeated!r} again and again")
            except Exception:
                continue


def test_effects_are_there() -> None:
    """No name of a function is left in the list after the function is gone."""
    assert set(growth.EFFECTS) <= {name for name, _ in growth.functions()}
