"""Manifests in memory, so that a fleet asking for the same few does not read the disk.

Content never changes under its digest, so an entry cannot be stale; whether a repository holds the
manifest is asked of the store each time. Bytes are hashed once, when they enter: what does not
have its digest is not served.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import aiofiles

from storage import digest as digests
from storage import manifest as manifests
from storage.bundle.verified import BundleExtent
from storage.digest import Digest
from storage.errors import ContentCorrupt, ManifestUnknown
from storage.interface import Extent

MAX_BYTES = 8 * 1024 * 1024
"""Bodies held at most; one manifest may be 4 MiB, nearly all are a few KiB."""


@dataclass(frozen=True, slots=True)
class Cached:
    """A verified manifest body and its media type."""

    body: bytes
    media_type: str


class ManifestCache:
    """Least recently used out first, bounded by `MAX_BYTES`. For one event loop."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._entries: OrderedDict[Digest, Cached] = OrderedDict()

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._entries

    async def load(self, digest: Digest, extent: Extent) -> Cached:
        """The manifest at ``extent``, from memory where it was read before.

        Raises:
            ManifestUnknown: it was deleted a moment ago.
            ContentCorrupt: the stored bytes do not have this digest.
        """
        cached = self._entries.get(digest)
        if cached is not None:
            self._entries.move_to_end(digest)
            return cached
        body = await _read(extent)
        if digests.of(body, digest.algorithm) != digest:
            if isinstance(extent, BundleExtent):
                raise extent.proof.corrupt()
            raise ContentCorrupt("the stored manifest is damaged: push it again")
        cached = Cached(body, manifests.parse_stored(body).media_type)
        self._insert(digest, cached)
        return cached

    def _insert(self, digest: Digest, cached: Cached) -> None:
        if digest in self._entries or len(cached.body) > self._max_bytes:
            return
        self._entries[digest] = cached
        self._held += len(cached.body)
        while self._held > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._held -= len(oldest.body)


async def _read(extent: Extent) -> bytes:
    try:
        async with aiofiles.open(extent.path, "rb", opener=_opener_of(extent)) as file:
            await file.seek(extent.offset)
            return await file.read(extent.size)
    except FileNotFoundError:
        raise ManifestUnknown("manifest unknown") from None


def _opener_of(extent: Extent) -> Callable[[str, int], int]:
    return lambda path, flags: extent.opener.open(extent.path)
