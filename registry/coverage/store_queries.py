"""The questions that coverage has for the store: an image's references, and a tag's digest."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from itertools import islice
from typing import Protocol

from mayfly.registry.coverage.manifest_graph import ManifestRefs
from mayfly.registry.coverage.upgrade_lists import parse_image
from mayfly.storage import digest as digests
from mayfly.storage.errors import StorageError
from mayfly.storage.interface import Reader
from mayfly.storage.reference import split_name


class StoreQueries(Protocol):
    """Answers for coverage. `tag` is quick and runs on the event loop; `refs` may read."""

    def refs(self, repository: str, digest: str) -> ManifestRefs | None:
        """Return the references of a manifest; None if it does not exist."""

    def tag(self, repository: str, tag: str) -> str | None:
        """Return the digest a tag points at; None if there is no such tag."""

    def sizes(self, repository: str, digest: str) -> dict[str, int]:
        """Return the size of each blob that a manifest names, in its order. May read."""

    def tagged(self, most: int) -> list[str]:
        """Return names of images with their tags, in lexical order. May read."""


def has_image(store: StoreQueries, text: str, own_hosts: Collection[str]) -> bool:
    """Whether an image comes from this registry: it has it, or is named as its host. May read.

    Args:
        text: the image's name as it is written in a pod.
        own_hosts: ``host`` or ``host:port`` by which this registry is known.
    """
    try:
        if split_name(text).host in own_hosts:
            return True
        image = parse_image(text, own_hosts)
    except (ValueError, StorageError):
        return False
    if image.digest is not None:
        return any(store.refs(one, image.digest) for one in image.repositories())
    assert image.tag is not None
    return any(store.tag(one, image.tag) for one in image.repositories())


class ReaderQueries:
    """`StoreQueries` of a store's reader."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def refs(self, repository: str, digest: str) -> ManifestRefs | None:
        # Imported for the first image pulled, not before the first answer.
        from mayfly.registry.coverage.declared_refs import refs_of
        from mayfly.storage.reading import load

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

    def sizes(self, repository: str, digest: str) -> dict[str, int]:
        from mayfly.storage.reading import load

        try:
            manifest = load(self._reader, repository, digests.parse(digest))
        except (StorageError, OSError):
            return {}
        return {str(one.digest): one.size or 0 for one in manifest.blobs}

    def tagged(self, most: int) -> list[str]:
        from mayfly.storage.reading import repositories

        found: list[str] = []
        for repository in repositories(self._reader):
            # It may be removed meanwhile.
            with contextlib.suppress(StorageError, OSError):
                tags = islice(self._reader.tags(repository), most - len(found))
                found += [f"{repository}:{tag}" for tag in tags]
            if len(found) >= most:
                break
        return found
