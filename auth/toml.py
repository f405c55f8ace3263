"""TOML in time that grows with its size alone.

`tomllib` takes time that grows with the square of a dotted key's parts: 80 KB of them take most of
a minute. Nothing that Mayfly reads has keys of more than a few parts, so deep ones are refused
before it sees them.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

MAX_PARTS = 32
"""Most parts of a dotted key."""

_OPAQUE = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"{3,5})?'
    r"|'''(?:[^']|'(?!''))*+(?:'{3,5})?"
    r'|"(?:[^"\\\n]|\\[^\n])*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+",
    re.DOTALL,
)
"""A string or a comment, closed or not: text in it is no key."""

_DEEP = re.compile(
    rf"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++(?:[ \t]*+\.[ \t]*+[A-Za-z0-9_-]++){{{MAX_PARTS}}}"
)


def loads(text: str) -> dict[str, Any]:
    """Read a TOML document.

    Raises:
        ValueError: it is none, or has a key of more than `MAX_PARTS` parts.
    """
    # A quoted part of a key counts like a bare one; the lines stay as they are.
    bare = _OPAQUE.sub(lambda found: "s" + "\n" * found[0].count("\n"), text)
    if (deep := _DEEP.search(bare)) is not None:
        line = bare.count("\n", 0, deep.start()) + 1
        raise ValueError(f"line {line}: a key has more than {MAX_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
