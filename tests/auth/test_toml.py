"""TOML with a bound on the parts of a key."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.auth.toml import MAX_PARTS, loads

DEEP = ".".join(["a"] * (MAX_PARTS + 1))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{DEEP} = 1", 1),
        (f"\n[{DEEP}]", 2),
        (f"[[{DEEP}]]", 1),
        (f"x = {{ {DEEP} = 1 }}", 1),
        (f"x = [1, {{ {DEEP.replace('.', ' . ')} = 1 }}]", 1),
        (DEEP.replace("a", '"a"') + " = 1", 1),
        (DEEP.replace("a", r'"\""') + " = 1", 1),
        (DEEP.replace("a", "'a\\'") + " = 1", 1),
        (f'x = [""" " \n \' # """, {{ {DEEP} = 1 }}]', 2),
        (f'x = ["""a"""", {{ {DEEP} = 1 }}]', 1),
        (f"x = ['''a''''', {{ {DEEP} = 1 }}]", 1),
        (f'# """\n{DEEP} = 1', 2),
        (f'x = \'"""\'\n{DEEP} = 1', 2),
    ],
)
def test_deep_key(text: str, line: int) -> None:
    """It is refused wherever it stands, and the error names its line."""
    with pytest.raises(ValueError, match=f"line {line}: a key has more than {MAX_PARTS} parts"):
        loads(text)
    assert tomllib.loads(text)


@pytest.mark.parametrize("quote", ['"', "'", '"""\n', "'''\n"])
def test_text_is_no_key(quote: str) -> None:
    """Dots in strings and comments are not counted."""
    text = f"x = {quote}{DEEP}{quote.strip()} # {DEEP}\n{DEEP[2:]} = 1\n"
    assert loads(text) == tomllib.loads(text)


@given(st.text("ab.'\"\\#\n=[]{}, ", max_size=40))
def test_others_are_read_as_ever(text: str) -> None:
    """What has no deep key is read, or refused, as by the library."""
    try:
        expected = tomllib.loads(text)
    except ValueError as error:
        with pytest.raises(ValueError) as refused:
            loads(text)
        assert str(refused.value) == str(error)
    else:
        assert loads(text) == expected
