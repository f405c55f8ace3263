"""Lists the repositories that a caller may read, without reading any others.

Otherwise the time of an answer would reveal how many others there are, and where: a client chooses
by ``last`` where the walk begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mayfly.storage.interface import Store

_FIRST_PAGE, _LARGEST_PAGE = 64, 1024
"""Repositories read at a time: the first page may be all that is wanted."""


def visible(
    store: Store, prefixes: Iterable[str], is_visible: Callable[[str], bool], after: str = ""
) -> Iterator[str]:
    """Yield the names of visible repositories that follow ``after``, in lexical order.

    Args:
        prefixes: of their names, sorted; none begins with another one.
        is_visible: decides on a name with one of the prefixes.
    """
    for prefix in prefixes:
        position, size = after, _FIRST_PAGE
        while names := store.repositories(position, size, prefix):
            yield from filter(is_visible, names)
            position, size = names[-1], min(2 * size, _LARGEST_PAGE)
