"""What the lifetime asks the store: which content an image is made of, and where a tag points."""

from __future__ import annotations

from mayfly.registry.coverage.contents import Contents
from mayfly.storage import digest as digests
from mayfly.storage.errors import StorageError
from mayfly.storage.interface import Reader


class Held:
    """See `registry.lifecycle.life.Content`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def contents(self, repository: str, digest: str) -> Contents | None:
        # Imported for the first image pulled, not before the first answer.
        from mayfly.registry.coverage.manifest_refs import refs_of
        from mayfly.storage.images import load

        try:
            manifest = load(self._reader, repository, digests.parse(digest))
            return refs_of(manifest).within(self._reader, repository)
        except (StorageError, OSError):
            return None

    def tag(self, repository: str, tag: str) -> str | None:
        try:
            return str(self._reader.tag(repository, tag))
        except StorageError:
            return None
