"""Finds content that nothing referred to for some time, so that it may be removed.

Finishing an upload, mounting, and putting a manifest touch the content they refer to. A removal
asks again behind the gate (`storage.directory.gate`): content that a push referred to since the
start is then younger, however short the grace is.
"""

from __future__ import annotations

import os
import time

from mayfly.storage.digest import Digest
from mayfly.storage.directory.layout import Layout
from mayfly.storage.directory.store import DistributionStore

_LONGEST_TICK = 3.0
"""Seconds. FAT's times are the coarsest, with two seconds; usual clocks tick in milliseconds."""


class Untouched:
    """Tells content that was last touched more than a grace before this was made.

    Args:
        store: has the content.
        grace: seconds.
    """

    def __init__(self, store: DistributionStore, grace: float) -> None:
        self._layout = store.parts.layout
        # Behind the gate: a push that is within it now may have touched its references, and not
        # have linked its manifest yet, so that no mark would find that.
        with store.parts.gate.removing():
            moment = _moment(self._layout)
        self.at = store.parts.ages.older_than(grace, moment)
        """Whether the modification time of a file is before that."""

    def content(self, digest: Digest) -> bool:
        """Whether stored content was last touched before that; False of content that is gone."""
        try:
            return self.at(self._layout.data(digest).stat().st_mtime)
        except FileNotFoundError:
            return False


def _moment(layout: Layout) -> float:
    """Return the time now, by the clock that stamps files.

    All earlier changes have an earlier time, and no later one has. That clock ticks up to a hundred
    times slower than the system's (on NFS it is another machine's): by the system's clock, a file
    touched after this may look older.
    """
    before = now = _tick(layout)
    end = time.monotonic() + _LONGEST_TICK
    while now == before and time.monotonic() < end:
        now = _tick(layout)
    return now


def _tick(layout: Layout) -> float:
    directory = layout.scratch.parent
    os.utime(directory)
    return directory.stat().st_mtime
