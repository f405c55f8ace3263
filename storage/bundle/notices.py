"""Keeps the first diagnostics of a bundle, and counts those beyond the limit."""

from __future__ import annotations

from collections.abc import Iterable

from mayfly.storage.bundle.diagnostics import Code, Diagnostic
from mayfly.storage.text import counted

MOST = 100
"""Notices that are kept; the others are counted. A bundle may give a hundred thousand."""


class Notices:
    """Diagnostics, the first of which are kept."""

    def __init__(self) -> None:
        self._first: list[Diagnostic] = []
        self._count = 0

    def add(self, one: Diagnostic) -> None:
        """Add one."""
        self._count += 1
        if len(self._first) < MOST:
            self._first.append(one)

    def extend(self, several: Iterable[Diagnostic]) -> None:
        """Add several."""
        for one in several:
            self.add(one)

    def all(self) -> list[Diagnostic]:
        """Return those that are kept, and how many more there are."""
        more = self._count - len(self._first)
        if not more:
            return [*self._first]
        rest = Diagnostic(Code.MORE, f"and {counted(more, 'more notice')}", count=more)
        return [*self._first, rest]
