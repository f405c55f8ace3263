"""Errors about bundles. Messages name the bundle as the operator gave it."""

from __future__ import annotations

from mayfly.storage.errors import ContentCorrupt, StorageError


class BundleInvalid(StorageError):
    """A bundle that cannot be served: unreadable, damaged, unsafe or of no known kind."""


class BundleConflict(StorageError):
    """A tag points at different manifests in two bundles, or twice in one."""


class BundleChanged(ContentCorrupt):
    """A bundle's file was written to after it was opened; its content is unknown now."""


class NameAmbiguous(StorageError):
    """A repository name that several upstreams share, in a request that names none of them."""


class NotReady(StorageError):
    """An image whose layers are still being hashed; a later request finds it."""
