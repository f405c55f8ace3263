"""JSON of every shape: of values, and as text that no encoder would write."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

TEXTS = st.text(max_size=12) | st.sampled_from(["\ud800", "\0", "a\nb", "\u202e", "x" * 300, "-"])
"""Lone surrogates among them: JSON can say them, UTF-8 cannot."""

NUMBERS = st.integers() | st.sampled_from([2**63, -1, 10**400, 1e308, 2.0]) | st.floats()

ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def texts_of(value: Any) -> st.SearchStrategy[str]:
    """A value as JSON text, some of it said twice, nested deeply, or not JSON at all."""
    plain = json.dumps(value)

    def nested(depth: int) -> str:
        return plain.replace("null", "[" * depth + "]" * depth, 1)

    def twice(name: str) -> str:
        return plain.replace("{", '{"' + name + '": 1, "' + name + '": 2, ', 1)

    def number(digits: int) -> str:
        return plain.replace("2", "9" * digits, 1)

    return st.one_of(
        st.just(plain),
        st.integers(1, 5000).map(nested),
        st.sampled_from(["schemaVersion", "layers", "x", "mediaType"]).map(twice),
        st.integers(1, 6000).map(number),
        st.integers(0, len(plain)).map(lambda at: plain[:at]),
        st.tuples(st.integers(0, len(plain)), st.text(max_size=5)).map(
            lambda cut: plain[: cut[0]] + cut[1] + plain[cut[0] :]
        ),
    )
