"""Errors about bundles. Messages name the bundle as the operator gave it."""

from __future__ import annotations

from collections.abc import Sequence

from mayfly.storage.errors import ContentCorrupt, StorageError


class BundleInvalid(StorageError):
    """A bundle that cannot be served: unreadable, damaged, unsafe or of no known kind."""


class BundleConflict(StorageError):
    """A tag points at different manifests in two bundles, or twice in one."""


class BundleChanged(ContentCorrupt):
    """A bundle's file was written to after it was opened; its content is unknown now."""


class NameAmbiguous(StorageError):
    """A repository name that several upstreams share, in a request that names none of them.

    Attributes:
        name: that was asked for.
        candidates: the full names that it may stand for.
    """

    def __init__(self, name: str, candidates: Sequence[str]) -> None:
        known = f"ask for {' or '.join(candidates)}, or " if candidates else ""
        super().__init__(
            f"repository {name} is in several upstreams: {known}say which by the ns parameter",
            {"name": name, "candidates": [*candidates]},
        )
        self.name = name
        self.candidates = tuple(candidates)


class NotReady(StorageError):
    """An image whose layers are still being hashed; a later request finds it."""
