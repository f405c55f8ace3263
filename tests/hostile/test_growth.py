"""Whatever reads bytes of others takes time that grows with their number alone (see `growth`)."""

from __future__ import annotations

import re
from itertools import islice

import pytest

from tests.hostile import growth
from tests.hostile.growth import Subject, function_subjects, grown, pattern_subject

DYNAMIC = {
    "mayfly.auth.globs.parse_glob": "`test_globs` is its test",
    "mayfly.registry.upstream.lists._pattern": "the operator's own patterns",
    "mayfly.registry.upstream.lists._read_oc_mirror": "the same",
    "mayfly.registry.upstream.lists.choose_tags": "the same",
}
"""Functions that make a pattern at run time, and why they may."""

PATTERNS = {subject.name: subject for subject in growth.patterns()}
QUADRATIC_SECONDS = 0.5
"""After which what is quadratic on purpose is not waited for: many times what is linear takes."""

FUNCTIONS = growth.pure_functions()

pytestmark = pytest.mark.alone


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name: str) -> None:
    """No pattern takes time that grows with the square of a text, or faster."""
    assert list(islice(grown(PATTERNS[name]), 3)) == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    """Nor does any function that reads a text."""
    for subject in function_subjects(name, FUNCTIONS[name]):
        assert list(islice(grown(subject), 3)) == [], subject.name


def test_patterns_made_at_run_time() -> None:
    """All that are made of others' text have a test of their own."""
    assert set(growth.unreadable_patterns()) == set(DYNAMIC)


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (rb"\r\n(x):[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", "findall"),
        (r"[0-9]+x", "search"),
        (r"(a+)+$", "match"),
        (r"(?:a|aa)+b", "fullmatch"),
        (r" +$", "sub"),
        (r"(\.(oci|tar))+$", "sub"),
        (r"\s*,\s*;", "split"),
    ],
)
def test_quadratic_patterns_are_found(pattern: str | bytes, method: str) -> None:
    """The inputs made of a pattern show what is wrong with it."""
    subject = pattern_subject("x", re.compile(pattern), method)
    assert next(grown(subject, QUADRATIC_SECONDS), None) is not None


def _stripped_one_by_one(text: str) -> str:
    while text.startswith(" "):
        text = text[1:]
    return text


def test_quadratic_functions_are_found() -> None:
    """Nor does a function hide that copies the rest of a text for each of its characters."""

    def read(prefix: str, repeated: str, suffix: str, count: int) -> None:
        _stripped_one_by_one(prefix + repeated * count * 20 + suffix)

    assert next(grown(Subject("x", read, (("", " ", ""),)), QUADRATIC_SECONDS), None) is not None


def test_growth_is_measured() -> None:
    """Also what is quadratic and ends soon is found, by the ratio of its times."""
    subject = pattern_subject("x", re.compile("[0-9]+x"), "search")
    assert any(" times for " in found for found in grown(subject, guard=60.0))
