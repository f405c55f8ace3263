"""Several read-only stores as one: the content of all; of equal content, the first store's.

A tag that points at different manifests in two stores is an error, not a choice.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

from mayfly.storage.bundle.errors import BundleConflict
from mayfly.storage.digest import Digest
from mayfly.storage.errors import (
    BlobUnknown,
    ContentCorrupt,
    ManifestUnknown,
    NameUnknown,
    blob_unknown,
    manifest_unknown,
    repository_unknown,
)
from mayfly.storage.interface import Extent, LowerStore
from mayfly.storage.referrers import Referrer


class Union:
    """See `storage.interface.LowerStore`.

    Args:
        stores: asked in this order.
    """

    def __init__(self, stores: Sequence[LowerStore]) -> None:
        self._stores = tuple(stores)

    def blob(self, repository: str, digest: Digest) -> Extent:
        # The store with the bytes must itself link them in the repository: a manifest of another
        # store that names them gives no right to them.
        refused: ContentCorrupt | None = None
        for store in self._stores:
            try:
                return store.blob(repository, digest)
            except BlobUnknown:
                continue
            except ContentCorrupt as error:
                refused = error  # another store may have a good copy
        raise refused or blob_unknown(digest)

    def manifest(self, repository: str, digest: Digest) -> Extent:
        for store in self._stores:
            try:
                return store.manifest(repository, digest)
            except ManifestUnknown:
                continue
        raise manifest_unknown(digest)

    def tag(self, repository: str, tag: str) -> Digest:
        found: set[Digest] = set()
        for store in self._stores:
            try:
                found.add(store.tag(repository, tag))
            except ManifestUnknown:
                continue
        if len(found) > 1:
            candidates = " and ".join(sorted(map(str, found)))
            raise BundleConflict(f"bundles disagree on {repository}:{tag}: {candidates}")
        if not found:
            raise manifest_unknown(tag)
        return found.pop()

    def tags(self, repository: str) -> list[str]:
        return merge_tags(repository, [store.tags for store in self._stores])

    def has_repository(self, repository: str) -> bool:
        return any(store.has_repository(repository) for store in self._stores)

    def repositories(self, after: str, limit: int, prefix: str = "") -> list[str]:
        pages = [store.repositories(after, limit, prefix) for store in self._stores]
        return merge_names(pages, limit)

    def repositories_with(self, digest: Digest) -> Iterator[str]:
        return distinct(store.repositories_with(digest) for store in self._stores)

    def referrers(self, repository: str, subject: Digest, after: str = "") -> Iterator[Referrer]:
        asked = (repository, subject, after)
        return merge_referrers(store.referrers(*asked) for store in self._stores)

    def links(self, repository: str, digest: Digest) -> bool:
        return any(store.links(repository, digest) for store in self._stores)

    def revisions(self, repository: str) -> Iterator[Digest]:
        return iter({d for store in self._stores for d in store.revisions(repository)})

    def content(self, digest: Digest) -> Extent | None:
        refused: ContentCorrupt | None = None
        for store in self._stores:
            try:
                found = store.content(digest)
            except ContentCorrupt as error:
                # Another store may have a good copy.
                refused = error
                continue
            if found is not None:
                return found
        if refused is not None:
            raise refused
        return None


def merge_tags(repository: str, sources: Sequence[Callable[[str], list[str]]]) -> list[str]:
    """Return the tags that any source has for a repository, sorted.

    Raises:
        NameUnknown: no source knows the repository.
    """
    found: set[str] = set()
    unknown: NameUnknown | None = None
    known = False
    for tags in sources:
        try:
            found.update(tags(repository))
            known = True
        except NameUnknown as error:
            unknown = error
    if not known:
        raise unknown or repository_unknown(repository)
    return sorted(found)


def merge_names(pages: Sequence[list[str]], limit: int) -> list[str]:
    """Merge sorted pages of names, each the first ``limit`` of its source; keep ``limit``."""
    return list(islice(_unrepeated(heapq.merge(*pages)), limit))


def merge_referrers(found: Iterable[Iterator[Referrer]]) -> Iterator[Referrer]:
    """Merge descriptors from sources that are sorted by digest; yield each once."""
    last = None
    for descriptor in heapq.merge(*found, key=lambda descriptor: str(descriptor["digest"])):
        if descriptor["digest"] != last:
            yield descriptor
        last = descriptor["digest"]


def distinct(sources: Iterable[Iterator[str]]) -> Iterator[str]:
    """Yield the names of all sources, one source after the other, each name once."""
    seen: set[str] = set()
    for name in chain.from_iterable(sources):
        if name not in seen:
            seen.add(name)
            yield name


def _unrepeated(ordered: Iterable[str]) -> Iterator[str]:
    last = None
    for name in ordered:
        if name != last:
            yield name
        last = name
