"""Ranges of versions in lists, as github.com/Masterminds/semver (v3) reads them.

    >=1.2 <2, 1.x || ^3.4      alternatives by ``||``, in one all parts count (comma or blank)
    ~1.2.3  is  >=1.2.3 <1.3   ^1.2.3  is  >=1.2.3 <2   1.2 - 1.4  is  >=1.2 <=1.4

A tag may begin with ``v`` and leave out minor and patch. A pre-release is in a range only if one of
the range's own versions is a pre-release (semver.org 2.0.0, 9 and 11).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

_PART = r"[0-9]{1,18}"
_VERSION = re.compile(
    rf"v?({_PART})(?:\.({_PART}))?(?:\.({_PART}))?"
    r"(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?"
)
_TERM = re.compile(
    rf"(>=|=>|<=|=<|!=|~>|=|>|<|~|\^)?\s*v?({_PART}|[xX*])(?:\.({_PART}|[xX*]))?"
    rf"(?:\.({_PART}|[xX*]))?(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?"
)
_HYPHEN = re.compile(r"\s*(\S+)\s+-\s+(\S+)\s*")
_WILD = frozenset("xX*")

MAX_LENGTH = 1000
"""Characters of a range."""


class Version(NamedTuple):
    """A version, ordered as semver.org has it; the build part does not count."""

    major: int
    minor: int
    patch: int
    pre: tuple[tuple[int, int, str], ...]
    """Parts of the pre-release: (0, number, "") or (1, 0, text); after all of them, none."""

    @property
    def is_pre(self) -> bool:
        """Whether it is a pre-release."""
        return self.pre != _RELEASE


_RELEASE = ((2, 0, ""),)
"""Greater than any part of a pre-release."""

Test = Callable[[Version], bool]


def parse(tag: str) -> Version | None:
    """The version that a tag names; None if it names none."""
    found = _VERSION.fullmatch(tag)
    if found is None:
        return None
    major, minor, patch = (int(part or 0) for part in found.groups()[:3])
    return Version(major, minor, patch, _pre(found[4]))


def in_range(text: str) -> Test:
    """A test of whether a version is in a range.

    Raises:
        ValueError: it is no range; the text says where.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"a range of versions has at most {MAX_LENGTH} characters")
    alternatives = [_all_of(part) for part in text.split("||")]
    return lambda version: any(one(version) for one in alternatives)


def _all_of(text: str) -> Test:
    tests: list[Test] = []
    allows_pre = False
    for part in text.split(","):
        hyphen = _HYPHEN.fullmatch(part)
        if hyphen:
            part = f">={hyphen[1]} <={hyphen[2]}"
        at = 0
        part = part.strip()
        while at < len(part) or not part:
            term = _TERM.match(part, at)
            if term is None or (term.end() < len(part) and not part[term.end()].isspace()):
                raise ValueError(f"{text.strip()!r} is not a range of versions")
            tests.append(_test(term))
            allows_pre = allows_pre or term[5] is not None
            at = term.end()
            while at < len(part) and part[at].isspace():
                at += 1
    return lambda v: (allows_pre or not v.is_pre) and all(test(v) for test in tests)


def _test(term: re.Match[str]) -> Test:
    operator = term[1] or "="
    parts = [part for part in term.groups()[1:4] if part is not None]
    known = [int(part) for part in _until_wild(parts)]
    if not known:
        # * is any version; none is above it, below it or different.
        return lambda version: operator not in (">", "<", "!=")
    major, minor, patch = [*known, 0, 0][:3]
    low = Version(major, minor, patch, _pre(term[5]))
    after = _after(known)
    whole = len(known) == 3
    match operator:
        case ">=" | "=>":
            return lambda v: v >= low
        case "<":
            return lambda v: v < low
        case ">":
            return (lambda v: v > low) if whole else (lambda v: v >= after)
        case "<=" | "=<":
            return (lambda v: v <= low) if whole else (lambda v: v < after)
        case "!=":
            return (lambda v: v != low) if whole else (lambda v: not low <= v < after)
        case "~" | "~>":
            end = _after(known[:2])
        case "^":
            # The first part that is not 0 must stay.
            stay = next((n for n, part in enumerate(known) if part), len(known) - 1)
            end = _after(known[: stay + 1])
        case _:
            if whole:
                return lambda v: v == low
            end = after
    return lambda v: low <= v < end


def _until_wild(parts: list[str]) -> list[str]:
    for number, part in enumerate(parts):
        if part in _WILD:
            return parts[:number]
    return parts


def _after(known: list[int]) -> Version:
    """The lowest version above all that begin with these parts, its pre-releases included."""
    major, minor, patch = [*known[:-1], known[-1] + 1, 0, 0][:3]
    return Version(major, minor, patch, ())


def _pre(text: str | None) -> tuple[tuple[int, int, str], ...]:
    if text is None:
        return _RELEASE
    return tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in text[:256].split(".")
    )
