"""The interface that upkeep needs of a writable store, alone or over others."""

from __future__ import annotations

from typing import Protocol

from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.interface import LowerStore


class Maintainable(LowerStore, Protocol):
    """A writable store that is collected, verified and tidied.

    It is read as its clients see it, with the stores beneath; only its upper store is changed.
    """

    @property
    def upper(self) -> DistributionStore:
        """The store that takes the changes."""

    def purge_uploads(self, max_age: float) -> int:
        """End the upload sessions idle for ``max_age`` seconds and return their number."""

    def interrupt(self) -> None:
        """Stop hashing in other threads; operations waiting for it fail with `Interrupted`."""
