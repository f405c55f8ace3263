"""Facts about a bundle that its operator should know."""

from __future__ import annotations

from collections.abc import Iterable

MOST = 100
"""Notices that are kept; the others are counted. A bundle may give a hundred thousand."""


class Notices:
    """Lines of text, the first of which are kept."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._count = 0

    def add(self, text: str) -> None:
        """Add one."""
        self._count += 1
        if len(self._first) < MOST:
            self._first.append(text)

    def extend(self, texts: Iterable[str]) -> None:
        """Add several."""
        for text in texts:
            self.add(text)

    def lines(self) -> list[str]:
        """Return those that are kept, and how many more there are."""
        more = self._count - len(self._first)
        return [*self._first, f"and {more} more notices"] if more else [*self._first]
