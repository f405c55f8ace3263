"""Where images are copied to: another registry, or a store on this host.

Both answer the same questions and take the same content (`Target`). Everything here runs on one
event loop; local files are written in worker threads.
"""

from __future__ import annotations

import asyncio
import json
from typing import Protocol

from mayfly.registry.upstream.endpoint import Endpoint
from mayfly.registry.upstream.errors import ContentWrong, UpstreamError
from mayfly.registry.upstream.push import Progress, PushRegistry
from mayfly.registry.upstream.streams import BlobStream
from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import BlobUnknown, DigestInvalid, ManifestUnknown, StorageError
from mayfly.storage.manifest import INDEX_TYPES, MAX_SIZE, OCI_INDEX, Manifest
from mayfly.storage.transfer.attached import flat_tag

Mounted = str | None
"""None for a blob that is there now, otherwise an upload session, or "" without one."""


class Target(Endpoint, Protocol):
    """A registry or store that images can be copied to. Its methods raise `UpstreamError`."""

    async def tag(self, repository: str, tag: str) -> Digest | None:
        """The digest that a tag points at; None without the tag."""

    async def has_manifest(self, repository: str, digest: Digest) -> bool:
        """Whether a repository has a manifest."""

    async def referrers(self, repository: str, subject: Digest) -> frozenset[Digest]:
        """The manifests that are listed as referring to one."""

    async def has_blob(self, repository: str, digest: Digest) -> bool:
        """Whether a repository has a blob."""

    async def mount(self, repository: str, digest: Digest, source: str) -> Mounted:
        """Link a blob of another repository of this target."""

    async def put_blob(
        self, repository: str, stream: BlobStream, progress: Progress, session: str
    ) -> None:
        """Store a blob.

        Args:
            repository: to store it in.
            stream: its bytes.
            progress: see `Progress`.
            session: by `mount`, or "".
        """

    async def put_manifest(
        self, repository: str, manifest: Manifest, digest: Digest, tag: str | None
    ) -> None:
        """Store a manifest whose content is there, list it as a referrer, and tag it."""


class RegistryTarget:
    """A registry; see `Target`."""

    def __init__(self, registry: PushRegistry) -> None:
        self._registry = registry
        self.label = registry.host
        self.url = registry.url
        self._fallbacks: dict[tuple[str, Digest], asyncio.Lock] = {}

    async def tag(self, repository: str, tag: str) -> Digest | None:
        return await self._registry.digest_at(repository, tag)

    async def has_manifest(self, repository: str, digest: Digest) -> bool:
        return await self._registry.has_manifest(repository, digest)

    async def referrers(self, repository: str, subject: Digest) -> frozenset[Digest]:
        listed = await self._registry.referrers(repository, subject)
        if listed is None:
            entries = await self._fallback(repository, subject)
            listed = [_digest_of(entry, self.label) for entry in entries]
        return frozenset(listed)

    async def has_blob(self, repository: str, digest: Digest) -> bool:
        return await self._registry.has_blob(repository, digest)

    async def mount(self, repository: str, digest: Digest, source: str) -> Mounted:
        return await self._registry.mount(repository, digest, source)

    async def put_blob(
        self, repository: str, stream: BlobStream, progress: Progress, session: str
    ) -> None:
        await self._registry.push_blob(repository, stream, progress, session)

    async def put_manifest(
        self, repository: str, manifest: Manifest, digest: Digest, tag: str | None
    ) -> None:
        is_listed = await self._registry.put_manifest(
            repository, tag or str(digest), manifest.body, manifest.media_type
        )
        if manifest.subject is not None and not is_listed:
            await self._add_to_fallback(repository, manifest, digest)

    async def _add_to_fallback(self, repository: str, manifest: Manifest, digest: Digest) -> None:
        """Add a referrer to its subject's tag, where the referrers API is missing (OCI 1.1)."""
        assert manifest.subject is not None
        subject = manifest.subject.digest
        async with self._fallbacks.setdefault((repository, subject), asyncio.Lock()):
            entries = await self._fallback(repository, subject)
            if any(_digest_of(entry, self.label) == digest for entry in entries):
                return
            entries.append(manifest.referrer(digest))
            index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
            body = json.dumps(index, separators=(",", ":")).encode()
            if len(body) > MAX_SIZE:
                raise UpstreamError(f"{self.label}/{repository}@{subject}: too many referrers")
            await self._registry.put_manifest(repository, flat_tag(subject), body, OCI_INDEX)

    async def _fallback(self, repository: str, subject: Digest) -> list[dict[str, object]]:
        """The entries of the index under the fallback tag."""
        tag = flat_tag(subject)
        found = await self._registry.find_manifest(repository, tag)
        if found is None:
            return []
        try:
            document = json.loads(found.body)
            entries = document["manifests"] or []
            if found.media_type in INDEX_TYPES and all(isinstance(one, dict) for one in entries):
                return list(entries)
        except (ValueError, RecursionError, KeyError, TypeError):
            pass
        raise UpstreamError(f"{self.label}/{repository}:{tag} is not a list of referrers")


class StoreTarget:
    """A store on this host; see `Target`.

    An image that the store has of an upstream counts as absent: its content may be missing, and it
    may be evicted. Once put here, it is the store's own.
    """

    def __init__(self, store: DistributionStore, label: str) -> None:
        self._store = store
        self.label = label
        self.url = None

    async def tag(self, repository: str, tag: str) -> Digest | None:
        def found() -> Digest | None:
            if self._store.cached.last_checked(repository, tag) is not None:
                return None
            return self._store.tag(repository, tag)

        try:
            return await asyncio.to_thread(found)
        except ManifestUnknown:
            return None

    async def has_manifest(self, repository: str, digest: Digest) -> bool:
        return await asyncio.to_thread(self._has_manifest, repository, digest)

    def _has_manifest(self, repository: str, digest: Digest) -> bool:
        try:
            self._store.manifest(repository, digest)
        except ManifestUnknown:
            return False
        return not self._store.cached.has_manifest(repository, digest)

    async def referrers(self, repository: str, subject: Digest) -> frozenset[Digest]:
        def listed() -> frozenset[Digest]:
            found = self._store.referrers(repository, subject)
            every = [digests.parse(str(one["digest"])) for one in found]
            return frozenset(one for one in every if self._has_manifest(repository, one))

        return await asyncio.to_thread(listed)

    async def has_blob(self, repository: str, digest: Digest) -> bool:
        try:
            # Touched: a collector that runs meanwhile keeps it for its manifest.
            await asyncio.to_thread(self._store.touch, repository, digest)
        except BlobUnknown:
            return False
        return True

    async def mount(self, repository: str, digest: Digest, source: str) -> Mounted:
        try:
            await asyncio.to_thread(self._store.mount, repository, digest, source)
        except BlobUnknown:
            return ""
        return None

    async def put_blob(
        self, repository: str, stream: BlobStream, progress: Progress, session: str
    ) -> None:
        await asyncio.to_thread(self._store.check_room, stream.size)
        at = 0
        with self._store.copying(repository, stream.digest.algorithm) as upload:
            try:
                async for piece in stream.pieces(0, stream.size):
                    await asyncio.to_thread(upload.write, [piece], at)
                    at += len(piece)
                    progress(len(piece))
                await asyncio.to_thread(upload.commit, stream.digest)
            except DigestInvalid as error:
                raise ContentWrong(error.message) from None
            except BaseException:
                progress(-at)
                raise

    async def put_manifest(
        self, repository: str, manifest: Manifest, digest: Digest, tag: str | None
    ) -> None:
        tags = () if tag is None else (tag,)
        await asyncio.to_thread(self._store.put_manifest, repository, manifest, digest, tags)


def _digest_of(entry: dict[str, object], label: str) -> Digest:
    try:
        return digests.parse(str(entry["digest"]))
    except (StorageError, KeyError):
        raise UpstreamError(f"{label}: its list of referrers is damaged") from None
