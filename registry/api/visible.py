"""The repositories that a caller may read, found without looking at any others.

The time of an answer would tell how many others there are, and where: a client chooses by ``last``
what is walked through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mayfly.storage.interface import Store

_FIRST_PAGE, _LARGEST_PAGE = 64, 1024
"""Repositories read at a time: the first page may be all that is wanted."""


def visible(
    store: Store, prefixes: Iterable[str], is_visible: Callable[[str], bool], after: str = ""
) -> Iterator[str]:
    """Give the names of visible repositories that follow ``after``, in lexical order.

    Args:
        prefixes: what they begin with, in order, none of them the beginning of another.
        is_visible: whether one of that beginning is.
    """
    for prefix in prefixes:
        position, size = after, _FIRST_PAGE
        while names := store.repositories(position, size, prefix):
            yield from filter(is_visible, names)
            position, size = names[-1], min(2 * size, _LARGEST_PAGE)
