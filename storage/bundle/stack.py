"""Several read-only layers as one: the content of all, the first that has it answering.

A tag that two layers give to different manifests is an error, not a pick.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

from mayfly.storage.bundle.errors import BundleConflict
from mayfly.storage.bundle.layer import Layer
from mayfly.storage.digest import Digest
from mayfly.storage.directory.reader import manifest_unknown
from mayfly.storage.errors import BlobUnknown, ContentCorrupt, ManifestUnknown, NameUnknown
from mayfly.storage.interface import Extent
from mayfly.storage.referrers import Referrer


class Stack:
    """See `storage.bundle.layer.Layer`; of two layers, the first is asked first."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = tuple(layers)

    def blob(self, repository: str, digest: Digest) -> Extent:
        # The layer with the bytes must itself link them in the repository: a manifest of another
        # layer that names them gives no right to them.
        refused: ContentCorrupt | None = None
        for layer in self._layers:
            try:
                return layer.blob(repository, digest)
            except BlobUnknown:
                continue
            except ContentCorrupt as error:
                refused = error  # another layer may have a good copy
        raise refused or BlobUnknown("blob unknown to repository", {"digest": str(digest)})

    def manifest(self, repository: str, digest: Digest) -> Extent:
        for layer in self._layers:
            try:
                return layer.manifest(repository, digest)
            except ManifestUnknown:
                continue
        raise manifest_unknown(str(digest))

    def tag(self, repository: str, tag: str) -> Digest:
        found: set[Digest] = set()
        for layer in self._layers:
            try:
                found.add(layer.tag(repository, tag))
            except ManifestUnknown:
                continue
        if len(found) > 1:
            candidates = " and ".join(sorted(map(str, found)))
            raise BundleConflict(f"bundles disagree on {repository}:{tag}: {candidates}")
        if not found:
            raise manifest_unknown(tag)
        return found.pop()

    def tags(self, repository: str) -> list[str]:
        return merge_tags(repository, [layer.tags for layer in self._layers])

    def repositories(self, after: str, limit: int, prefix: str = "") -> list[str]:
        pages = [layer.repositories(after, limit, prefix) for layer in self._layers]
        return merge_names(pages, limit)

    def holders(self, digest: Digest) -> Iterator[str]:
        return distinct(layer.holders(digest) for layer in self._layers)

    def referrers(self, repository: str, subject: Digest, after: str = "") -> Iterator[Referrer]:
        return merge_referrers(x.referrers(repository, subject, after) for x in self._layers)

    def links(self, repository: str, digest: Digest) -> bool:
        return any(layer.links(repository, digest) for layer in self._layers)

    def revisions(self, repository: str) -> Iterator[Digest]:
        return iter({d for layer in self._layers for d in layer.revisions(repository)})

    def content(self, digest: Digest) -> Extent | None:
        refused: ContentCorrupt | None = None
        for layer in self._layers:
            try:
                found = layer.content(digest)
            except ContentCorrupt as error:
                # Another layer may have a good copy.
                refused = error
                continue
            if found is not None:
                return found
        if refused is not None:
            raise refused
        return None


def merge_tags(repository: str, sources: Sequence[Callable[[str], list[str]]]) -> list[str]:
    """The tags that any source has for a repository, in order.

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
        raise unknown or NameUnknown("repository name not known to registry", {"name": repository})
    return sorted(found)


def merge_names(pages: Sequence[list[str]], limit: int) -> list[str]:
    """The first ``limit`` names of sorted pages that each have their source's first ``limit``."""
    return list(islice(_unrepeated(heapq.merge(*pages)), limit))


def merge_referrers(found: Iterable[Iterator[Referrer]]) -> Iterator[Referrer]:
    """Descriptors in order of digest, each once, from sources in that order."""
    last = None
    for descriptor in heapq.merge(*found, key=lambda descriptor: str(descriptor["digest"])):
        if descriptor["digest"] != last:
            yield descriptor
        last = descriptor["digest"]


def distinct(sources: Iterable[Iterator[str]]) -> Iterator[str]:
    """The names of all sources, each once, asked for one by one."""
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
