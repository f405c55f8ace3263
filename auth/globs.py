"""Repository globs: ``team/**``, ``*/cache``.

The rules (those about slashes are gitignore(5)'s):

- ``*`` matches any characters within one part of the name, or none; alone between slashes it
  matches exactly one part: ``team/*`` matches ``team/api``, but not ``team`` or ``team/api/base``.
- ``**`` matches whole parts. At the end it matches one or more: ``team/**`` is everything below
  ``team``. Elsewhere it matches any number: ``**/cache`` matches ``cache``, ``a/cache`` and
  ``a/b/cache``. ``**`` alone matches every repository.
- Other characters match themselves. ``?`` and ``[...]`` are refused: no repository name has them.

Of two globs that match, the more specific has more literal characters; if these are equal, fewer
``**``; then fewer ``*``. Slashes count, but for the one after a ``**``, which may stand for none. A
name without a star is thus more specific than any glob that matches it.

Matching takes time linear in stars times name length: middle pieces are atomic groups, so a
crafted glob and name cannot make it backtrack.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from mayfly.auth.errors import InputInvalid

MAX_LENGTH = 255
"""Longest glob in characters: the longest repository name."""

_TEXT = re.compile(r"[a-z0-9._*/-]+")


@dataclass(frozen=True, slots=True)
class Glob:
    """A checked glob; make one with `parse_glob`."""

    pattern: str
    specificity: tuple[int, int, int] = field(compare=False, repr=False)
    """Sort key: a more specific glob has a greater one."""
    _regex: re.Pattern[str] = field(compare=False, repr=False)

    @property
    def prefix(self) -> str:
        """The text before the first star, with which every matching name begins."""
        return self.pattern.partition("*")[0]

    @property
    def is_name(self) -> bool:
        """Whether it has no star and matches one name only."""
        return "*" not in self.pattern

    def matches(self, repository: str) -> bool:
        """Return whether the glob matches a repository's full name."""
        return self._regex.fullmatch(repository) is not None


def parse_glob(pattern: str) -> Glob:
    """Read a glob.

    Raises:
        InputInvalid: it is longer than `MAX_LENGTH` or outside the grammar above.
    """
    shown = repr(pattern[:MAX_LENGTH])
    if len(pattern) > MAX_LENGTH:
        raise InputInvalid(f"repository glob is longer than {MAX_LENGTH} characters")
    if not _TEXT.fullmatch(pattern):
        raise InputInvalid(
            f"invalid repository glob {shown}: lower-case letters, digits, . _ - / and the "
            "wildcards * and **"
        )
    parts = pattern.split("/")
    if not all(parts):
        raise InputInvalid(f"invalid repository glob {shown}: a part between slashes is empty")
    if any("**" in part and part != "**" for part in parts):
        raise InputInvalid(f"invalid repository glob {shown}: ** must be a whole part, as in a/**")
    if any(one == two == "**" for one, two in pairwise(parts)):
        raise InputInvalid(f"invalid repository glob {shown}: write ** once, not **/**")
    double = parts.count("**")
    stars = pattern.count("*")
    literals = len(pattern) - stars - pattern.count("**/")
    specificity = (literals, -double, -(stars - 2 * double))
    return Glob(pattern, specificity, re.compile(_regex_of(parts)))


def _regex_of(parts: list[str]) -> str:
    """Return the regular expression of a glob, which is split at each ``**``.

    A stretch between two ``**`` can be matched at its first occurrence: if a later one leads to a
    match, so does the first. Each is therefore an atomic group, which is never tried again.
    """
    stretches: list[list[str]] = [[]]
    for is_gap, group in groupby(parts, key=lambda part: part == "**"):
        if is_gap:
            stretches.append([])
        else:
            stretches[-1] = list(group)
    texts = ["/".join(_part_regex(part) for part in stretch) for stretch in stretches]
    if len(texts) == 1:
        return texts[0]
    first, *middle, last = texts
    head = f"{first}/" if first else ""
    body = "".join(f"(?>(?:[^/]+/)*?{text}/)" for text in middle)
    tail = f"(?:[^/]+/)*{last}" if last else "[^/]+(?:/[^/]+)*"
    return head + body + tail


def _part_regex(part: str) -> str:
    """Return the regular expression of one part, by the same argument as `_regex_of`."""
    if part == "*":
        return "[^/]+"
    first, *rest = (re.escape(piece) for piece in part.split("*"))
    if not rest:
        return first
    *middle, last = rest
    pieces = "".join(f"(?>[^/]*?{piece})" for piece in middle)
    return f"{first}{pieces}[^/]*{last}"
