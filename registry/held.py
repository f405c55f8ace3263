"""What the lifetime asks the store: which content an image is made of, and where a tag points."""

from __future__ import annotations

from registry.lifetime.contents import Contents
from storage import digest as digests
from storage.errors import StorageError
from storage.interface import Reader


class Held:
    """See `registry.lifetime.life.Content`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def contents(self, repository: str, digest: str) -> Contents | None:
        # Imported for the first image pulled, not before the first answer.
        from registry.manifest_refs import refs_of
        from storage.images import load

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
