"""Caches manifests, so that a fleet that pulls the same few images does not read the disk.

Content never changes under its digest, so an entry cannot be stale; the store is asked each time
whether the repository holds the manifest. Bytes are hashed once, when they enter the cache: damaged
content is not served.

Nearly all manifests are a few KiB, but a client may push one of up to 4 MiB. Of large ones only the
references are cached; they are verified and sent from their file. `ManifestGate` bounds the number
of manifests in memory, pushed or pulled, and of nodes' proofs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import NamedTuple

from mayfly.registry.coverage.declared_refs import DeclaredRefs, refs_of
from mayfly.registry.coverage.manifest_graph import size_of as size_of_refs
from mayfly.registry.threads import Turns, in_thread
from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import ContentCorrupt
from mayfly.storage.interface import Content
from mayfly.storage.reading import read_stored
from mayfly.storage.sized_cache import SizedCache

MAX_BYTES = 8 * 1024 * 1024
"""Bytes of cached bodies; half as many are added for the references of large manifests."""

SMALL = 32 * 1024
"""Most bytes of a manifest that is cached without a place at the gate; 127 layers take 20 KiB."""

_LANES = ((SMALL, 0), (512 * 1024, 16), (manifests.MAX_SIZE, 3))
"""Most bytes of a manifest in each lane, and most manifests in it at once; 0 is no limit."""

OnRead = Callable[[bytes], None]


class Cached(NamedTuple):
    """A verified manifest.

    Attributes:
        body: None for a large one, which is sent from its file.
    """

    body: bytes | None
    media_type: str
    refs: DeclaredRefs


class ManifestGate:
    """Limits the large manifests and proofs in memory, and parses one of them at a time.

    Clients take turns: however many large manifests one of them sends, others wait for few.

    Python's JSON decoder takes ten times the memory of its input, and holds the interpreter's lock:
    one at a time leaves the event loop its turns.
    """

    def __init__(self) -> None:
        self._lanes = [(size, Turns(count)) for size, count in _LANES if count]
        self._parsing = Turns(1)

    @asynccontextmanager
    async def admit(self, client: Hashable, size: int | None) -> AsyncIterator[None]:
        """Hold a place for a body of ``size`` bytes in memory; None for an unknown size."""
        if size is not None and size <= SMALL:
            yield
            return
        wanted = manifests.MAX_SIZE if size is None else min(size, manifests.MAX_SIZE)
        lane = next(lane for largest, lane in self._lanes if wanted <= largest)
        async with lane.turn(client):
            yield

    async def parse(
        self, client: Hashable, body: bytes, media_type: str | None
    ) -> manifests.Manifest:
        """See `storage.manifest.parse`."""
        if len(body) <= SMALL:
            return await in_thread(manifests.parse, body, media_type)
        async with self._parsing.turn(client):
            return await in_thread(manifests.parse, body, media_type)

    async def verify(
        self, client: Hashable, content: Content, digest: Digest, on_read: OnRead
    ) -> Cached:
        """Read and verify a stored manifest; see `ManifestCache.load`."""
        if content.size <= SMALL:
            return await in_thread(_read, content, digest, on_read)
        async with self._parsing.turn(client):
            return await in_thread(_read, content, digest, on_read)


class ManifestCache:
    """Caches up to ``max_bytes``; the least recently used manifest is dropped first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.gate = ManifestGate()
        self._small: SizedCache[Digest, Cached] = SizedCache(max_bytes, _size_of)
        self._large: SizedCache[Digest, Cached] = SizedCache(max_bytes // 2, _size_of)

    def known(self, digest: Digest) -> Cached | None:
        """Return a manifest whose body is in memory; None if it has to be read."""
        return self._small.get(digest)

    async def load(
        self, client: Hashable, digest: Digest, content: Content, *, head: bool, on_read: OnRead
    ) -> Cached:
        """Return the manifest in ``content``, which is not `known`.

        Args:
            client: that waits for it; see `registry.threads.Turns`.
            head: whether the body is not sent, so that a large manifest need not be read again.
            on_read: called in a thread with the verified bytes, if they are read.

        Raises:
            ManifestUnknown: it was deleted meanwhile.
            ContentCorrupt: the stored bytes do not have this digest.
        """
        if content.size <= SMALL:
            small = await self.gate.verify(client, content, digest, on_read)
            self._small.put(digest, small)
            return small
        cached = self._large.get(digest)
        if cached is None:
            cached = await self.gate.verify(client, content, digest, on_read)
            self._large.put(digest, cached)
        elif not head:
            await in_thread(_verified_body, content, digest)
        return cached


def _size_of(cached: Cached) -> int:
    return len(cached.body or b"") + size_of_refs(cached.refs.required)


def _read(content: Content, digest: Digest, on_read: OnRead) -> Cached:
    body = _verified_body(content, digest)
    on_read(body)
    manifest = manifests.parse_stored(body)
    kept = body if len(body) <= SMALL else None
    return Cached(kept, manifest.media_type, refs_of(manifest))


def _verified_body(content: Content, digest: Digest) -> bytes:
    if content.size > manifests.MAX_SIZE:
        raise ContentCorrupt(f"stored manifest {digest} is larger than a manifest can be")
    body = read_stored(content)
    if digests.of(body, digest.algorithm) != digest:
        if content.proof is not None:
            raise content.proof.corrupt()
        raise ContentCorrupt("the stored manifest is damaged: push it again")
    return body
