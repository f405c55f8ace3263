"""Lists the repositories that a caller may read, without reading any others.

Otherwise the time of an answer would reveal how many others there are, and where: a client chooses
by ``last`` where the walk begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mayfly.auth.policy import NameRange
from mayfly.storage.interface import Store
from mayfly.storage.reference import is_repository_name

_FIRST_PAGE, _LARGEST_PAGE = 64, 1024
"""Repositories read at a time: the first page may be all that is wanted."""


def visible(
    store: Store, ranges: Iterable[NameRange], is_visible: Callable[[str], bool], after: str = ""
) -> Iterator[str]:
    """Yield the names of visible repositories that follow ``after``, in lexical order.

    Args:
        ranges: of their names, sorted; none holds another one.
        is_visible: decides on a name in one of the ranges.
    """
    for text, is_prefix in ranges:
        if not is_prefix:
            known = is_repository_name(text) and store.has_repository(text)
            if text > after and known and is_visible(text):
                yield text
            continue
        position, size = after, _FIRST_PAGE
        while names := store.repositories(position, size, text):
            yield from filter(is_visible, names)
            position, size = names[-1], min(2 * size, _LARGEST_PAGE)
