"""What a bundle can be refused for. Messages name the bundle as the operator gave it."""

from __future__ import annotations

from mayfly.storage.errors import ContentCorrupt, StorageError


class BundleInvalid(StorageError):
    """A bundle that cannot be served: unreadable, damaged, unsafe or of no known kind."""


class BundleConflict(StorageError):
    """Two bundles, or one with itself, disagree on what a tag points at."""


class BundleChanged(ContentCorrupt):
    """A bundle's file was written to after it was opened; what it holds now is unknown."""


class NameAmbiguous(StorageError):
    """A repository name that several upstreams share, asked for without saying which."""


class NotReady(StorageError):
    """An image whose layers are still being hashed; it can be asked for again shortly."""
